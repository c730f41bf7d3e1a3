"""Switches of RT-DETR's official training that upstream lacks, and what to expect of a start from scratch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ultralytics.fork.data.official_augmentation import OfficialAugmentation, has_official_augmentation
from ultralytics.fork.errors import Refused
from ultralytics.fork.pretrained.timm_rows import list_timm_layers
from ultralytics.fork.pretrained.transfer_report import MIN_SHARE
from ultralytics.fork.rtdetr import unwrap_model
from ultralytics.fork.training import losses
from ultralytics.fork.training.frozen_backbone import count_backbone_rows, new_share
from ultralytics.nn.modules.block import HGStem, ResNetLayer
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK

FEW_IMAGES = 5_000  # for training, below which a model that starts from scratch hardly learns
RANGES = {  # of the switches: kind, least and most
    "backbone_lr": (float, 0, 1),
    "clip_grad": (float, 0, math.inf),
    "warmup_steps": (int, 0, math.inf),
    "freeze_at": (int, -1, 4),
    **dict.fromkeys(("photometric", "zoom_out", "iou_crop"), (float, 0, 1)),
    **dict.fromkeys(("distill_logits", "distill_boxes", "distill_features"), (float, 0, math.inf)),
    **dict.fromkeys(("base_size_repeat", "no_aug_epochs"), (int, 0, math.inf)),
}
ABOVE = "backbone_lr", "clip_grad"  # the least value itself is out of range
RTDETR_ONLY = (
    *("loss", "photometric", "zoom_out", "iou_crop", "aug_policy", "no_aug_epochs", "base_size_repeat"),
    *("checkpoint_activations", "fast_kernels", "distill_logits", "distill_boxes", "distill_features"),
)
SWITCHES = tuple(dict.fromkeys((*RANGES, *RTDETR_ONLY, "bias_decay", "freeze_norm", "lr_schedule")))
HGNET_WEIGHTS = {48: "timm/hgnetv2_b4", 64: "timm/hgnetv2_b5"}  # that fit a PP-HGNetV2, by the channels of its stem


def check_recipe(trainer: Any, overrides: dict) -> None:
    """Check the switches of the recipes, before anything is made.

    Raises:
        Refused: For a value out of range, a clean tail longer than the run, or a switch of RT-DETR's for another model.
    """
    args = trainer.args
    if args.resume:
        return refuse_changes(trainer, overrides)
    for key, (kind, least, most) in RANGES.items():
        check_range(key, getattr(args, key), kind, least, most)
    for key, known in (("lr_schedule", ("flat-cosine",)), ("aug_policy", ("deim",))):
        if getattr(args, key) is not None and getattr(args, key) not in known:
            raise Refused(f"{key}={getattr(args, key)!r}: expected {' or '.join(known)}, or none for Ultralytics' own")
    for key in ("bias_decay", "freeze_norm", "fast_kernels", "checkpoint_activations"):
        value, words = getattr(args, key), ("norms",) if key == "checkpoint_activations" else ()
        if not isinstance(value, bool) and value not in words and value != DEFAULT_CFG_DICT[key]:
            raise Refused(f"{key}={value!r}: expected {', '.join([*words, 'True'])} or False")
    if not is_rtdetr_trainer(trainer):
        given = [key for key in RTDETR_ONLY if getattr(args, key) != DEFAULT_CFG_DICT[key]]
        if given:
            raise Refused(f"{given[0]}={getattr(args, given[0])} is for RT-DETR, and {args.model} is not an RT-DETR")
        return
    losses.check_loss_arguments(args)
    if args.no_aug_epochs and not has_official_augmentation(args):
        raise Refused(
            f"no_aug_epochs={args.no_aug_epochs} ends photometric, zoom_out and iou_crop, which are all 0; "
            "close_mosaic= ends Ultralytics' mosaic"
        )
    if args.aug_policy and not has_official_augmentation(args):
        raise Refused(f"aug_policy={args.aug_policy} plans photometric, zoom_out and iou_crop, which are all 0")
    if args.checkpoint_activations is True and args.compile:
        raise Refused("checkpoint_activations=True compile=True: torch cannot compile these checkpoints; choose one")
    if getattr(args, "distill_model", None) and args.compile:
        raise Refused(f"distill_model={args.distill_model} compile=True: a taught model is not compiled; choose one")
    if args.lr_schedule and args.cos_lr:
        raise Refused(f"lr_schedule={args.lr_schedule} cos_lr=True: these are two schedules; choose one")
    planned = [key for key in ("no_aug_epochs", "aug_policy", "lr_schedule") if getattr(args, key)]
    if args.time and planned:
        raise Refused(f"time={args.time:g} {planned[0]}={getattr(args, planned[0])}: it needs the number of epochs")
    if args.no_aug_epochs > args.epochs:
        raise Refused(f"no_aug_epochs={args.no_aug_epochs} is more than epochs={args.epochs}")


def is_rtdetr_trainer(trainer: Any) -> bool:
    """Whether a trainer trains RT-DETR."""
    from ultralytics.models.rtdetr.train import RTDETRTrainer  # which imports engine/trainer.py, which needs this

    return isinstance(trainer, RTDETRTrainer)


def refuse_changes(trainer: Any, overrides: dict) -> None:
    """Raise `Refused` where a run that is resumed is given another value of a switch; upstream takes the old one."""
    for key in (*SWITCHES, "cls", "box", "cls_pw"):
        before = getattr(trainer.args, key, None)
        if key in overrides and overrides[key] != before:
            raise Refused(
                f"{key}={overrides[key]}: the run of {trainer.args.resume} has {key}={before}, and a resumed run "
                f"keeps it. Leave it out, or begin a new run"
            )


def check_range(key: str, value: Any, kind: Any, least: float, most: float) -> None:
    """Raise `Refused` for a number out of its range; None stands for a switch that is not set."""
    if value is None and DEFAULT_CFG_DICT[key] is None:
        return
    is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    number: Any = value
    if is_number and math.isfinite(number) and least <= number <= most and (number > least or key not in ABOVE):
        return
    numbers = {float: "a number", int: "a whole number"}[kind]
    bounds = f"{'above' if key in ABOVE else 'from'} {least}" + ("" if most == math.inf else f" to {most:g}")
    raise Refused(f"{key}={value!r}: expected {numbers} {bounds}")


def slow_backbone(trainer: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the backbone learn at the share `backbone_lr` of the learning rate."""
    student = getattr(unwrap_model(model), "student_model", unwrap_model(model))
    rows = count_backbone_rows(student)
    share = 1 if trainer.fork.trains_new_backbone else trainer.args.backbone_lr
    if share == 1 or not rows:
        return
    slow = {id(p) for m in student.model[:rows] for p in m.parameters()}
    for group in list(optimizer.param_groups):
        backbone = [p for p in group["params"] if id(p) in slow]
        group["params"] = [p for p in group["params"] if id(p) not in slow]
        optimizer.param_groups.append({**group, "params": backbone, "lr": group["lr"] * share})
    LOGGER.info(f"The backbone's {len(slow)} parameters learn at {share:g} of the learning rate")
    new = new_share(student)
    if new > MIN_SHARE and not trainer.resume:
        LOGGER.warning(
            f"{new:.0%} of the backbone starts from scratch, and backbone_lr={share:g} is for a pretrained one: "
            "backbone_lr=1 lets it learn like the rest."
        )


def check_that_switches_act(trainer: Any, model: Any) -> None:
    """Raise `Refused` where a trainer, a data set or a model of the user's own leaves out what a switch asks for."""
    transforms = getattr(getattr(trainer.train_loader.dataset, "transforms", None), "transforms", [])
    if has_official_augmentation(trainer.args) and not any(isinstance(t, OfficialAugmentation) for t in transforms):
        kind = type(trainer.train_loader.dataset).__name__
        raise Refused(f"photometric, zoom_out and iou_crop do nothing with the data set of this trainer, {kind}")
    if trainer.args.loss and not isinstance(getattr(model.init_criterion(), "vfl", None), losses.VarifocalLoss):
        raise Refused(f"loss={trainer.args.loss} does nothing with {type(model).__name__}, which has its own loss")


def spare_vectors(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give vectors of a backbone of timm, such as scales of layers, no weight decay, as timm's training does."""
    vectors = {id(p) for row in list_timm_layers(model) for p in row.parameters() if p.ndim < 2}
    for group in list(optimizer.param_groups) if vectors else ():
        found = [p for p in group["params"] if id(p) in vectors]
        if found and group["weight_decay"]:
            group["params"] = [p for p in group["params"] if id(p) not in vectors]
            optimizer.param_groups.append({**group, "params": found, "weight_decay": 0.0})


def decay_biases(trainer: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give biases the weight decay of the weights, those of norms excepted, as the training of RT-DETRv2 does."""
    if not trainer.args.bias_decay:
        return
    norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    chosen = {id(p) for name, p in model.named_parameters() if name.endswith("bias") and id(p) not in norms}
    decay = max(group["weight_decay"] for group in optimizer.param_groups)
    for group in list(optimizer.param_groups):
        biases = [p for p in group["params"] if id(p) in chosen]
        if biases and group["weight_decay"] != decay:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            optimizer.param_groups.append({**group, "params": biases, "weight_decay": decay})


def name_official_recipe(trainer: Any) -> None:
    """Say once which recipe is the official one, where a run of RT-DETR trains as Ultralytics does."""
    if RANK in {-1, 0} and not trainer.resume and not trainer.args.loss:
        LOGGER.info("This is Ultralytics' training of RT-DETR; cfg=rtdetr.yaml is the one of its authors")


def warn_of_start_from_scratch(trainer: Any) -> None:
    """Say what to expect of an RT-DETR that starts from scratch on few images, and what helps."""
    model, images = unwrap_model(trainer.model), len(trainer.train_loader.dataset)
    if RANK not in {-1, 0} or trainer.resume or trainer.fork.has_pretrained_weights or images >= FEW_IMAGES:
        return
    if not (isinstance(getattr(model, "model", None), nn.Sequential) and isinstance(model.model[-1], RTDETRDecoder)):
        return
    if getattr(model.model[0], "pretrained", False):  # a Timm row with weights
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
    if type(stem).__name__ == "Timm":
        return f"pretrained=timm/{stem.name}"
    if isinstance(stem, ResNetLayer) and stem.layer[0].conv.out_channels == 64:
        return f"pretrained=timm/resnet{101 if len(model.model[3].layer) == 23 else 50}"
    # With 256 channels its neck and decoder are those of the published models
    return "pretrained=rtdetr-l.pt" if model.model[-1].hidden_dim == 256 else None
