"""What RT-DETR's official training has and upstream's has not, and a word on starting from nothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ultralytics.nn.AddModules.compatibility import bare
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
        share = check(self.args)
        optimizer = build_optimizer(self, model, *args, **kwargs)
        student = getattr(bare(model), "student_model", bare(model))
        rows = len((getattr(student, "yaml", None) or {}).get("backbone", []))
        if share == 1 or not rows:
            return optimizer
        slow = {id(p) for m in student.model[:rows] for p in m.parameters()}
        for group in list(optimizer.param_groups):
            backbone = [p for p in group["params"] if id(p) in slow]
            group["params"] = [p for p in group["params"] if id(p) not in slow]
            optimizer.param_groups.append({**group, "params": backbone, "lr": group["lr"] * share})
        LOGGER.info(f"The backbone's {len(slow)} parameters learn at {share:g} of the learning rate")
        return optimizer

    return build


def check(args: Any) -> float:
    """Give the backbone's share of the learning rate.

    Raises:
        ValueError: For a share or a norm that is none.
    """
    for key, most in (("backbone_lr", 1.0), ("clip_grad", math.inf)):
        value = getattr(args, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            bounds = "from above 0 to 1" if most == 1 else "above 0"
            raise ValueError(f"{key}={value!r}: expected a number {bounds}")
    return args.backbone_lr


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
