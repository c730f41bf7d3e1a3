"""Choose the speed at inference: run fewer layers of RT-DETR's decoder, or fewer queries, from one set of weights.

RT-DETR (https://arxiv.org/abs/2304.08069) trains the heads of every decoder layer, so that any layer's boxes can be the
result. `decoder_layers=k` takes those of layer k: the same, to the bit, as the whole decoder computes on its way.
`num_queries=n` lets the n best-scored positions of the encoder's maps be queries, as a model built with n would. It may
be more than the model has: queries hold no weights, unless the model learns their content.

A shortened model is a view: it shares the weights of the full model, which stays as it is, and does not hold the layers
that it does not run.
"""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any, NoReturn

import torch
from torch import nn

from ultralytics.fork.errors import Refused
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.fork.rtdetr import find_head
from ultralytics.nn.AddModules.layers.execution_mode import is_eager
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

ARGUMENTS = "decoder_layers", "num_queries"
MAX_QUERIES = 10_000  # decoder self-attention grows with their square


class ShortDecoder(InstanceMixin):
    """Put by `shorten` in front of the class of a shortened model's head."""

    chosen_queries = 0  # the number of queries, where one is chosen

    def forward(self, x: list[torch.Tensor], *args: Any) -> tuple | torch.Tensor:
        """Run the head on maps of shape (B, C, H, W), as its class does.

        Raises:
            ValueError: If the maps have fewer positions than queries were asked for.
        """
        if is_eager():
            positions = sum(m.shape[2] * m.shape[3] for m in x)
            if self.chosen_queries > positions:
                sizes = ", ".join(f"{m.shape[2]}x{m.shape[3]}" for m in x)
                raise out_of_range_error(
                    "num_queries", self.chosen_queries, positions, f"positions of this image's maps ({sizes})"
                )
        return super().forward(x, *args)  # pyright: ignore[reportAttributeAccessIssue] - of the head


def choose_decoder_size(model: nn.Module, args: Any) -> None:
    """Let a predictor's or a validator's model run with as many layers and queries as the arguments of a call say.

    Args:
        model: An `AutoBackend`, or what a predictor has in its place.
        args: With `decoder_layers` and `num_queries`, of which None stands for all.

    Raises:
        ValueError: If the model is no RT-DETR, has fewer layers or queries, or was exported with others.
    """
    chosen = get_requested(args)
    backend: Any = getattr(model, "backend", model)
    views: dict[tuple, Any] | None = vars(backend).get("decoder_views")
    if not chosen and not views:
        return
    views = views or {(): getattr(backend, "model", None)}
    full = views[()]
    found = find_head(full)
    if found is None:
        check_exported_size(getattr(model, "metadata", None), chosen, getattr(model, "format", "loaded"))
        return
    key = tuple(check_requested(chosen, found[1]).items())
    keep_all_queries(args, found[1])
    if key not in views:
        views[key] = shorten(full, chosen)
    backend.model, vars(backend)["decoder_views"] = views[key], views


def shorten(model: nn.Module, args: Any) -> nn.Module:
    """Give a view of a model with as many layers and queries as `args` say; the model itself where they say nothing.

    Raises:
        ValueError: If the model is no RT-DETR, or has fewer layers or queries.
    """
    chosen = get_requested(args)
    if not chosen:
        return model
    model = getattr(model, "student_model", model)  # of a distillation, only the student is exported
    path, head = find_head(model) or refuse_other_head(chosen)
    chosen = check_requested(chosen, head)
    layers = chosen.get("decoder_layers", head.decoder.eval_idx + 1)

    decoder: Any = copy_with_layers(head.decoder, {"layers": head.decoder.layers[:layers]})
    decoder.num_layers, decoder.eval_idx = layers, layers - 1
    heads = {name: getattr(head, name)[:layers] for name in ("dec_score_head", "dec_bbox_head")}
    short: Any = copy_with_layers(head, {"decoder": decoder, **heads})
    mix_into(short, ShortDecoder)
    short.num_decoder_layers = layers
    short.num_queries = chosen.get("num_queries", head.num_queries)
    short.chosen_queries = chosen.get("num_queries", 0)
    short.max_det = max(short.max_det, short.num_queries)  # of an export's graph
    return replace_layer(model, path, short)


def keep_all_queries(args: Any, head: RTDETRDecoder) -> None:
    """Raise the default of `max_det`, which would drop boxes of a model that has, or is asked for, more queries."""
    queries = int(get_requested(args).get("num_queries", head.num_queries))
    if args.max_det == DEFAULT_CFG_DICT["max_det"] and queries > args.max_det:
        LOGGER.info(f"max_det={queries}, as many as there are queries; name max_det= for fewer")
        args.max_det = queries


def decoder_metadata(model: nn.Module) -> dict[str, int]:
    """Give the decoder arguments for the metadata of an export: its graph is fixed; nothing for other heads."""
    found = find_head(model)
    return dict(zip(ARGUMENTS, (found[1].decoder.eval_idx + 1, found[1].num_queries))) if found else {}


def refuse_in_mode(mode: str, *args: Any) -> None:
    """Raise a `ValueError` where layers or queries are asked for in a mode that does not take them."""
    chosen = {key: value for found in args if found for key, value in get_requested(found).items()}
    if chosen:
        advice = "; train fewer by ndl and nq in the model file's RTDETRDecoder row" if mode == "train" else ""
        raise Refused(f"{format_arguments(chosen)}: for predict, track, val and export, not for {mode}{advice}")


def get_requested(args: Any) -> dict[str, Any]:
    """Give the decoder arguments that are set."""
    found = args if isinstance(args, dict) else vars(args)
    return {key: found[key] for key in ARGUMENTS if found.get(key) is not None}


def check_requested(chosen: dict[str, Any], head: RTDETRDecoder) -> dict[str, int]:
    """Check the decoder arguments against a head, and give them as integers.

    Raises:
        ValueError: For a value that is not a whole number, is below 1 or above what the head has.
    """
    queries = head.num_queries if head.learnt_init_query else MAX_QUERIES
    most = {"decoder_layers": len(head.decoder.layers), "num_queries": queries}
    what = {"decoder_layers": "decoder layers that this model has", "num_queries": "queries that are possible"}
    if head.learnt_init_query:
        what["num_queries"] = "queries that this model has learned"
    for key, value in chosen.items():
        if not (is_whole_number(value) and 1 <= value <= most[key]):
            raise out_of_range_error(key, value, most[key], what[key])
    return {key: int(value) for key, value in chosen.items()}


def is_whole_number(value: Any) -> bool:
    """Whether a value is a whole number, be it written as 3.0."""
    is_integral = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    return is_integral and not isinstance(value, bool)


def format_arguments(chosen: dict[str, Any]) -> str:
    """Write arguments as they are given."""
    return " ".join(f"{key}={value!r}" for key, value in chosen.items())


def out_of_range_error(key: str, value: Any, most: int, what: str) -> ValueError:
    """Build the error for a value out of range."""
    return Refused(f"{key}={value!r}: expected a whole number from 1 to {most}, the {what}")


def refuse_other_head(chosen: dict[str, Any]) -> NoReturn:
    """Raise the error for a model that is no RT-DETR."""
    raise Refused(
        f"{format_arguments(chosen)}: only RT-DETR has decoder layers and queries, and this model's head is another"
    )


def check_exported_size(metadata: dict | None, chosen: dict[str, Any], form: str) -> None:
    """Raise a `ValueError` unless an exported model's graph, which is fixed, is what is asked for."""
    for key, value in chosen.items():
        if not (is_whole_number(value) and value >= 1):
            raise Refused(f"{key}={value!r}: expected a whole number of at least 1")
    metadata = metadata or {}
    if "stride" not in metadata or metadata.get("head", "RTDETRDecoder") != "RTDETRDecoder":
        refuse_other_head(chosen)
    exported = {key: int(metadata[key]) for key in chosen if key in metadata}
    if exported != chosen:
        with_ = f"with {format_arguments(exported)}" if exported else "before this could be chosen"
        raise Refused(
            f"{format_arguments(chosen)}: the graph of this {form} model is fixed and was exported {with_}; "
            f"export it again with {format_arguments(chosen)}"
        )


def copy_with_layers(module: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    """Copy a module with some of its layers replaced; the others, and all weights, are shared."""
    found = copy.copy(module)
    found._modules = {**module._modules, **layers}
    return found


def replace_layer(module: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Copy a module with another layer at a path; all else is shared."""
    name, _, rest = path.partition(".")
    if rest:
        inner = module._modules[name]
        assert inner is not None  # the path leads through layers
        layer = replace_layer(inner, rest, layer)
    return copy_with_layers(module, {name: layer})
