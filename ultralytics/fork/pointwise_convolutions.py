"""Compute convolutions of one pixel by oneDNN's kernels on one thread, too, where they are twice as fast.

Torch takes a matrix product of its BLAS there. A kernel of one pixel is the same with any dilation, and with one torch
takes oneDNN: see findings/torch-pointwise-convolution-on-one-thread.sh. Upstream runs on one thread on two cores. Half
of an RT-DETR's convolutions are of one pixel. Results differ by rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.fork.instance_mixin import InstanceMixin, mix_into

DILATION = 2, 2


class OneThreadConv(InstanceMixin):
    """Put in front of the class of a convolution of one pixel."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve a map of shape (B, C, H, W)."""
        conv: Any = self
        if not runs_on_one_thread(x):
            return super()._conv_forward(x, weight, bias)  # pyright: ignore[reportAttributeAccessIssue] - torch's
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, DILATION, conv.groups)


def runs_on_one_thread(x: torch.Tensor) -> bool:
    """Whether an operation on a tensor runs on one thread of a processor, as it is called."""
    is_recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not is_recorded and torch.get_num_threads() == 1


def use_onednn_on_one_thread(model: nn.Module, is_used: bool = True) -> None:
    """Let a model's convolutions of one pixel take oneDNN's kernels on one thread, or no longer."""
    for m in model.modules():
        if not is_used and isinstance(m, OneThreadConv):
            m.__class__ = nn.Conv2d
        elif is_used and type(m) is nn.Conv2d and m.kernel_size == (1, 1) and m.padding_mode == "zeros":
            mix_into(m, OneThreadConv)
