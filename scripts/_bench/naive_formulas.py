"""The papers' formulas in textbook form, which the tests and the benchmark compare with this project's modules.

Each function takes a module and its input, and computes the module's equation step by step, with full attention
matrices and without fusion. Both sides share the module's weights, so that they compute the same.
"""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw
from ultralytics.nn.AddModules.EMO import EMO, ConvNormAct, iRMB
from ultralytics.nn.AddModules.FLA import FocusedLinearAttention
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None = None):
    """Softmax attention of (..., N, d) over (..., M, d) with the scores in full; returns (..., N, d)."""
    scores = q @ k.transpose(-2, -1) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def fla(m: FocusedLinearAttention, x: torch.Tensor) -> torch.Tensor:
    """Focused linear attention: (B, dim, H, W) to the same."""
    B, C, H, W = x.shape
    tokens, h, w = x.flatten(2).transpose(1, 2), H, W  # (B, N, C)
    q = F.linear(tokens, m.q.weight, m.q.bias)
    if m.sr_ratio > 1:
        reduced = m.sr(x)
        h, w = reduced.shape[2:]
        tokens = m.norm(reduced.flatten(2).transpose(1, 2))
    k, v = F.linear(tokens, m.kv.weight, m.kv.bias).chunk(2, dim=-1)  # (B, M, C)

    def phi(t: torch.Tensor) -> torch.Tensor:
        t = (F.relu(t) + 1e-6) / F.softplus(m.scale)
        powered = t**m.focusing_factor
        return powered / powered.norm(dim=-1, keepdim=True) * t.norm(dim=-1, keepdim=True)

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(B, t.shape[1], m.num_heads, -1).transpose(1, 2)  # (B, heads, tokens, d)

    Q, K, V = split(phi(q)), split(phi(k)), split(v)
    norm = (Q * K.sum(dim=2, keepdim=True)).sum(dim=-1, keepdim=True) + 1e-6
    out = (Q @ (K.transpose(-2, -1) @ V) / norm).transpose(1, 2).reshape(B, H * W, C)
    grid = v.transpose(1, 2).reshape(B * m.num_heads, C // m.num_heads, h, w)
    if m.sr_ratio > 1:
        grid = F.interpolate(grid, size=(H, W), mode="bilinear")
    out = out + m.dwc(grid).reshape(B, C, H * W).transpose(1, 2)
    return F.linear(out, m.proj.weight, m.proj.bias).transpose(1, 2).reshape(B, C, H, W)


def bra(m: BiLevelRoutingAttention_nchw, x: torch.Tensor) -> torch.Tensor:
    """Bi-level routing attention, with keys and values of the routed regions gathered: (B, dim, H, W) to the same."""
    B, C, H, W = x.shape
    q, k, v = F.conv2d(x, m.qkv_linear.weight, m.qkv_linear.bias).chunk(3, dim=1)
    i, j = max(1, H // m.n_win), max(1, W // m.n_win)
    rows, columns = -(-H // i), -(-W // j)

    def regions(t: torch.Tensor, heads: int) -> torch.Tensor:
        t = F.pad(t, (0, columns * j - W, 0, rows * i - H))
        t = t.reshape(t.shape[0], heads, -1, rows, i, columns, j).permute(0, 1, 3, 5, 4, 6, 2)
        return t.reshape(t.shape[0], heads, rows * columns, i * j, -1)  # (B, heads, R, L, d)

    real = regions(torch.ones_like(x[:1, :1]), 1)[0, 0, :, :, 0]  # (R, L)
    count = real.sum(dim=1, keepdim=True)
    q_mean, k_mean = (regions(t.detach(), 1)[:, 0].sum(dim=2) / count for t in (q, k))  # (B, R, C)
    routes = (q_mean @ k_mean.transpose(1, 2)).topk(min(m.topk, len(real)), dim=-1).indices  # (B, R, topk)

    def routed(t: torch.Tensor) -> torch.Tensor:
        t = regions(t, m.num_heads).transpose(1, 2)  # (B, R, heads, L, d)
        gathered = t[torch.arange(B, device=t.device)[:, None, None], routes]  # (B, R, topk, heads, L, d)
        return gathered.permute(0, 3, 1, 2, 4, 5).flatten(3, 4)  # (B, heads, R, topk * L, d)

    mask = (real > 0)[routes].flatten(2)[:, None, :, None]  # (B, 1, R, 1, topk * L)
    out = attend(regions(q, m.num_heads), routed(k), routed(v), m.scale, mask)
    out = out.reshape(B, m.num_heads, rows, columns, i, j, -1).permute(0, 1, 6, 2, 4, 3, 5)
    out = out.reshape(B, C, rows * i, columns * j)[:, :, :H, :W]
    if m.lepe is not None:
        out = out + m.lepe(v)
    return F.conv2d(out, m.output_linear.weight, m.output_linear.bias)


def mqa(m: MultiQueryAttentionLayerWithDownSampling, x: torch.Tensor, attend=attend) -> torch.Tensor:
    """Multi-query attention: (B, in_channels, H, W) to the same."""
    B, _, H, W = x.shape
    query = x
    if m.has_query_strides:
        query = m._query_downsampling_norm(F.avg_pool2d(x, (m.query_h_strides, m.query_w_strides)))
    h, w = query.shape[2:]
    key = m._key_dw_conv(x) if m.kv_strides > 1 else x
    value = m._value_dw_conv(x) if m.kv_strides > 1 else x
    q = m._query_proj(query).reshape(B, m.num_heads, m.key_dim, h * w).transpose(2, 3)  # (B, heads, N, key_dim)
    k = m._key_proj(key).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, M, key_dim)
    v = m._value_proj(value).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, M, value_dim)
    out = attend(q, k, v, m.key_dim**-0.5)  # (B, heads, N, value_dim)
    out = out.transpose(2, 3).reshape(B, -1, h, w)
    if m.has_query_strides:
        out = F.interpolate(out, (H, W), mode="bilinear")
    return m._output_proj(out)


def irmb(m: iRMB, x: torch.Tensor) -> torch.Tensor:
    """Inverted residual mobile block, its attention in strided windows: (B, dim_in, H, W) to (B, dim_out, H', W')."""
    shortcut, y = x, m.norm(x)
    if m.attn_s:
        B, C, H, W = y.shape
        h, w = (m.window_size, m.window_size) if m.window_size > 0 else (H, W)
        y = F.pad(y, (0, -W % w, 0, -H % h))
        r, s = y.shape[2] // h, y.shape[3] // w
        windows = y.reshape(B, C, h, r, w, s).permute(0, 3, 5, 1, 2, 4).reshape(B * r * s, C, h, w)

        def split(t: torch.Tensor) -> torch.Tensor:
            return t.reshape(len(t), m.num_head, -1, h * w).transpose(2, 3)  # (windows, heads, pixels, d)

        q, k = m.qk(windows).chunk(2, dim=1)
        value = windows if m.attn_pre else m.v(windows)
        y = attend(split(q), split(k), split(value), m.scale)
        y = y.transpose(2, 3).reshape(len(windows), -1, h, w)
        if m.attn_pre:
            y = m.v(y)
        y = y.reshape(B, r, s, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(B, -1, h * r, w * s)[:, :, :H, :W]
    else:
        y = m.v(y)
    local = m.conv_local(y)
    if not isinstance(m.se, nn.Identity):
        pooled = local.mean((2, 3))
        squeezed = [F.relu(F.linear(pooled, fc[0].weight)) for fc in (m.se.fc1, m.se.fc2, m.se.fc3, m.se.fc4)]
        local = local * F.linear(torch.cat(squeezed, 1), m.se.fc[0].weight).sigmoid()[:, :, None, None]
    y = m.proj(m.proj_drop(y + local if m.has_skip else local))
    return shortcut + m.drop_path(y) if m.has_skip else y


def conv_norm_act(m: ConvNormAct, x: torch.Tensor) -> torch.Tensor:
    """Compute convolution, norm and activation, each with its own result."""
    out = m.act(m.norm(m.conv(x)))
    return x + m.drop_path(out) if m.has_skip else out


def emo(m: EMO, x: torch.Tensor) -> list[torch.Tensor]:
    """Compute the stages of a backbone, on maps in torch's default memory order."""
    outputs = []
    for stage in (m.stage0, m.stage1, m.stage2, m.stage3, m.stage4):
        for block in stage:
            x = block(x)
        outputs.append(x)
    return outputs[1:]


FORMULAS = {
    FocusedLinearAttention: fla,
    BiLevelRoutingAttention_nchw: bra,
    MultiQueryAttentionLayerWithDownSampling: mqa,
    iRMB: irmb,
    ConvNormAct: conv_norm_act,
    EMO: emo,
}


def naive_copy(module: nn.Module, formulas: dict = FORMULAS) -> nn.Module:
    """Copy a module or a model, and compute each of our layers by its formula; iRMB must not be fused."""
    module = copy.deepcopy(module)
    for m in module.modules():
        if formula := next((formulas[cls] for cls in type(m).__mro__ if cls in formulas), None):
            m.forward = functools.partial(formula, m)
    return module
