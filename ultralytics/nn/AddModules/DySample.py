"""DySample: upsampling at positions that are learned.

Paper: "Learning to Upsample by Learning to Sample", ICCV 2023, https://arxiv.org/abs/2308.15085

    y = grid_sample(x, G + shuffle(s(W x) + o)), s(t) = t / 4, or t / 2 * sigmoid(W' x) with a dynamic scope

G are the centres of the positions, o the offsets at which bilinear interpolation samples; for each group of channels.

Differences from the paper: only the form that is linear before the shuffle ("lp"), which the paper recommends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register

__all__ = ("DySample",)


@register(keeps_channels, yields=True)
class DySample(nn.Module):
    """Upsample a map; at first, it does what bilinear interpolation does, nearly.

    Args:
        dim: Channels of the input and the output.
        scale: Factor of height and width.
        groups: Groups of channels with positions of their own; must divide `dim`.
        dynamic_scope: Learn how far the offsets reach.

    Shapes:
        Input (B, dim, H, W), output (B, dim, scale H, scale W).

    Raises:
        ValueError: If `groups` does not divide `dim`.
    """

    def __init__(self, dim: int, scale: int = 2, groups: int = 4, dynamic_scope: bool = False):
        super().__init__()
        if dim % groups:
            raise ValueError(f"groups={groups} does not divide dim={dim}")
        self.scale, self.groups = scale, groups
        self.offset = nn.Conv2d(dim, 2 * groups * scale**2, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.constant_(self.offset.bias, 0)  # pyright: ignore[reportArgumentType]
        self.scope = nn.Conv2d(dim, 2 * groups * scale**2, 1, bias=False) if dynamic_scope else None
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)
        steps = (torch.arange(scale) - (scale - 1) / 2) / scale  # of the new positions within an old one
        x, y = steps.repeat(scale), steps.repeat_interleave(scale)
        start = torch.stack([x, y])[:, None].expand(2, groups, scale**2)
        self.register_buffer("start", start.reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to (B, dim, scale H, scale W)."""
        B, C, H, W = x.shape
        reach = 0.25 if self.scope is None else 0.5 * self.scope(x).sigmoid()
        offset = (self.offset(x) * reach + self.start).float()  # pixels; half precision would round positions
        offset = F.pixel_shuffle(offset, self.scale)  # (B, 2 groups, scale H, scale W)
        offset = offset.view(B, 2, self.groups, self.scale * H, self.scale * W)
        rows = torch.arange(H, device=x.device).repeat_interleave(self.scale) + 0.5
        columns = torch.arange(W, device=x.device).repeat_interleave(self.scale) + 0.5
        grid = torch.stack(
            [(offset[:, 0] + columns) * (2 / W) - 1, (offset[:, 1] + rows[:, None]) * (2 / H) - 1], dim=-1
        ).flatten(0, 1)  # (B groups, scale H, scale W, 2)
        parts = x.reshape(B * self.groups, C // self.groups, H, W).float()
        out = F.grid_sample(parts, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return out.to(x.dtype).view(B, C, self.scale * H, self.scale * W)
