"""Coordinate attention: gates for rows and for columns, which keep the position along the other axis.

Paper: "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021, https://arxiv.org/abs/2103.02907

    f_h, f_w = hswish(norm(W [mean over W of x; mean over H of x])), split at H
    y = x * sigmoid(W_h f_h) * sigmoid(W_w f_w)

Differences from the paper: none. timm's `CoordAttn` with as many reduced channels and with biases computes the same.
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register
from ultralytics.utils.torch_utils import fuse_conv_and_bn

__all__ = ("CoordinateAttention",)


@register(keeps_channels, yields=True)
class CoordinateAttention(nn.Module):
    """Scale each position by a gate of its row and one of its column.

    Args:
        dim: Channels of the input and the output.
        reduction: Channels over those between the layers, of which there are at least 8.

    Shapes:
        Input and output (B, dim, H, W).
    """

    def __init__(self, dim: int, reduction: int = 32):
        super().__init__()
        reduced = max(8, dim // reduction)
        self.conv = nn.Conv2d(dim, reduced, 1)
        self.norm = nn.BatchNorm2d(reduced)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(reduced, dim, 1)
        self.conv_w = nn.Conv2d(reduced, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        rows = x.mean(3, keepdim=True)  # (B, dim, H, 1)
        columns = x.mean(2, keepdim=True).transpose(2, 3)  # (B, dim, W, 1)
        both = self.act(self.norm(self.conv(torch.cat([rows, columns], dim=2))))  # (B, reduced, H + W, 1)
        rows, columns = both.split([x.shape[2], x.shape[3]], dim=2)
        return x * self.conv_h(rows).sigmoid() * self.conv_w(columns.transpose(2, 3)).sigmoid()

    def fuse(self) -> None:
        """Fold the batch norm into the convolution before it, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_and_bn(self.conv, self.norm), nn.Identity()
