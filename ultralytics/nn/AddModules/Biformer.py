"""Bi-level routing attention.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, https://arxiv.org/abs/2303.08810
Origin: https://github.com/rayleizhu/BiFormer, in the NCHW form that the RT-DETR tutorials published.

The map is cut into regions of (H // n_win) x (W // n_win) pixels. Region means of Q and K give an affinity; each region
attends to the tokens of the `topk` regions of highest affinity, the same ones for every head:

    O = softmax(scale * Q K_routed^T) V_routed + LePE(V)

Differences from the published code: maps smaller than n_win, ragged last regions (padding is masked out) and topk
above the number of regions all work; routing runs in fp32; a YAML row reads `[c2, num_heads]`, with heads of 32
channels by default as in the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ultralytics.nn.AddModules.compatibility import no_autocast, warn_of_tutorial
from ultralytics.nn.AddModules.hgblock import HGBlockAttention
from ultralytics.nn.AddModules.registry import Layer, Row, hg_block, register
from ultralytics.nn.modules.conv import Conv  # noqa: F401 - tutorial checkpoints name it by this module's path

__all__ = "BiLevelRoutingAttention_nchw", "HGBlock_Biformer"

HEAD_DIM = 32  # channels of a head, as in the paper, where a YAML row names no number of heads


REGIONS = "b (heads d) (rows i) (columns j)"  # a map whose sides are multiples of the region's
TOKENS = "b heads (rows columns) (i j) d"  # the same, region by region


def route(q: torch.Tensor, k: torch.Tensor, region: tuple[int, int], topk: int) -> torch.Tensor:
    """Choose for each region the `topk` regions whose mean key its mean query likes best.

    Args:
        q, k: (B, C, H, W) maps; a ragged last region is averaged over its real pixels.
        region: Height and width of a region in pixels.
        topk: Regions to choose, at most all there are.

    Returns:
        (B, regions, topk) indices of regions in row-major order.
    """
    with torch.no_grad(), no_autocast(q):  # sums over channels leave the range of fp16
        pool = {"kernel_size": region, "stride": region, "ceil_mode": True, "count_include_pad": False}
        q_mean = F.avg_pool2d(q.detach().float(), **pool).flatten(2)  # (B, C, R)
        k_mean = F.avg_pool2d(k.detach().float(), **pool).flatten(2)  # (B, C, R)
        affinity = q_mean.transpose(1, 2) @ k_mean  # (B, R, R)
        return affinity.topk(min(topk, affinity.shape[-1]), dim=-1).indices


def regional_routing_attention_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    routes: torch.Tensor,
    region: tuple[int, int],
    heads: int,
    return_attention: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend from each region to the tokens of the regions that it is routed to.

    Args:
        q, k, v: (B, C, H, W) maps.
        scale: Factor of the scores before the softmax.
        routes: (B, regions, topk) indices from `route`.
        region: Height and width of a region in pixels.
        heads: Attention heads; must divide C.
        return_attention: Also return the attention matrix, which is otherwise never materialised.

    Returns:
        The attended (B, C, H, W) map, and the (B, heads, regions, pixels, topk * pixels) attention or None.
    """
    B, _, H, W = q.shape
    pad = (0, -W % region[1], 0, -H % region[0])
    ragged = any(pad)
    if ragged:
        q, k, v = (F.pad(t, pad) for t in (q, k, v))
    cut = {"heads": heads, "i": region[0], "j": region[1]}
    q_, k_, v_ = (rearrange(t, f"{REGIONS} -> {TOKENS}", **cut) for t in (q, k, v))  # (B, heads, R, L, d)
    R, L, d = q_.shape[2:]

    batch = torch.arange(B, device=q.device).view(B, 1, 1, 1)
    head = torch.arange(heads, device=q.device).view(1, heads, 1, 1)
    M = routes.shape[-1] * L
    k_ = k_[batch, head, routes[:, None]].reshape(B * heads, R, M, d)
    v_ = v_[batch, head, routes[:, None]].reshape(B * heads, R, M, d)
    q_ = q_.reshape(B * heads, R, L, d)
    mask = None
    if ragged:
        real = F.pad(torch.ones(H, W, dtype=torch.bool, device=q.device), pad)
        real = rearrange(real, "(rows i) (columns j) -> (rows columns) (i j)", i=region[0], j=region[1])  # (R, L)
        mask = real[routes].reshape(B, 1, R, 1, M).expand(B, heads, R, L, M).reshape(B * heads, R, L, M)

    attention = None
    if return_attention:  # the fused kernel keeps the matrix to itself
        scores = (q_ * scale) @ k_.transpose(-2, -1)
        attention = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=-1)
        out = attention @ v_
        attention = attention.reshape(B, heads, R, L, M)
    else:
        out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask, scale=scale)
    out = out.reshape(B, heads, R, L, d)
    out = rearrange(out, f"{TOKENS} -> {REGIONS}", rows=q.shape[2] // region[0], i=region[0], j=region[1])
    return (out[:, :, :H, :W] if ragged else out), attention


def attention_row(row: Row) -> Layer:
    """Read `[c2, num_heads, n_win, qk_scale, topk, ...]`; c2 repeats the incoming channels, the rest is optional."""
    c1 = row.c1
    if row.args and row.args[0] != c1:
        raise row.error(f"c2={row.args[0]} where {c1} channels come in", f"[{c1}]: the layer keeps its channels")
    heads = row.args[1:2] or [next(h for h in range(max(1, c1 // HEAD_DIM), 0, -1) if c1 % h == 0)]
    return Layer(args=[c1, *heads, *row.args[2:]], c2=c1, printed=[c1, *row.args], n=row.n)


@register(attention_row)
class BiLevelRoutingAttention_nchw(nn.Module):
    """Bi-level routing attention over a feature map.

    Args:
        dim: Channels of the input and the output.
        num_heads: Attention heads; must divide `dim`.
        n_win: Regions along each side; a region is (H // n_win) x (W // n_win) pixels and at least one.
        qk_scale: Factor of the scores; dim ** -0.5 by default, whatever the heads.
        topk: Regions that each region attends to; all of them where there are fewer.
        side_dwconv: Odd kernel size of the local enhancement, a depth-wise convolution of V; 0 for none.
        auto_pad: Accepted for compatibility with the published signature; maps of any size work.
        attn_backend: Only "torch".

    Shapes:
        Input and output: (N, dim, H, W), any H and W.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or for an unknown `attn_backend`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        n_win: int = 7,
        qk_scale: float | None = None,
        topk: int = 4,
        side_dwconv: int = 3,
        auto_pad: bool = False,
        attn_backend: str = "torch",
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        if n_win < 1 or topk < 1:
            raise ValueError(f"n_win={n_win} and topk={topk} must be at least 1")
        if side_dwconv and side_dwconv % 2 == 0:
            raise ValueError(f"side_dwconv={side_dwconv} must be odd, or 0 for none")
        if attn_backend != "torch":
            raise ValueError(f"attn_backend={attn_backend!r} is unknown, choose 'torch'")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = qk_scale or dim**-0.5
        self.topk = topk
        self.n_win = n_win
        self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim) if side_dwconv else None
        self.qkv_linear = nn.Conv2d(dim, 3 * dim, kernel_size=1)
        self.output_linear = nn.Conv2d(dim, dim, kernel_size=1)

    def __setstate__(self, state: dict) -> None:
        if (
            state.pop("attn_fn", None) is not None
        ):  # tutorial checkpoints carry the function that this class calls itself
            if state["head_dim"] == 1:
                warn_of_tutorial(f"{state['num_heads']} heads of one channel")
        super().__setstate__(state)

    def forward(self, x: torch.Tensor, ret_attn_mask: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend over (N, dim, H, W).

        Args:
            x: The feature map.
            ret_attn_mask: Also return the attention, (N, heads, regions, pixels, topk * pixels).
        """
        H, W = x.shape[2:]
        region = (max(1, H // self.n_win), max(1, W // self.n_win))
        q, k, v = self.qkv_linear(x).chunk(3, dim=1)  # (N, dim, H, W) each
        routes = route(q, k, region, self.topk)
        out, attention = regional_routing_attention_torch(
            q, k, v, self.scale, routes, region, self.num_heads, ret_attn_mask
        )
        if self.lepe is not None:
            out = out + self.lepe(v)
        out = self.output_linear(out)
        return (out, attention) if ret_attn_mask else out


@register(hg_block)
class HGBlock_Biformer(HGBlockAttention):
    """Upstream's `HGBlock` with bi-level routing attention of one head after the excitation convolution.

    Shapes:
        Input (B, c1, H, W), output (B, c2, H, W).
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
        self.cv = BiLevelRoutingAttention_nchw(c2)
