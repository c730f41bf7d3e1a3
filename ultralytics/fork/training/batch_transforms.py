"""What the official trainings do to a whole batch: mixup, and one of a list of sizes."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F

from ultralytics.fork.data.official_augmentation import has_official_augmentation
from ultralytics.fork.distributed.elastic_launch import broadcast_result
from ultralytics.fork.distributed.global_batch import shared_step
from ultralytics.fork.training.augmentation_epochs import plan_epoch

MIXUP_SHARES = 0.45, 0.55  # of the image itself, as in DEIM


def list_sizes(imgsz: int, multi_scale: float, repeat: int, stride: int) -> list[int]:
    """List the sides of a batch's images: in steps of the stride around `imgsz`, which comes `repeat` times."""
    lowest, highest = (int(imgsz * (1 + sign * multi_scale) / stride) * stride for sign in (-1, 1))
    below = range(max(lowest, stride), imgsz, stride)
    above = range(highest, imgsz, -stride)
    return [*below, *[imgsz] * repeat, *above]


def mix_batch(batch: dict, share: float) -> dict:
    """Mix each image of a batch with the one before it, and give it the objects of both.

    Args:
        batch: With `img` (B, C, H, W), `cls` (N, 1), `bboxes` (N, 4) and `batch_idx` (N,).
        share: Of the image itself in the mixture.
    """
    images = batch["img"]
    batch["img"] = images.roll(1, 0).mul_(1 - share).add_(images, alpha=share)
    before = (batch["batch_idx"] + 1) % len(images)
    batch["batch_idx"] = torch.cat([batch["batch_idx"], before])
    for key in ("cls", "bboxes"):
        batch[key] = batch[key].repeat(2, 1)
    return batch


def transform_batches(trainer: Any) -> None:
    """Let the trainer mix and resize each batch where its arguments say so, in place of upstream's resizing."""
    args, preprocess = trainer.args, trainer.preprocess_batch
    sizes = []
    if args.base_size_repeat:
        sizes = list_sizes(args.imgsz, args.multi_scale, args.base_size_repeat, trainer.stride)
    mixup = args.mixup if has_official_augmentation(args) else 0
    if not sizes and not mixup:
        return

    def preprocess_batch(batch: dict) -> dict:
        multi_scale = args.multi_scale
        if sizes:
            args.multi_scale = 0.0
        try:
            batch = preprocess(batch)
        finally:
            args.multi_scale = multi_scale
        plan = plan_epoch(args, trainer.epoch, trainer.epochs)
        if mixup and plan.mixes and len(batch["img"]) > 1 and random.random() < mixup:
            batch = mix_batch(batch, random.uniform(*MIXUP_SHARES))
        if sizes and plan.resizes:
            size = broadcast_result(choose) if shared_step.is_active else choose()
            if size != batch["img"].shape[-1]:
                batch["img"] = F.interpolate(batch["img"], size=(size, size))  # by the nearest, as officially
        return batch

    def choose() -> int:
        return random.choice(sizes)

    trainer.preprocess_batch = preprocess_batch
