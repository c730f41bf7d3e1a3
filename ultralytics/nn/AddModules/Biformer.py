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

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ultralytics.nn.AddModules.layers.execution_mode import is_eager, map_size, no_autocast
from ultralytics.nn.AddModules.layers.hg_block import HGBlockAttention
from ultralytics.nn.AddModules.layers.tokens import project, split_heads
from ultralytics.nn.AddModules.layers.tutorial_warning import warn_of_tutorial_module
from ultralytics.nn.AddModules.registry import Layer, Row, hg_block, register
from ultralytics.nn.modules.conv import Conv  # noqa: F401 - tutorial checkpoints name it by this module's path

__all__ = "BiLevelRoutingAttention_nchw", "HGBlock_Biformer"

HEAD_DIM = 32  # channels of a head, as in the paper, where a YAML row names no number of heads
GATHERED = {"cpu": 2**19}  # elements of routed keys and values at a time: 2 MiB in fp32 on a CPU
SCORES = 2**20  # elements of scores that are at hand at a time where each channel is a head


class Regions:
    """The regions of an (H, W) map, and its pixels ordered region by region.

    Args:
        H, W: Size of the map; tensors where any size is traced.
        region: Height and width of a region in pixels; the last regions may be ragged.
        device: Of the mask.

    Attributes:
        R, L: Regions, and places in each.
        real: (R, L) mask of the places that a pixel has.
        ragged: Whether there are others.
    """

    def __init__(self, H: int, W: int, region: tuple[int, int], device: torch.device):
        i, j = region
        self.any_size = isinstance(H, torch.Tensor)
        self.map, self.region, self.grid = (H, W), region, ((H + i - 1) // i, (W + j - 1) // j)
        self.R, self.L = self.grid[0] * self.grid[1], i * j
        self.ragged = self.any_size or bool(H % i or W % j)
        self.real = self.order(torch.ones(1, H, W, 1, dtype=torch.bool, device=device))[..., 0]

    def order(self, pixels: torch.Tensor) -> torch.Tensor:
        """Order (B, H, W, C) pixels by region: (B * R, L, C), with zeros where a ragged region has none."""
        if self.ragged:
            below, right = (n * side - t for n, side, t in zip(self.grid, self.region, self.map))
            pixels = F.pad(pixels, (0, 0, 0, right, 0, below))
        C = pixels.shape[3]
        if is_eager():
            return self.split(pixels).reshape(-1, self.L, C)
        (i, j), (_, columns) = self.region, self.grid  # CoreML has five dimensions at most
        return pixels.reshape(-1, i, columns, j * C).transpose(1, 2).reshape(-1, self.L, C)

    def split(self, pixels: torch.Tensor) -> torch.Tensor:
        """View (B, rows * i, columns * j, C) pixels as regions: (B, rows, columns, i, j, C)."""
        (i, j), (rows, columns) = self.region, self.grid
        return pixels.reshape(-1, rows, i, columns, j, pixels.shape[3]).transpose(2, 3)

    def restore(self, ordered: torch.Tensor) -> torch.Tensor:
        """Order (B * R, L, C) tokens as the map has them: (B, H, W, C)."""
        C, (i, j), (rows, columns) = ordered.shape[2], self.region, self.grid
        if is_eager():
            pixels = self.join(self.unfold(ordered))
        else:
            pixels = ordered.reshape(-1, columns, i, j * C).transpose(1, 2).reshape(-1, rows * i, columns * j, C)
        return pixels[:, : self.map[0], : self.map[1]]

    def unfold(self, ordered: torch.Tensor) -> torch.Tensor:
        """View (B * R, L, C) tokens as `split` views pixels."""
        return ordered.reshape(-1, *self.grid, *self.region, ordered.shape[2])

    @staticmethod
    def join(regions: torch.Tensor) -> torch.Tensor:
        """Undo `split`, without a copy where the memory is that of a map."""
        return regions.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def route(self, q: torch.Tensor, k: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Choose for each region the `topk` regions whose mean key its mean query likes best.

        Args:
            q, k: (B * R, L, C) queries and keys, ordered by region.
            topk: Regions to choose, at most all there are.

        Returns:
            (B * R, topk) regions among those of the batch, and a (B * R, 1, 1, topk * L) mask of their pixels where
            some are ragged.
        """
        R, L, topk = self.R, self.L, topk if self.any_size else min(topk, self.R)
        with torch.no_grad(), no_autocast(q):  # sums over channels leave the range of fp16
            share = self.real.float() / self.real.sum(dim=1, keepdim=True)  # of each real pixel in a region's mean
            means = (share.unsqueeze(1) @ t.detach().float().reshape(-1, R, L, t.shape[2]) for t in (q, k))
            q_mean, k_mean = (t.flatten(2) for t in means)  # (B, R, C)
            scores = q_mean @ k_mean.transpose(1, 2)  # (B, R, R)
            if self.any_size:  # a graph's topk is one number, and an image's regions may be fewer
                scores = F.pad(scores, (0, topk), value=torch.finfo(scores.dtype).min)
            chosen = scores.topk(topk, dim=-1).indices  # (B, R, topk)
        mask = None
        if self.any_size:
            there, chosen = chosen < R, chosen % R
            mask = self.real[chosen] & there.unsqueeze(3)  # (B, R, topk, L)
        elif self.ragged:
            mask = self.real[chosen]
        mask = None if mask is None else mask.reshape(-1, 1, 1, topk * L)
        first = torch.arange(chosen.shape[0], device=q.device).view(-1, 1, 1) * R  # a trace makes len() a constant
        return (chosen + first).reshape(-1, topk), mask


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, heads: int, scale: float
) -> torch.Tensor:
    """Attention of (n, L, C) queries over (n, M, C) keys and values; returns (n, L, C)."""
    if is_plain(q) and heads == q.shape[2] and q.shape[1] * k.numel() <= SCORES:
        return attend_by_channel(q * scale, k, v, mask)
    q, k, v = (split_heads(t, heads) for t in (q, k, v))
    if mask is not None and not is_eager():  # see findings/torch-boolean-mask-in-mnn.sh
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)


def is_plain(x: torch.Tensor) -> bool:
    """Whether a tensor is a processor's, in fp32 and eager mode; what counts operations has types of its own."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and is_eager() and type(x) is torch.Tensor


def attend_by_channel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention with a head for each channel, whose scores are products of two numbers.

    The scores lie as the channels do, next to each other; a fused kernel would make a matrix product for each head.
    """
    scores = q.unsqueeze(2) * k.unsqueeze(1)  # (n, L, M, C)
    if mask is not None:
        scores = scores.masked_fill(~mask.transpose(2, 3), float("-inf"))
    return (scores.softmax(dim=2) * v.unsqueeze(1)).sum(dim=2)


def routed(qkv: torch.Tensor, chosen: torch.Tensor, part: slice = slice(None)) -> tuple[torch.Tensor, ...]:
    """Give the queries of some regions, (n, L, C), and the keys and values of those that each is routed to.

    Args:
        qkv: (B * R, L, 3 * C) queries, keys and values of all regions.
        chosen: (B * R, topk) regions whose keys and values a region sees.
        part: The n regions.

    Returns:
        Queries (n, L, C), keys and values (n, topk * L, C).
    """
    C, chosen = qkv.shape[2] // 3, chosen[part]
    kv = qkv[..., C:].index_select(0, chosen.flatten()).reshape(chosen.shape[0], -1, 2 * C)
    return qkv[part, :, :C], *kv.chunk(2, dim=-1)


class RoutedAttention(torch.autograd.Function):
    """Attention over routed regions for eager mode: a few regions at a time, of which nothing is kept.

    The keys and values of the routed regions are `topk` copies of all there are. They are gathered for as many regions
    as a core's cache holds, and gathered again in the backward, which has no derivative of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, chosen: torch.Tensor, mask: torch.Tensor | None, heads: int, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B * R, L, 3 * C) tokens, ordered by region and routed as `route` says, to (B * R, L, C).

        The values are given too: the gradient of what else uses them joins the sum that the backward makes anyway.
        """
        ctx.save_for_backward(qkv, chosen)
        ctx.mask, ctx.heads, ctx.scale = mask, heads, scale
        C = qkv.shape[2] // 3
        out, v = qkv.new_empty(*qkv.shape[:2], C), qkv[..., 2 * C :]
        for part in RoutedAttention.parts(chosen, qkv, heads):
            out[part] = attend(
                *routed(qkv, chosen, part), mask=None if mask is None else mask[part], heads=heads, scale=scale
            )
        return out, v.clone() if ctx.needs_input_grad[0] else v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, grad_v: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (qkv, chosen), mask = ctx.saved_tensors, ctx.mask
        wide = torch.promote_types(qkv.dtype, torch.float32)  # for sums of up to R terms
        total = torch.empty_like(qkv, dtype=wide)
        dq, *sums = total.chunk(3, dim=-1)
        sums[0].zero_()
        sums[1].copy_(grad_v)
        for part in RoutedAttention.parts(chosen, qkv, ctx.heads):
            inputs = [t.detach().requires_grad_() for t in routed(qkv, chosen, part)]
            with torch.enable_grad():
                out = attend(*inputs, mask=None if mask is None else mask[part], heads=ctx.heads, scale=ctx.scale)
            dq[part], *d_routed = torch.autograd.grad(out, inputs, grad[part])
            for to, d in zip(sums, d_routed):
                to.index_add_(0, chosen[part].flatten(), d.reshape(-1, *to.shape[1:]).to(wide))
        return total.to(qkv.dtype), None, None, None, None

    @staticmethod
    def parts(chosen: torch.Tensor, qkv: torch.Tensor, heads: int) -> list[slice]:
        """Cut the regions into parts whose gathered keys and values, and scores by channel, are small."""
        L, C = qkv.shape[1], qkv.shape[2] // 3
        each = chosen.shape[1] * L * C * (max(2, L) if heads == C else 2)  # elements that those of a region take
        step = max(1, GATHERED.get(qkv.device.type, 2**27) // max(1, each))
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
        # Tutorial checkpoints carry the function that this class calls itself
        if state.pop("attn_fn", None) is not None and state["head_dim"] == 1:
            warn_of_tutorial_module(f"{state['num_heads']} heads of one channel")
        super().__setstate__(state)

    def forward(self, x: torch.Tensor, ret_attn_mask: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend over (N, dim, H, W).

        Args:
            x: The feature map.
            ret_attn_mask: Also return the attention, (N, heads, regions, pixels, topk * pixels).
        """
        H, W = map_size(x)
        sides = (t // self.n_win for t in (H, W))
        region: Any = tuple(t.clamp(min=1) if isinstance(t, torch.Tensor) else max(1, t) for t in sides)
        regions = Regions(H, W, region, x.device)
        pixels = x.permute(0, 2, 3, 1)
        if regions.ragged:  # first the projection: a map may be much smaller than its padded regions
            qkv = project(self.qkv_linear, pixels.flatten(1, 2).contiguous())  # (N, H * W, 3 * dim)
            qkv = regions.order(qkv.reshape(-1, H, W, qkv.shape[2]))  # (N * R, L, 3 * dim)
        else:
            qkv = project(self.qkv_linear, regions.order(pixels))
        q, k, v = qkv.chunk(3, dim=-1)
        chosen, mask = regions.route(q, k, self.topk)
        attention = None
        if is_eager() and not ret_attn_mask:
            out, v = RoutedAttention.apply(qkv, chosen, mask, self.num_heads, self.scale)
        else:
            out, attention = self._attend(qkv, chosen, mask, ret_attn_mask)
        if self.lepe is None:
            out = regions.restore(out)
        else:
            local = self.lepe(regions.restore(v).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if regions.ragged or not is_eager():
                out = local + regions.restore(out)
            else:  # the sum takes the memory order of its first operand: a map's
                out = regions.join(regions.split(local) + regions.unfold(out))
        out = project(self.output_linear, out.flatten(1, 2))
        out = out.reshape(-1, H, W, out.shape[2]).permute(0, 3, 1, 2)  # unflatten() fixes the shape of an ONNX graph
        if not ret_attn_mask:
            return out
        assert attention is not None  # ret_attn_mask asked for it
        return out, attention.unflatten(0, (-1, regions.R)).transpose(1, 2)  # (N, heads, R, L, topk * L)

    def _attend(
        self, qkv: torch.Tensor, chosen: torch.Tensor, mask: torch.Tensor | None, return_attention: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend with all routed keys and values gathered, for exports, compilers and the attention matrix."""
        q, k, v = routed(qkv, chosen)
        if not return_attention:
            return attend(q, k, v, mask, self.num_heads, self.scale), None
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))  # the fused kernel keeps the matrix to itself
        scores = (q * self.scale) @ k.transpose(-2, -1)
        attention = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=-1)
        out = (attention @ v).transpose(1, 2).flatten(2)
        return out, attention


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
