"""Switches of RT-DETR's official training that upstream lacks, and what to expect of a start from scratch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ultralytics.fork.errors import Refused
from ultralytics.fork.pretrained.transfer_report import MIN_SHARE, REPORTS
from ultralytics.fork.rtdetr import unwrap_model
from ultralytics.nn.modules.block import HGStem, ResNetLayer
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils import LOGGER, RANK

FEW_IMAGES = 5_000  # for training, below which a model that starts from scratch hardly learns
HGNET_WEIGHTS = {48: "timm/hgnetv2_b4", 64: "timm/hgnetv2_b5"}  # that fit a PP-HGNetV2, by the channels of its stem


def check_recipe(args: Any) -> None:
    """Raise `Refused` for a `backbone_lr` or a `clip_grad` that is out of range."""
    for key, most in (("backbone_lr", 1.0), ("clip_grad", math.inf)):
        value = getattr(args, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            bounds = "from above 0 to 1" if most == 1 else "above 0"
            raise Refused(f"{key}={value!r}: expected a number {bounds}")


def slow_backbone(trainer: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the backbone learn at the share `backbone_lr` of the learning rate."""
    student = getattr(unwrap_model(model), "student_model", unwrap_model(model))
    rows = len((getattr(student, "yaml", None) or {}).get("backbone", []))
    share = trainer.args.backbone_lr
    if share == 1 or not rows:
        return
    slow = {id(p) for m in student.model[:rows] for p in m.parameters()}
    for group in list(optimizer.param_groups):
        backbone = [p for p in group["params"] if id(p) in slow]
        group["params"] = [p for p in group["params"] if id(p) not in slow]
        optimizer.param_groups.append({**group, "params": backbone, "lr": group["lr"] * share})
    LOGGER.info(f"The backbone's {len(slow)} parameters learn at {share:g} of the learning rate")
    new = 1 - pretrained_share(student, rows)
    if new > MIN_SHARE and not trainer.resume:
        LOGGER.warning(
            f"{new:.0%} of the backbone starts from scratch, and backbone_lr={share:g} is for a pretrained one: "
            "backbone_lr=1 lets it learn like the rest."
        )


def pretrained_share(model: nn.Module, backbone: int) -> float:
    """Give the share of the tensors of a model's backbone, its first rows, that came from pretrained weights."""
    rows = [(n, of) for _, _, to, n, of, _ in REPORTS.get(model, []) if to != "-" and int(to.split()[0]) < backbone]
    return sum(n for n, _ in rows) / max(sum(of for _, of in rows), 1)


def warn_of_start_from_scratch(trainer: Any) -> None:
    """Say what to expect of an RT-DETR that starts from scratch on few images, and what helps."""
    model, images = unwrap_model(trainer.model), len(trainer.train_loader.dataset)
    if RANK not in {-1, 0} or trainer.resume or trainer.fork.has_pretrained_weights or images >= FEW_IMAGES:
        return
    if not (isinstance(getattr(model, "model", None), nn.Sequential) and isinstance(model.model[-1], RTDETRDecoder)):
        return
    advice = suggest_pretrained(model)
    if advice:
        what = "an mAP near zero for tens of epochs, and one far below a pretrained model's at the end"
        LOGGER.warning(
            f"Training from scratch on {images} images: expect {what}. What helps: {advice}, or more images."
        )
    else:
        what = "a small model to find its first objects after some ten epochs, and most after thirty"
        LOGGER.warning(f"Training from scratch on {images} images: expect {what}. Its recipe is cfg=scratch.yaml.")


def suggest_pretrained(model: Any) -> str | None:
    """Give the argument with which a model starts from weights that fit it, if there are such weights."""
    stem = model.model[0]
    if isinstance(stem, HGStem) and stem.stem4.conv.out_channels in HGNET_WEIGHTS:
        return f"pretrained={HGNET_WEIGHTS[stem.stem4.conv.out_channels]}"
    if isinstance(stem, ResNetLayer) and stem.layer[0].conv.out_channels == 64:
        return f"pretrained=timm/resnet{101 if len(model.model[3].layer) == 23 else 50}"
    # With 256 channels its neck and decoder are those of the published models
    return "pretrained=rtdetr-l.pt" if model.model[-1].hidden_dim == 256 else None
