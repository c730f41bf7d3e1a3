"""Freeze the norms, the stem and stages of a pretrained backbone, as RT-DETR's authors do.

A frozen norm uses its running statistics in training, too, and none of its parameters is trained. It stays the layer
that it is: checkpoints, their average, transfer and exports see an ordinary batch norm.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ultralytics.fork.errors import Refused
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.fork.layer_numbers import list_indices
from ultralytics.fork.pretrained.alignment import find_strides
from ultralytics.fork.pretrained.timm_rows import list_timm_layers, list_timm_stages
from ultralytics.fork.pretrained.transfer_report import MIN_SHARE, REPORTS
from ultralytics.utils import LOGGER, RANK


class FrozenNorm(InstanceMixin):
    """Put in front of the class of a batch norm that uses its running statistics in training."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)  # pyright: ignore[reportAttributeAccessIssue] - of the norm


def count_backbone_rows(model: Any) -> int:
    """Count the rows of a model's backbone; 0 for a model that is not made of rows."""
    return len((getattr(model, "yaml", None) or {}).get("backbone", []))


def pretrained_share(model: nn.Module, backbone: int) -> float:
    """Give the share of the tensors of a model's backbone, its first rows, that came from pretrained weights."""
    rows = [(n, of) for _, _, to, n, of, _ in REPORTS.get(model, []) if to != "-" and int(to.split()[0]) < backbone]
    return sum(n for n, _ in rows) / max(sum(of for _, of in rows), 1)


def new_share(model: Any) -> float:
    """Give the share of a backbone that starts from scratch.

    It counts what was transferred; a backbone that has loaded weights by itself is told by its norms, which are no
    longer those of a new layer.
    """
    if getattr(model.model[0], "pretrained", False):  # a Timm row with weights, which may have no batch norm
        return 0.0
    norms = list_norms(model)
    fresh = [m for m in norms if is_new_norm(m)]
    shares = [1 - pretrained_share(model, count_backbone_rows(model))]
    return min(shares + ([len(fresh) / len(norms)] if norms else []))


def is_new_norm(m: Any) -> bool:
    """Whether a norm's weights are those with which it is made."""
    return bool((m.weight == 1).all()) and not bool(m.bias.any())


def list_norms(model: Any) -> list[Any]:
    """List the batch norms with parameters in the backbone of a model."""
    rows = model.model[: count_backbone_rows(model)]
    return [m for m in rows.modules() if isinstance(m, _BatchNorm) and m.affine]


def freeze_backbone(trainer: Any, model: Any) -> None:
    """Freeze what `freeze_norm` and `freeze_at` say, beside what `freeze` does.

    Args:
        trainer: The trainer, whose `args.freeze` is what upstream takes for `freeze`.
        model: The model, outside of its wrappers.

    Raises:
        Refused: If the model has no such stage or no batch norm.
    """
    args = trainer.args
    if trainer.fork.trains_new_backbone or (not args.freeze_norm and args.freeze_at < 0):
        return
    stages = list_stages(model) if args.freeze_at >= 0 else []
    if args.freeze_at >= len(stages):
        raise Refused(
            f"freeze_at={args.freeze_at}: the backbone of {args.model} has a stem, 0, and stages 1 to {len(stages) - 1}"
            if stages
            else f"freeze_at={args.freeze_at}: the backbone of {args.model} is one row, whose stages are not known; "
            f'freeze parts of it by name, such as freeze="[{name_a_part(model)}]", and use freeze_at=-1'
        )
    norms = [m for m in list_norms(model) if not is_new_norm(m)]  # a new one has no statistics to keep
    if args.freeze_norm and not list_norms(model):
        raise Refused(f"freeze_norm=True: the backbone of {args.model} has no batch norm; use freeze_norm=False")
    frozen = list(range(args.freeze)) if isinstance(args.freeze, int) else list(args.freeze or [])
    frozen += [place for stage in stages[: args.freeze_at + 1] for place in stage]
    if args.freeze_norm:
        names = {m: name for name, m in model.named_modules()}
        frozen += [names[m].removeprefix("model.") for m in norms]
    prefixes = tuple(f"model.{place}." for place in frozen)  # as upstream finds what is frozen
    in_frozen_rows = {m for name, m in model.named_modules() if f"{name}.".startswith(prefixes)}
    for m in norms if args.freeze_norm else [m for m in norms if m in in_frozen_rows]:
        mix_into(m, FrozenNorm)
        m.eval()
    args.freeze = frozen
    if RANK in {-1, 0}:
        what = [f"{len(norms)} batch norms"] if args.freeze_norm else []
        what += ["the stem" if args.freeze_at == 0 else f"the stem and {args.freeze_at} stages"][: args.freeze_at + 1]
        LOGGER.info(f"Frozen in the backbone: {' and '.join(what)}")


def train_new_backbone(trainer: Any, model: Any) -> None:
    """Train the whole of a backbone that starts from scratch, where the arguments are for a pretrained one."""
    args = trainer.args
    if trainer.resume or not (args.freeze_norm or args.freeze_at >= 0) or not count_backbone_rows(model):
        return
    share = new_share(model)
    if share <= MIN_SHARE:
        return
    named = [f"freeze_norm={args.freeze_norm}"] * bool(args.freeze_norm)
    named += [f"freeze_at={args.freeze_at}"] * (args.freeze_at >= 0) + [f"backbone_lr={args.backbone_lr:g}"]
    LOGGER.warning(
        f"{share:.0%} of the backbone starts from scratch, and {', '.join(named)} are for a pretrained one: all of it "
        "is trained, at the learning rate of the rest. freeze= freezes layers of it."
    )
    trainer.fork.trains_new_backbone = True


def name_a_part(model: Any) -> str:
    """Name the first part with weights of a backbone that is one row."""
    name = next(name for name, m in model.model[0].named_modules() if name and m._parameters)
    return f"0.{name}"


def list_stages(model: Any) -> list[list[Any]]:
    """List the rows of a backbone's stem and of each of its stages, by the strides of their outputs.

    The stem is the first row, and a stage is the rows behind it up to the next stride.

    Returns:
        The places of the rows in the model's list, or for a backbone of timm the names of its parts in the model;
        empty for a backbone that is one row whose stages are not known.
    """
    rows = count_backbone_rows(model)
    if rows == 1 and list_timm_layers(model.model[0]):
        return [[f"0.{name}" for name in stage] for stage in list_timm_stages(model.model[0])]
    if rows < 2 or any(len(indices) > 1 for indices in list_indices(model.model)[:rows]):
        return []
    strides = find_strides(model)
    stages: list[list[int]] = [[0]]
    last = strides.get(0, 0)
    for place in range(1, rows):
        stride = strides.get(place, last)  # a row without a map belongs to the stage before it
        if place == 1 or stride > last:
            stages.append([])
        stages[-1].append(place)
        last = stride
    return stages


def keep_offsets_frozen(model: nn.Module, freeze: Any) -> Any:
    """Add the offsets of a decoder that samples the nearest positions to upstream's `freeze=`: they get no gradient.

    Upstream would let each parameter learn that it is not told to freeze.
    """
    names = [
        name.removeprefix("model.") for name, m in model.named_modules() if getattr(m, "sampling", "") == "discrete"
    ]
    if not names:
        return freeze
    layers = list(range(freeze)) if isinstance(freeze, int) else list(freeze or [])
    return layers + [f"{name}.sampling_offsets" for name in names]
