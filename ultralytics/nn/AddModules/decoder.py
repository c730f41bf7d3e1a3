"""Speed chosen at inference: fewer layers of RT-DETR's decoder, or fewer queries, from one set of weights.

RT-DETR (https://arxiv.org/abs/2304.08069) trains the heads of every decoder layer, so that any layer's boxes can be the
result. `decoder_layers=k` takes those of layer k: the same, to the bit, as the whole decoder computes on its way.
`num_queries=n` lets the n best-scored positions of the encoder's maps be queries, as a model built with n would.

A shortened model is a view: it shares the weights of the whole one, which stays as it is, and has nothing of the layers
that it does not run.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import nn

from ultralytics.nn.AddModules.compatibility import is_eager
from ultralytics.nn.AddModules.errors import Refused
from ultralytics.nn.modules import RTDETRDecoder

__all__ = ()

KEYS = "decoder_layers", "num_queries"


class ShortDecoder(RTDETRDecoder):
    """The head of a shortened model, made by `shorten` from the whole model's."""

    chosen_queries = 0  # where a number of queries was asked for

    def forward(self, x: list[torch.Tensor], batch: dict | None = None) -> tuple | torch.Tensor:
        """Run the head on maps of shape (B, C, H, W), as `RTDETRDecoder` does.

        Raises:
            ValueError: If the maps have fewer positions than queries were asked for.
        """
        if is_eager():
            positions = sum(m.shape[2] * m.shape[3] for m in x)
            if self.chosen_queries > positions:
                sizes = ", ".join(f"{m.shape[2]}x{m.shape[3]}" for m in x)
                raise wrong("num_queries", self.chosen_queries, positions, f"positions of this image's maps ({sizes})")
        return super().forward(x, batch)


def choose(model: nn.Module, args: Any) -> None:
    """Let a predictor's or a validator's model run with as many layers and queries as the arguments of a call say.

    Args:
        model: An `AutoBackend`, or what a predictor has in its place.
        args: With `decoder_layers` and `num_queries`, of which None stands for all.

    Raises:
        ValueError: If the model is no RT-DETR, has fewer layers or queries, or was exported with others.
    """
    chosen = asked(args)
    backend = getattr(model, "backend", model)
    views = vars(backend).get("decoder_views")
    if not chosen and not views:
        return
    views = views or {(): getattr(backend, "model", None)}
    whole = views[()]
    found = head_of(whole)
    if found is None:
        compare_export(getattr(model, "metadata", None), chosen, getattr(model, "format", "loaded"))
        return
    key = tuple(checked(chosen, found[1]).items())
    if key not in views:
        views[key] = shorten(whole, chosen)
    backend.model, vars(backend)["decoder_views"] = views[key], views


def shorten(model: nn.Module, args: Any) -> nn.Module:
    """Give a view of a model with as many layers and queries as `args` say; the model itself where they say nothing.

    Raises:
        ValueError: If the model is no RT-DETR, or has fewer layers or queries.
    """
    chosen = asked(args)
    if not chosen:
        return model
    model = getattr(model, "student_model", model)  # of a distillation, only the student is exported
    path, head = head_of(model) or refuse_other_head(chosen)
    chosen = checked(chosen, head)
    layers = chosen.get("decoder_layers", head.decoder.eval_idx + 1)

    decoder = view(head.decoder, {"layers": head.decoder.layers[:layers]})
    decoder.num_layers, decoder.eval_idx = layers, layers - 1
    heads = {name: getattr(head, name)[:layers] for name in ("dec_score_head", "dec_bbox_head")}
    short = view(head, {"decoder": decoder, **heads})
    short.__class__ = ShortDecoder
    short.num_decoder_layers = layers
    short.num_queries = chosen.get("num_queries", head.num_queries)
    short.chosen_queries = chosen.get("num_queries", 0)
    return replaced(model, path, short)


def record(model: nn.Module) -> dict[str, int]:
    """Give what an export's metadata says of the decoder in its graph: nothing for other heads."""
    found = head_of(model)
    return dict(zip(KEYS, (found[1].decoder.eval_idx + 1, found[1].num_queries))) if found else {}


def refuse(mode: str, *args: Any) -> None:
    """Raise a `ValueError` where layers or queries are asked for in a mode that does not take them."""
    chosen = {key: value for found in args if found for key, value in asked(found).items()}
    if chosen:
        advice = "; train fewer by ndl and nq in the model file's RTDETRDecoder row" if mode == "train" else ""
        raise Refused(f"{named(chosen)}: for predict, track, val and export, not for {mode}{advice}")


def whole_only(check_resume: Callable) -> Callable:
    """Wrap the trainer's `check_resume`, which its constructor calls first: training is of the whole decoder."""

    @functools.wraps(check_resume)
    def check(self: Any, overrides: dict) -> None:
        refuse("train", self.args, overrides)
        check_resume(self, overrides)

    return check


def asked(args: Any) -> dict[str, Any]:
    """Give those of the two arguments that are set."""
    found = args if isinstance(args, dict) else vars(args)
    return {key: found[key] for key in KEYS if found.get(key) is not None}


def checked(chosen: dict[str, Any], head: RTDETRDecoder) -> dict[str, int]:
    """Give what is asked of a head as integers.

    Raises:
        ValueError: For a value that is no whole number, below 1 or above what the head has.
    """
    most = {"decoder_layers": len(head.decoder.layers), "num_queries": head.num_queries}
    for key, value in chosen.items():
        if not (is_whole(value) and 1 <= value <= most[key]):
            raise wrong(key, value, most[key], f"{key.replace('num_', '').replace('_', ' ')} that this model has")
    return {key: int(value) for key, value in chosen.items()}


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, be it written as 3.0."""
    whole = isinstance(value, Integral) or isinstance(value, float) and value.is_integer()
    return whole and not isinstance(value, bool)


def named(chosen: dict[str, Any]) -> str:
    """Write arguments as they are given."""
    return " ".join(f"{key}={value!r}" for key, value in chosen.items())


def wrong(key: str, value: Any, most: int, what: str) -> ValueError:
    """Build the error for a value out of range."""
    return Refused(f"{key}={value!r}: expected a whole number from 1 to {most}, the {what}")


def refuse_other_head(chosen: dict[str, Any]) -> None:
    """Raise the error for a model that is no RT-DETR."""
    raise Refused(f"{named(chosen)}: only RT-DETR has decoder layers and queries, and this model's head is another")


def compare_export(metadata: dict | None, chosen: dict[str, Any], form: str) -> None:
    """Raise a `ValueError` unless an exported model's graph, which is fixed, is what is asked for."""
    for key, value in chosen.items():
        if not (is_whole(value) and value >= 1):
            raise Refused(f"{key}={value!r}: expected a whole number of at least 1")
    metadata = metadata or {}
    if "stride" not in metadata or metadata.get("head", "RTDETRDecoder") != "RTDETRDecoder":
        refuse_other_head(chosen)
    exported = {key: int(metadata[key]) for key in chosen if key in metadata}
    if exported != chosen:
        with_ = f"with {named(exported)}" if exported else "before this could be chosen"
        raise Refused(
            f"{named(chosen)}: the graph of this {form} model is fixed and was exported {with_}; "
            f"export it again with {named(chosen)}"
        )


def head_of(model: Any) -> tuple[str, RTDETRDecoder] | None:
    """Find RT-DETR's head in a model: its path and itself."""
    layers = model.named_modules() if isinstance(model, nn.Module) else ()
    return next(((path, m) for path, m in layers if isinstance(m, RTDETRDecoder)), None)


def view(module: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    """Copy a module with some of its layers replaced; the others, and all weights, are shared."""
    found = copy.copy(module)
    found._modules = {**module._modules, **layers}
    return found


def replaced(module: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Give a view of a module with another layer at a path."""
    name, _, rest = path.partition(".")
    return view(module, {name: replaced(module._modules[name], rest, layer) if rest else layer})
