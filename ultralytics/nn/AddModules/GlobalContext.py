"""Global context: what all positions have to say, added to each.

Paper: "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV workshops 2019,
https://arxiv.org/abs/1904.11492

    c = sum_j softmax_j(W_k x_j) x_j
    y = x + W2 relu(layernorm(W1 c))

Differences from the paper: none. timm's `GlobalContext` with `fuse_add` computes the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register

__all__ = ("GlobalContext",)


@register(keeps_channels, yields=True)
class GlobalContext(nn.Module):
    """Add a vector that is pooled from all positions by attention.

    Args:
        dim: Channels of the input and the output.
        reduction: Channels over those between the two layers, of which there are at least 8.

    Shapes:
        Input and output (B, dim, H, W).
    """

    def __init__(self, dim: int, reduction: int = 16):
        super().__init__()
        reduced = max(8, dim // reduction)
        self.conv_attn = nn.Conv2d(dim, 1, 1)
        self.fc1 = nn.Conv2d(dim, reduced, 1)
        self.norm = nn.LayerNorm(reduced)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(reduced, dim, 1)
        nn.init.zeros_(self.fc2.weight)  # at first, nothing is added
        nn.init.constant_(self.fc2.bias, 0)  # pyright: ignore[reportArgumentType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        attention = self.conv_attn(x).flatten(1).softmax(1)  # (B, H W)
        context = torch.einsum("bcn,bn->bc", x.flatten(2), attention)
        hidden = self.norm(F.linear(context, self.fc1.weight.flatten(1), self.fc1.bias))
        return x + self.fc2(self.act(hidden).view(x.shape[0], -1, 1, 1))
