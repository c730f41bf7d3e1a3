"""BiFPN's fusion: a weighted sum of maps.

Paper: "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020, https://arxiv.org/abs/1911.09070

    y = sum_i w_i x_i / (sum_i w_i + 1e-4), w = relu of learned weights

Differences from the paper: none. In a neck, it takes the place of `Concat` where the maps have the same channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import joins_maps, register

__all__ = ("WeightedSum",)

EPS = 1e-4


@register(joins_maps, yields=True)
class WeightedSum(nn.Module):
    """Sum maps of one shape with learned weights.

    Args:
        channels: Of the maps, which must be equal.

    Shapes:
        Input a list of (B, C, H, W), output (B, C, H, W).

    Raises:
        ValueError: For maps of other channels.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        if len(set(channels)) != 1:
            raise ValueError(f"the maps have {', '.join(map(str, channels))} channels; a sum needs the same of all")
        self.weight = nn.Parameter(torch.ones(len(channels)))

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Map a list of (B, C, H, W) to (B, C, H, W)."""
        weight = self.weight.relu()
        weight = weight / (weight.sum() + EPS)
        out = maps[0] * weight[0]
        for i, x in enumerate(maps[1:], 1):
            out = torch.addcmul(out, x, weight[i])
        return out
