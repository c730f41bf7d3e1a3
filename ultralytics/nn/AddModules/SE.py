"""SE: squeeze and excitation, an attention over channels.

Paper: "Squeeze-and-Excitation Networks", CVPR 2018, https://arxiv.org/abs/1709.01507

    y = x * sigmoid(W2 relu(W1 mean(x) + b1) + b2), the mean over the positions of the map

Differences from the paper: none. timm's `SEModule` with the same number of reduced channels computes the same.
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register

__all__ = ("SqueezeExcitation",)


@register(keeps_channels, yields=True)
class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate that is computed from the means of all.

    Args:
        dim: Channels of the input and the output.
        reduction: Channels over those between the two layers, of which there are at least 8.

    Shapes:
        Input and output (B, dim, H, W).
    """

    def __init__(self, dim: int, reduction: int = 16):
        super().__init__()
        reduced = max(8, dim // reduction)
        self.fc1 = nn.Conv2d(dim, reduced, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(reduced, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        return x * self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()  # gate (B, dim, 1, 1)
