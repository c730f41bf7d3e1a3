"""Triplet attention: three gates, each from a view of the map along one of its axes.

Paper: "Rotate to Attend: Convolutional Triplet Attention Module", WACV 2021, https://arxiv.org/abs/2010.03045

    y = (x * g(x over C) + x * g(x over H) + x * g(x over W)) / 3
    g(x over an axis) = sigmoid(norm(conv_k([max; mean] of x over the axis)))

Differences from the paper: none. The map is read for each axis where it lies, and is not rotated.
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register
from ultralytics.utils.torch_utils import fuse_conv_and_bn

__all__ = ("TripletAttention",)


class AxisGate(nn.Module):
    """Gate of the two axes that remain, from the maximum and the mean over the third one.

    Args:
        kernel_size: Of the convolution.
        axis: 1 for channels, 2 for rows, 3 for columns.
    """

    def __init__(self, kernel_size: int, axis: int):
        super().__init__()
        self.axis = axis
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to gates with 1 in place of the axis."""
        pooled = torch.stack([x.amax(self.axis), x.mean(self.axis)], dim=1)  # (B, 2, the axes that remain)
        if self.axis == 2:  # the paper's view over H has W before C
            pooled = pooled.transpose(2, 3)
        gate = self.norm(self.conv(pooled)).sigmoid()[:, 0]
        return (gate.transpose(1, 2) if self.axis == 2 else gate).unsqueeze(self.axis)

    def fuse(self) -> None:
        """Fold the batch norm into the convolution before it, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_and_bn(self.conv, self.norm), nn.Identity()


@register(keeps_channels, yields=True)
class TripletAttention(nn.Module):
    """Scale each value by the mean of three gates.

    Args:
        kernel_size: Of each gate's convolution; odd.

    Shapes:
        Input and output (B, C, H, W).
    """

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        self.over_channels = AxisGate(kernel_size, 1)
        self.over_rows = AxisGate(kernel_size, 2)
        self.over_columns = AxisGate(kernel_size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to the same."""
        return x * ((self.over_channels(x) + self.over_rows(x) + self.over_columns(x)) / 3)
