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

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ultralytics.nn.AddModules.layers.execution_mode import is_eager, no_autocast
from ultralytics.nn.AddModules.layers.hg_block import HGBlockAttention
from ultralytics.nn.AddModules.layers.tokens import project, project_in_parts, split_heads
from ultralytics.nn.AddModules.registry import hg_block, keeps_channels, register
from ultralytics.nn.modules.conv import Conv  # noqa: F401 - tutorial checkpoints name it by this module's path

__all__ = "FocusedLinearAttention", "HGBlock_FLA"

EPS = 1e-6
CACHED = 2**18  # elements that go through several operations at a time: 1 MiB in fp32
PART = 2**19  # elements of an image's map that are at hand at a time: 2 MiB in fp32


def focus(x: torch.Tensor, inverse_scale: torch.Tensor, factor: float) -> tuple[torch.Tensor, ...]:
    """Sharpen the direction of feature vectors and keep their norm: f_p(y) = y^p * |y| / |y^p|.

    Args:
        x: (..., C) features; a vector is all channels of a token.
        inverse_scale: (C,) factors of y = (relu(x) + 1e-6) * inverse_scale.
        factor: The exponent p.

    Returns:
        The (..., C) map, y, and the (..., 1) norms of its vectors.
    """
    y = (F.relu(x) + EPS) * inverse_scale
    norm = length(y)
    # The map scales with its input: powers of values of at most 1 do not overflow. Those whose square would be
    # denormal, on which processors are slow, are raised to where they still do not count beside 1.
    least = (4 * torch.finfo(y.dtype).tiny) ** (0.5 / factor)
    powered = (y / y.detach().amax(dim=-1, keepdim=True)).clamp(min=least).pow(factor)
    return powered * (norm / length(powered)), y, norm


def length(x: torch.Tensor) -> torch.Tensor:
    """Give the Euclidean norms of (..., C) vectors, (..., 1)."""
    if is_eager():
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.square().sum(dim=-1, keepdim=True).sqrt()  # see findings/mnn-reductions-over-all-axes.sh


def summarise(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Sum (..., M, d) keys, mapped before, times values and times 1: (..., d, d + 1)."""
    return torch.cat([k.transpose(-2, -1) @ v, k.sum(dim=-2).unsqueeze(-1)], dim=-1)


class FocusedAttention(torch.autograd.Function):
    """The attention of q over k and v, mapped, for eager mode: little is made anew, and little kept for the backward.

    On a CPU it goes image by image, and maps as many tokens at a time as a core's cache holds through all the map's
    operations: fresh memory costs more than arithmetic. The backward makes the map again, and has no derivative of its
    own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        inverse_scale: torch.Tensor,
        factor: float,
        heads: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, N, C) and twice (B, M, C) to the attention (B, N, C), and to v, (B, heads, M, d)."""
        out = q.new_empty(q.shape)
        values = v.new_empty(len(v), heads, v.shape[1], v.shape[2] // heads)
        for i in images(q):
            values[i] = split_heads(v[i], heads)
            context = summarise(focus_in_cache(k[i], inverse_scale, factor, heads)[0], values[i])
            q_mapped = focus_in_cache(q[i], inverse_scale, factor, heads)[0]
            attended, norm = (q_mapped @ context).split([values.shape[-1], 1], dim=-1)  # (1, heads, N, d), (…, 1)
            torch.div(attended, norm + EPS, out=split_heads(out[i], heads))
        ctx.save_for_backward(q, k, inverse_scale, values)
        ctx.factor, ctx.heads = factor, heads
        return out, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, grad_values: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with no_autocast(grad):
            return FocusedAttention.gradients(ctx, grad, grad_values)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor, grad_values: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Give the gradients of the arguments of `forward`."""
        q, k, inverse_scale, values = ctx.saved_tensors
        factor, heads, d = ctx.factor, ctx.heads, values.shape[-1]
        dq, dk, dv, d_inverse_scale = q.new_empty(q.shape), *k.new_empty(2, *k.shape), torch.zeros_like(inverse_scale)
        for i in images(q):
            v = values[i]
            q_mapped, *q_focus = focus_in_cache(q[i], inverse_scale, factor, heads, keep=True)
            k_mapped, *k_focus = focus_in_cache(k[i], inverse_scale, factor, heads, keep=True)
            context = summarise(k_mapped, v)  # (1, heads, d, d + 1)
            # With [a | n] = q_mapped @ context and out = a / n: da = grad / n, dn = -<grad, out> / n
            attended, norm = (q_mapped @ context).split([d, 1], dim=-1)  # (1, heads, N, d), (…, 1)
            norm = norm + EPS
            grad_i = split_heads(grad[i], heads)
            dn = attended.mul_(grad_i).sum(dim=-1, keepdim=True).div_(norm).neg_()
            d_attended = torch.cat([grad_i, dn], dim=-1).div_(norm)  # (1, heads, N, d + 1)
            del attended
            d_context = q_mapped.transpose(-2, -1) @ d_attended
            torch.add(k_mapped @ d_context[..., :d], grad_values[i], out=split_heads(dv[i], heads))
            d_mapped = (v @ d_context[..., :d].transpose(-2, -1)).add_(d_context[..., d:].transpose(-2, -1))
            d_inverse_scale += focus_backward(
                d_mapped, k_mapped, *k_focus, inverse_scale=inverse_scale, factor=factor, dx=dk[i]
            )
            d_mapped = d_attended @ context.transpose(-2, -1)
            d_inverse_scale += focus_backward(
                d_mapped, q_mapped, *q_focus, inverse_scale=inverse_scale, factor=factor, dx=dq[i]
            )
        return dq, dk, dv, d_inverse_scale, None, None


def images(x: torch.Tensor) -> list[slice]:
    """Cut a batch of feature maps into parts that reuse memory; an accelerator takes all at once."""
    if x.device.type != "cpu":
        return [slice(None)]
    step = max(1, PART * len(x) // max(1, x.numel()))
    return [slice(i, i + step) for i in range(0, max(1, len(x)), step)]


def pieces(x: torch.Tensor, C: int) -> tuple[torch.Tensor, ...]:
    """Cut an image's tokens, of C channels, into pieces that a core's cache holds; an accelerator takes all at once."""
    return x.split(max(1, CACHED // C) if x.device.type == "cpu" else x.shape[1], dim=1)


def focus_in_cache(
    x: torch.Tensor, inverse_scale: torch.Tensor, factor: float, heads: int, keep: bool = False
) -> list[torch.Tensor]:
    """Compute `focus` of (B, N, C) piece by piece.

    Returns:
        The (B, heads, N, d) map, and if they are kept y and the norms, as tokens.
    """
    B, N, C = x.shape
    mapped = x.new_empty(B, heads, N, C // heads)
    kept = [x.new_empty(x.shape), x.new_empty(B, N, 1)] if keep else []
    for piece, part, *parts in zip(*(pieces(t, C) for t in (x, mapped.transpose(1, 2), *kept))):
        value, *values = focus(piece, inverse_scale, factor)
        part.copy_(value.view(part.shape))
        for target, source in zip(parts, values):
            target.copy_(source)
    return [mapped, *kept]


def focus_backward(
    grad: torch.Tensor,
    mapped: torch.Tensor,
    y: torch.Tensor,
    norm: torch.Tensor,
    inverse_scale: torch.Tensor,
    factor: float,
    dx: torch.Tensor,
) -> torch.Tensor:
    """Write the gradient of `focus`, from (B, heads, N, d), to the (B, N, C) of `dx`; give that of inverse_scale."""
    C, d_inverse_scale = y.shape[2], torch.zeros_like(inverse_scale)
    for g, out_, y_, norm_, dx_ in zip(
        *(pieces(t, C) for t in (grad.transpose(1, 2), mapped.transpose(1, 2), y, norm, dx))
    ):
        g, out_ = g.reshape(y_.shape), out_.reshape(y_.shape)
        # With s = <g, out> / norm^2: dy = p * out / y * (g - s * out) + s * y
        s = (g * out_).sum(dim=-1, keepdim=True) / norm_**2
        dy = torch.addcmul(g, out_, s, value=-1).mul_(out_).div_(y_).mul_(factor).addcmul_(y_, s)
        d_inverse_scale += (dy * y_).sum(dim=(0, 1))
        torch.mul(dy.mul_(inverse_scale), y_ > EPS * inverse_scale, out=dx_)  # 0 where the ReLU gave 0
    return d_inverse_scale / inverse_scale


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
        if is_eager() and not torch.is_grad_enabled():  # in parts, for less fresh memory
            parts = [self._tokens(x[i]) for i in images(x)]
            out = torch.cat(parts) if len(parts) > 1 else parts[0]
        else:
            out = self._tokens(x)
        return out.transpose(1, 2).reshape(B, C, H, W)

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Attend, from (B, C, H, W) to (B, N, C)."""
        B, C, H, W = x.shape
        tokens, h, w = x.flatten(2).transpose(1, 2).contiguous(), H, W  # (B, N, C)
        q = project(self.q, tokens)
        if self.sr_ratio > 1:
            if min(H, W) < self.sr_ratio:
                raise ValueError(f"a {H} x {W} map is smaller than sr_ratio={self.sr_ratio}")
            reduced = self.sr(x)
            h, w = reduced.shape[2:]
            tokens = self.norm(reduced.flatten(2).transpose(1, 2))  # (B, M, C)
        k, v = project_in_parts(self.kv, tokens, 2)
        dtype = v.dtype
        del tokens

        with no_autocast(x):  # cubes and sums over tokens leave the range of fp16
            out, v = self._attend(q.float(), k.float(), v.float())
        out, v = out.to(dtype), v.to(dtype)
        del q, k
        d = C // self.num_heads
        grid = v.reshape(B * self.num_heads, h, w, d).permute(0, 3, 1, 2)  # heads share the filter
        del v
        if self.sr_ratio > 1:
            grid = F.interpolate(grid, size=(H, W), mode="bilinear", align_corners=False)
        local = self.dwc(grid).permute(0, 2, 3, 1).reshape(B, self.num_heads, H * W, d)
        local = local.transpose(1, 2)
        out = out.unflatten(2, (self.num_heads, d)).add_(local).flatten(2) if is_eager() else out + local.flatten(2)
        return self.proj_drop(project(self.proj, out))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of (B, N, C) queries over (B, M, C) keys and values: (B, N, C), and v as (B, heads, M, d)."""
        heads, p = self.num_heads, self.focusing_factor
        inverse_scale = F.softplus(self.scale.float()).reciprocal().flatten()
        if is_eager():
            return FocusedAttention.apply(q, k, v, inverse_scale, p, heads)
        q, k = (split_heads(focus(t, inverse_scale, p)[0], heads) for t in (q, k))
        v = split_heads(v, heads)
        attended, norm = (q @ summarise(k, v)).split([v.shape[-1], 1], dim=-1)
        return (attended / (norm + EPS)).transpose(1, 2).flatten(2), v


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
