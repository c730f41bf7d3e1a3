"""EMA: efficient multi-scale attention with learning across space, in groups of channels.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", ICASSP 2023,
https://arxiv.org/abs/2305.13563

For each group of channels, g:

    a = groupnorm(g * sigmoid(h) * sigmoid(w)), [h; w] = W1 [mean over W of g; mean over H of g]
    b = conv3x3(g)
    y = g * sigmoid(softmax(mean(a)) b + softmax(mean(b)) a)

with the means over the positions and the softmax over the channels of a group, so that each product is one map.

Differences from the paper: none.
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register

__all__ = ("EMA",)


@register(keeps_channels, yields=True)
class EMA(nn.Module):
    """Scale each position of a group of channels by one gate.

    Args:
        dim: Channels of the input and the output.
        factor: Groups; must divide `dim`.

    Shapes:
        Input and output (B, dim, H, W).

    Raises:
        ValueError: If `factor` does not divide `dim`.
    """

    def __init__(self, dim: int, factor: int = 8):
        super().__init__()
        if dim % factor:
            raise ValueError(f"factor={factor} does not divide dim={dim}")
        self.groups = factor
        width = dim // factor
        self.gn = nn.GroupNorm(width, width)
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        B, C, H, W = x.shape
        g = x.reshape(B * self.groups, C // self.groups, H, W)
        ends = torch.cat([g.mean(3, keepdim=True), g.mean(2, keepdim=True).transpose(2, 3)], dim=2)
        rows, columns = self.conv1x1(ends).sigmoid().split([H, W], dim=2)
        a, b = self.gn(g * rows * columns.transpose(2, 3)), self.conv3x3(g)
        shares = [m.mean((2, 3)).softmax(1)[:, None] for m in (a, b)]  # (B groups, 1, C / groups)
        gate = shares[0] @ b.flatten(2) + shares[1] @ a.flatten(2)  # (B groups, 1, H W)
        return (g * gate.view(-1, 1, H, W).sigmoid()).view(B, C, H, W)
