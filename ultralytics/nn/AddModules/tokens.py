"""Feature maps as tokens, (B, N, C): heads, and 1x1 convolutions as one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ()


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Part the heads: (B, N, C) to (B, heads, N, d), a view."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def is_hooked(layer: nn.Module) -> bool:
    """Whether a layer must be called as a module: hooks, such as profilers', want to see it, or it was replaced."""
    return type(layer) is not nn.Conv2d or bool(layer._forward_hooks or layer._forward_pre_hooks)


def pointwise(layer: nn.Conv2d, tokens: torch.Tensor) -> torch.Tensor:
    """Apply a 1x1 convolution to (B, N, C) tokens; returns (B, N, C')."""
    if is_hooked(layer):
        return layer(tokens.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)
