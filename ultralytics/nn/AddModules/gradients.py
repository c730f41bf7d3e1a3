"""Right gradients on a CPU, where torch's are wrong for one image.

The backward of torch's batch norm (seen in 2.15) reads the gradient of one image in another order where it lies in
memory channels last and the norm's input does not, without an error. Such gradients come from whatever makes a map into
tokens: RT-DETR's decoder and its attention layers. With two images or more they are right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ultralytics.nn.AddModules.compatibility import bare

__all__ = ()


def laid_out(setup_train: Callable) -> Callable:
    """Wrap the trainer's `_setup_train`: on a CPU, batch norms get gradients that lie as their outputs do."""

    @functools.wraps(setup_train)
    def setup(self: Any, *args: Any) -> None:
        setup_train(self, *args)
        if self.device.type == "cpu":
            lay_out(bare(self.model))

    return setup


def lay_out(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Let each batch norm of a model get gradients that lie in memory as its output does; give the hooks."""
    return [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def hook(m: nn.Module, _: tuple, out: torch.Tensor) -> None:
    """Let the gradient of one image's map lie as the map does."""
    if len(out) == 1 and out.requires_grad and out.is_contiguous():
        out.register_hook(torch.Tensor.contiguous)
