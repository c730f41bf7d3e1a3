"""Train a compiled RT-DETR with denoising.

With `compile=`, upstream computes the model's outputs from the images alone, and the loss afterwards: the decoder never
sees the targets, and denoising is left out. Here the head is not compiled, and gets the targets of the batch.
"""

from __future__ import annotations

from typing import Any

import torch

from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.fork.rtdetr import find_head, unwrap_model


class HeadWithTargets(InstanceMixin):
    """Put in front of the class of an RT-DETR's head while a compiled model is trained."""

    targets: dict | None = None  # of the batch

    def forward(self, x: list[torch.Tensor], batch: dict | None = None) -> Any:
        """Run the head on maps of shape (B, C, H, W), in training with the targets of their images."""
        targets: Any = self.targets if self.training and batch is None else batch  # pyright: ignore
        return super().forward(x, targets)  # pyright: ignore[reportAttributeAccessIssue] - of the head


def give_targets(trainer: Any) -> None:
    """Let the head of a trainer's compiled model get the targets of each batch."""
    found = find_head(unwrap_model(trainer.model)) if getattr(trainer.args, "compile", False) else None
    if found is None:
        return
    head, preprocess = found[1], trainer.preprocess_batch
    if not hasattr(HeadWithTargets.forward, "_torchdynamo_disable"):  # here, as it imports torch's compiler
        HeadWithTargets.forward = torch.compiler.disable(HeadWithTargets.forward)
    mix_into(head, HeadWithTargets)

    def preprocess_batch(batch: dict) -> dict:
        batch = preprocess(batch)
        vars(head)["targets"] = make_targets(batch)
        return batch

    trainer.preprocess_batch = preprocess_batch


def make_targets(batch: dict) -> dict:
    """Give a batch's labels in the form in which the decoder takes them.

    Args:
        batch: With `img` (B, 3, H, W), `cls` (N, 1), `bboxes` (N, 4) and `batch_idx` (N,).

    Returns:
        `cls` (N,), `bboxes` (N, 4), `batch_idx` (N,), and `gt_groups`, the number of objects of each image.
    """
    device, images = batch["img"].device, batch["batch_idx"].to(batch["img"].device, torch.long).view(-1)
    return {
        "cls": batch["cls"].to(device, torch.long).view(-1),
        "bboxes": batch["bboxes"].to(device),
        "batch_idx": images,
        "gt_groups": torch.bincount(images, minlength=len(batch["img"])).tolist(),
    }
