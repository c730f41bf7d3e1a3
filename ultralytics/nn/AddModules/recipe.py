"""What RT-DETR's official training has and upstream's has not, and a word on starting from nothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ultralytics.nn.AddModules.compatibility import bare
from ultralytics.nn.AddModules.errors import Refused
from ultralytics.nn.AddModules.transfer import ENOUGH, REPORTS
from ultralytics.nn.modules.block import HGStem, ResNetLayer
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils import LOGGER, RANK

__all__ = ()

FEW = 5_000  # training images under which a model that starts from nothing hardly learns
STARTS = {48: "timm/hgnetv2_b4", 64: "timm/hgnetv2_b5"}  # what a PP-HGNetV2 starts from, by the channels of its stem


def slow_backbone(build_optimizer: Callable) -> Callable:
    """Wrap the trainer's `build_optimizer`: the backbone learns at the share `backbone_lr` of the learning rate."""

    @functools.wraps(build_optimizer)
    def build(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(self, model, *args, **kwargs)
        student = getattr(bare(model), "student_model", bare(model))
        rows = len((getattr(student, "yaml", None) or {}).get("backbone", []))
        share = self.args.backbone_lr
        if share == 1 or not rows:
            return optimizer
        slow = {id(p) for m in student.model[:rows] for p in m.parameters()}
        for group in list(optimizer.param_groups):
            backbone = [p for p in group["params"] if id(p) in slow]
            group["params"] = [p for p in group["params"] if id(p) not in slow]
            optimizer.param_groups.append({**group, "params": backbone, "lr": group["lr"] * share})
        LOGGER.info(f"The backbone's {len(slow)} parameters learn at {share:g} of the learning rate")
        new = 1 - arrived(student, rows)
        if new > ENOUGH and not self.resume:
            LOGGER.warning(
                f"{new:.0%} of the backbone starts from scratch, and backbone_lr={share:g} is for a pretrained one: "
                "backbone_lr=1 lets it learn like the rest."
            )
        return optimizer

    return build


def arrived(model: nn.Module, backbone: int) -> float:
    """Tell which share of the tensors of a model's backbone, its first rows, came from pretrained weights."""
    rows = [(n, of) for _, _, to, n, of, _ in REPORTS.get(model, []) if to != "-" and int(to.split()[0]) < backbone]
    return sum(n for n, _ in rows) / max(sum(of for _, of in rows), 1)


def sound(check_resume: Callable) -> Callable:
    """Wrap the trainer's `check_resume`, which its constructor calls first: the recipe's values are looked at."""

    @functools.wraps(check_resume)
    def look(self: Any, overrides: dict) -> None:
        check_resume(self, overrides)
        check(self.args)

    return look


def check(args: Any) -> None:
    """Raise a `ValueError` for a share of the learning rate or a norm that is none."""
    for key, most in (("backbone_lr", 1.0), ("clip_grad", math.inf)):
        value = getattr(args, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            bounds = "from above 0 to 1" if most == 1 else "above 0"
            raise Refused(f"{key}={value!r}: expected a number {bounds}")


def advised(setup_train: Callable) -> Callable:
    """Wrap the trainer's `_setup_train`: a start from nothing is told what to expect."""

    @functools.wraps(setup_train)
    def setup(self: Any, *args: Any) -> None:
        setup_train(self, *args)
        advise(self)

    return setup


def advise(trainer: Any) -> None:
    """Say what to expect of an RT-DETR that starts from nothing on few images, and what to do."""
    model, images = bare(trainer.model), len(trainer.train_loader.dataset)
    if RANK not in {-1, 0} or trainer.resume or trainer.pretrained or images >= FEW:
        return
    if not (isinstance(getattr(model, "model", None), nn.Sequential) and isinstance(model.model[-1], RTDETRDecoder)):
        return
    start = start_of(model)
    if start:
        what = "an mAP near zero for tens of epochs, and one far below a pretrained model's at the end"
        LOGGER.warning(f"Training from scratch on {images} images: expect {what}. What helps: {start}, or more images.")
    else:
        what = "a small model to find its first objects after some ten epochs, and most after thirty"
        LOGGER.warning(f"Training from scratch on {images} images: expect {what}. Its recipe is cfg=scratch.yaml.")


def start_of(model: nn.Module) -> str | None:
    """Give the argument with which a model starts from weights that fit it, if there are such."""
    stem = model.model[0]
    if isinstance(stem, HGStem) and stem.stem4.conv.out_channels in STARTS:
        return f"pretrained={STARTS[stem.stem4.conv.out_channels]}"
    if isinstance(stem, ResNetLayer) and stem.layer[0].conv.out_channels == 64:
        return f"pretrained=timm/resnet{101 if len(model.model[3].layer) == 23 else 50}"
    # With 256 channels its neck and decoder are those of the published models
    return "pretrained=rtdetr-l.pt" if model.model[-1].hidden_dim == 256 else None
