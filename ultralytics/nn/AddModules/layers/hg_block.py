"""Upstream's `HGBlock` with an attention module in it, the base of the tutorials' HGBlock variants."""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.modules.block import HGBlock

__all__ = ()


class HGBlockAttention(HGBlock):
    """`HGBlock` whose subclass sets `cv`, an attention that keeps the shape, between excitation and shortcut."""

    cv: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, c1, H, W) to (B, c2, H, W)."""
        features = [x]
        for block in self.m:
            features.append(block(features[-1]))
        out = self.cv(self.ec(self.sc(torch.cat(features, dim=1))))
        return out + x if self.add else out
