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
from torch.autograd.function import once_differentiable

from ultralytics.nn.AddModules.compatibility import is_eager, no_autocast, warn_of_tutorial
from ultralytics.nn.AddModules.hgblock import HGBlockAttention
from ultralytics.nn.AddModules.registry import Layer, Row, hg_block, register
from ultralytics.nn.AddModules.tokens import project, project_in_parts, split_heads
from ultralytics.nn.modules.conv import Conv  # noqa: F401 - tutorial checkpoints name it by this module's path

__all__ = "BiLevelRoutingAttention_nchw", "HGBlock_Biformer"

HEAD_DIM = 32  # channels of a head, as in the paper, where a YAML row names no number of heads
GATHERED = {"cpu": 2**20, "cuda": 2**26}  # elements of routed keys in memory at a time: 4 MiB in fp32 on a CPU


class Regions:
    """Where the pixels of an (H, W) map are when they are ordered region by region.

    Args:
        H, W: Size of the map.
        region: Height and width of a region in pixels; the last regions may be ragged.
        device: Of the indices.

    Attributes:
        R, L: Regions, and places in each.
        pixels: (R * L,) pixel of each place; places of a ragged region that no pixel has repeat another's.
        places: (H * W,) place of each pixel.
        real: (R, L) mask of the places that a pixel has.
        ragged: Whether there are others.
    """

    def __init__(self, H: int, W: int, region: tuple[int, int], device: torch.device):
        i, j = region
        rows, columns = -(-H // i), -(-W // j)
        self.R, self.L, self.ragged = rows * columns, i * j, bool(H % i or W % j)
        y = torch.arange(rows * i, device=device)[:, None]
        x = torch.arange(columns * j, device=device)
        by_region = "(rows i) (columns j) -> (rows columns) (i j)"
        self.pixels = rearrange(y.clamp(max=H - 1) * W + x.clamp(max=W - 1), by_region, i=i, j=j).flatten()
        self.real = rearrange((y < H) & (x < W), by_region, i=i, j=j)
        places = y // i * (columns * i * j) + y % i * j + x // j * (i * j) + x % j
        self.places = places[:H, :W].flatten()

    def order(self, tokens: torch.Tensor) -> torch.Tensor:
        """Order (B, N, C) tokens by region: (B * R, L, C)."""
        return tokens.index_select(1, self.pixels).reshape(len(tokens) * self.R, self.L, tokens.shape[2])

    def restore(self, ordered: torch.Tensor) -> torch.Tensor:
        """Order (B * R, L, C) tokens as the map has them: (B, N, C)."""
        shape = ordered.shape[0] // self.R, self.R * self.L, ordered.shape[2]
        return ordered.reshape(shape).index_select(1, self.places)

    def route(self, q: torch.Tensor, k: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Choose for each region the `topk` regions whose mean key its mean query likes best.

        Args:
            q, k: (B * R, L, C) queries and keys, ordered by region.
            topk: Regions to choose, at most all there are.

        Returns:
            (B * R, topk) regions among those of the batch, and a (B * R, 1, 1, topk * L) mask of their pixels where
            some are ragged.
        """
        R, L, topk = self.R, self.L, min(topk, self.R)
        with torch.no_grad(), no_autocast(q):  # sums over channels leave the range of fp16
            share = self.real.float() / self.real.sum(dim=1, keepdim=True)  # of each real pixel in a region's mean
            means = (share.unsqueeze(1) @ t.detach().float().reshape(-1, R, L, t.shape[2]) for t in (q, k))
            q_mean, k_mean = (t.squeeze(2) for t in means)  # (B, R, C)
            chosen = (q_mean @ k_mean.transpose(1, 2)).topk(topk, dim=-1).indices  # (B, R, topk)
        mask = self.real[chosen].reshape(-1, 1, 1, topk * L) if self.ragged else None
        first = torch.arange(len(chosen), device=q.device).view(-1, 1, 1) * R
        return (chosen + first).reshape(-1, topk), mask


def gather(t: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Put the tokens of chosen regions together: from (B * R, L, C) and (n, topk) to (n, topk * L, C)."""
    routed = t.flatten(1).index_select(0, chosen.flatten())
    return routed.reshape(len(chosen), chosen.shape[1] * t.shape[1], t.shape[2])


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, heads: int, scale: float
) -> torch.Tensor:
    """Attention of (n, L, C) queries over (n, M, C) keys and values in a fused kernel; returns (n, L, C)."""
    q, k, v = (split_heads(t, heads) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)


class RoutedAttention(torch.autograd.Function):
    """Attention over routed regions for eager mode: a few regions at a time, of which nothing is kept.

    The keys and values of the routed regions are `topk` copies of all there are. They are gathered for as many regions
    as a core's cache holds, and gathered again in the backward.
    """

    @staticmethod
    def forward(
        ctx,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        regions: Regions,
        topk: int,
        heads: int,
        scale: float,
    ) -> torch.Tensor:
        """Map three times (B, N, C) tokens to (B, N, C)."""
        q_, k_, v_ = (regions.order(t) for t in (q, k, v))
        chosen, mask = regions.route(q_, k_, topk)
        ctx.save_for_backward(q, k, v, chosen)
        ctx.regions, ctx.mask, ctx.heads, ctx.scale = regions, mask, heads, scale
        out = torch.empty_like(q_)
        for part in RoutedAttention.parts(chosen, k_):
            routed = (gather(t, chosen[part]) for t in (k_, v_))
            out[part] = attend(q_[part], *routed, None if mask is None else mask[part], heads, scale)
        return regions.restore(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *qkv, chosen = ctx.saved_tensors
        regions, mask = ctx.regions, ctx.mask
        q_, k_, v_, grad_ = (regions.order(t) for t in (*qkv, grad))
        if regions.ragged:  # places that no pixel has gave nothing to the output
            grad_ *= regions.real.repeat(len(grad), 1).unsqueeze(2)
        dq, dk, dv = torch.empty_like(q_), torch.zeros_like(k_), torch.zeros_like(v_)
        for part in RoutedAttention.parts(chosen, k_):
            inputs = q_[part], gather(k_, chosen[part]), gather(v_, chosen[part])
            with torch.enable_grad():
                inputs = [t.detach().requires_grad_() for t in inputs]
                out = attend(*inputs, None if mask is None else mask[part], ctx.heads, ctx.scale)
            dq[part], *d_routed = torch.autograd.grad(out, inputs, grad_[part])
            for total, d in zip((dk, dv), d_routed):
                total.flatten(1).index_add_(0, chosen[part].flatten(), d.reshape(-1, total[0].numel()))
        return *(regions.restore(t) for t in (dq, dk, dv)), None, None, None, None

    @staticmethod
    def parts(chosen: torch.Tensor, k: torch.Tensor) -> list[slice]:
        """Cut the regions into parts whose gathered keys, and values, are small."""
        step = max(1, GATHERED.get(k.device.type, 2**26) // max(1, chosen.shape[1] * k.shape[1] * k.shape[2]))
        return [slice(i, i + step) for i in range(0, len(chosen), step)]


def regional_routing_attention_torch(*_: object) -> None:
    """Stand for the published function of this name, which tutorial checkpoints carry."""
    raise NotImplementedError(
        "call BiLevelRoutingAttention_nchw; this function is here for tutorial checkpoints to load"
    )


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
        regions = Regions(H, W, (max(1, H // self.n_win), max(1, W // self.n_win)), x.device)
        tokens = x.flatten(2).transpose(1, 2).contiguous()  # (N, H * W, dim)
        q, k, v = project_in_parts(self.qkv_linear, tokens, 3)
        attention = None
        if is_eager() and not ret_attn_mask:
            out = RoutedAttention.apply(q, k, v, regions, self.topk, self.num_heads, self.scale)
        else:
            out, attention = self._attend(*(regions.order(t) for t in (q, k, v)), regions, ret_attn_mask)
            out = regions.restore(out)
        if self.lepe is not None:
            out = out + self.lepe(v.transpose(1, 2).unflatten(2, (H, W))).flatten(2).transpose(1, 2)
        out = project(self.output_linear, out).transpose(1, 2).unflatten(2, (H, W))
        return (out, attention) if ret_attn_mask else out

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, regions: Regions, return_attention: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend with all routed keys and values gathered, for exports, compilers and the attention matrix."""
        chosen, mask = regions.route(q, k, self.topk)
        k, v = gather(k, chosen), gather(v, chosen)
        if not return_attention:
            return attend(q, k, v, mask, self.num_heads, self.scale), None
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))  # the fused kernel keeps the matrix to itself
        scores = (q * self.scale) @ k.transpose(-2, -1)
        attention = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=-1)
        out = (attention @ v).transpose(1, 2).flatten(2)
        return out, attention.unflatten(0, (-1, regions.R)).transpose(1, 2)  # (N, heads, R, L, topk * L)


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
