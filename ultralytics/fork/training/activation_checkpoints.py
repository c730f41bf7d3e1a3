"""Keep no activations of the backbone and the encoder for the backward pass, which computes them again.

Each block is a segment of torch's activation checkpointing (https://arxiv.org/abs/1604.06174). A training step needs
less memory and more time; loss and gradients stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ultralytics.fork.errors import Refused
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.fork.layer_numbers import list_indices
from ultralytics.fork.rtdetr import find_head


class CheckpointedBlock(InstanceMixin):
    """Put in front of the class of a block whose activations are computed again."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block; in training, keep its input only."""
        run: Any = super().forward  # pyright: ignore[reportAttributeAccessIssue] - of the block
        if not (self.training and torch.is_grad_enabled()):  # pyright: ignore[reportAttributeAccessIssue]
            return run(*args, **kwargs)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), keep_statistics(self)

        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def keep_statistics(block: Any) -> Iterator[None]:
    """Let the batch norms of a block that runs again update copies of their running statistics, and forget them."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [dict(m._buffers) for m in norms]
    for m in norms:  # torch saves them for the backward pass, as it did the first time
        m._buffers.update({key: b.clone() for key, b in m._buffers.items() if b is not None})
    try:
        yield
    finally:
        for m, buffers in zip(norms, kept):
            m._buffers.update(buffers)


def checkpoint_activations(model: Any) -> None:
    """Checkpoint the blocks in front of the head of an RT-DETR.

    Raises:
        Refused: If the model is no RT-DETR.
    """
    if not find_head(model) or not isinstance(getattr(model, "model", None), nn.Sequential):
        raise Refused("checkpoint_activations=True is for RT-DETR, whose rows in front of the head are checkpointed")
    for m, indices in zip(model.model[:-1], list_indices(model.model)):
        for block in list_blocks(m, is_backbone=len(indices) > 1):
            mix_into(block, CheckpointedBlock)


def list_blocks(m: nn.Module, is_backbone: bool = False) -> Iterator[nn.Module]:
    """List the blocks of a layer: the repeated ones, those of a backbone that is one layer, or the layer itself."""
    if isinstance(m, (nn.Sequential, nn.ModuleList)) or is_backbone:
        for child in m.children():
            yield from list_blocks(child)
    elif any(True for _ in m.parameters()):
        yield m
