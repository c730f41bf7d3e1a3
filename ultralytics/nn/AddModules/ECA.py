"""ECA: efficient channel attention, by a convolution over neighbouring channels.

Paper: "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", CVPR 2020,
https://arxiv.org/abs/1910.03151

    y = x * sigmoid(conv_k(mean(x))), k the odd number that |log2(C) / gamma + b / gamma| is rounded up to

Differences from the paper: none. timm's `EcaModule` computes the same.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register

__all__ = ("ECA",)


@register(keeps_channels, yields=True)
class ECA(nn.Module):
    """Scale each channel by a gate that is computed from the means of its neighbours.

    Args:
        dim: Channels of the input and the output.
        gamma, b: Of the kernel's size; see above.

    Shapes:
        Input and output (B, dim, H, W).
    """

    def __init__(self, dim: int, gamma: float = 2, b: float = 1):
        super().__init__()
        size = int(abs(math.log2(dim) + b) / gamma)
        size = max(3, size if size % 2 else size + 1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        means = x.mean((2, 3))[:, None]  # (B, 1, dim)
        return x * self.conv(means).sigmoid()[:, 0, :, None, None]
