"""Focused linear attention.

Paper: "FLatten Transformer: Vision Transformer using Focused Linear Attention", ICCV 2023,
https://arxiv.org/abs/2308.00442
Origin: https://github.com/LeapLabTHU/FLatten-Transformer, in the form that the RT-DETR tutorials published.

For each head, with phi(x) = f_p((relu(x) + 1e-6) / softplus(scale)) and f_p(x) = x^p * |x| / |x^p|,

    O = phi(Q) (phi(K)^T V) / (phi(Q) . sum_j phi(K_j) + 1e-6) + DWC(V)

Differences from the published code: any height and width; `sr_ratio` > 1 works (V is resized to the query grid); the
focusing map and the normaliser run in fp32 whatever the autocast state, so large activations stay finite.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.compatibility import no_autocast
from ultralytics.nn.AddModules.hgblock import HGBlockAttention
from ultralytics.nn.AddModules.registry import hg_block, keeps_channels, register
from ultralytics.nn.modules.conv import Conv  # noqa: F401 - tutorial checkpoints name it by this module's path

__all__ = "FocusedLinearAttention", "HGBlock_FLA"

EPS = 1e-6


def focus(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Sharpen the direction of positive feature vectors and keep their norm: x^p * |x| / |x^p| over the last axis."""
    # The map scales with its input: powers of values of at most 1 neither overflow nor all underflow
    unit = x / x.detach().amax(dim=-1, keepdim=True)
    powered = unit * unit * unit if factor == 3 else unit.pow(factor)
    return powered * (x.norm(dim=-1, keepdim=True) / powered.norm(dim=-1, keepdim=True))


@register(keeps_channels)
class FocusedLinearAttention(nn.Module):
    """Focused linear attention over the positions of a feature map.

    Args:
        dim: Channels of the input and the output.
        num_patches: Accepted for compatibility with the published signature, unused.
        num_heads: Attention heads; must divide `dim`.
        qkv_bias: Bias of the query, key and value projections.
        qk_scale: Accepted for compatibility with the published signature, unused.
        attn_drop: Accepted for compatibility, unused: linear attention has no attention matrix to drop from.
        proj_drop: Dropout after the output projection.
        sr_ratio: Stride by which keys and values are reduced before attention; 1 for none.
        focusing_factor: The exponent p of the focusing map.
        kernel_size: Odd kernel size of the depth-wise convolution of V.

    Shapes:
        Input and output: (B, dim, H, W), any H and W of at least `sr_ratio`.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `kernel_size` is even, `sr_ratio` is below 1, or a map is
            smaller than it.
    """

    def __init__(
        self,
        dim: int,
        num_patches: int = 64,
        num_heads: int = 8,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        sr_ratio: int = 1,
        focusing_factor: float = 3.0,
        kernel_size: int = 5,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd and positive")
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio={sr_ratio} must be at least 1")
        self.dim = dim
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.focusing_factor = focusing_factor

        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)
        head_dim = dim // num_heads
        self.dwc = nn.Conv2d(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attended map of the same shape."""
        B, C, H, W = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        q = self.q(tokens)
        h, w = H, W
        if self.sr_ratio > 1:
            if min(H, W) < self.sr_ratio:
                raise ValueError(f"a {H} x {W} map is smaller than sr_ratio={self.sr_ratio}")
            reduced = self.sr(x)
            h, w = reduced.shape[2:]
            tokens = self.norm(reduced.flatten(2).transpose(1, 2))  # (B, M, C)
        k, v = self.kv(tokens).chunk(2, dim=-1)  # (B, M, C) each

        with no_autocast(x):  # cubes and sums over tokens leave the range of fp16
            out = self._attend(q.float(), k.float(), v.float())
        grid = v.transpose(1, 2).reshape(B * self.num_heads, C // self.num_heads, h, w)
        if self.sr_ratio > 1:
            grid = F.interpolate(grid, size=(H, W), mode="bilinear", align_corners=False)
        local = self.dwc(grid).reshape(B, C, H * W).transpose(1, 2)  # the same filter for every head
        return self.proj_drop(self.proj(out.to(v.dtype) + local)).transpose(1, 2).reshape(B, C, H, W)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Linear attention of (B, N, C) queries over (B, M, C) keys and values, heads apart; returns (B, N, C)."""
        B, N, C = q.shape
        heads, M = self.num_heads, k.shape[1]
        inverse_scale = F.softplus(self.scale.float()).reciprocal()
        q = focus((F.relu(q) + EPS) * inverse_scale, self.focusing_factor)  # over all channels: heads split afterwards
        k = focus((F.relu(k) + EPS) * inverse_scale, self.focusing_factor)

        q = q.reshape(B, N, heads, C // heads).transpose(1, 2)  # (B, heads, N, d)
        k = k.reshape(B, M, heads, C // heads).transpose(1, 2)  # (B, heads, M, d)
        v = v.reshape(B, M, heads, C // heads).transpose(1, 2)  # (B, heads, M, d)
        norm = q @ k.sum(dim=2).unsqueeze(-1) + EPS  # (B, heads, N, 1)
        out = q @ (k.transpose(-2, -1) @ v) / norm  # (B, heads, N, d)
        return out.transpose(1, 2).reshape(B, N, C)


@register(hg_block)
class HGBlock_FLA(HGBlockAttention):
    """Upstream's `HGBlock` with focused linear attention after the excitation convolution.

    Shapes:
        Input (B, c1, H, W), output (B, c2, H, W).

    Raises:
        ValueError: If c2 is not a multiple of the 8 attention heads.
    """

    def __init__(
        self,
        c1: int,
        cm: int,
        c2: int,
        k: int = 3,
        n: int = 6,
        lightconv: bool = False,
        shortcut: bool = False,
        act: nn.Module = nn.ReLU(),  # one instance for all blocks: the published `layers` totals count it once
    ):
        super().__init__(c1, cm, c2, k, n, lightconv, shortcut, act)
        self.cv = FocusedLinearAttention(c2)
