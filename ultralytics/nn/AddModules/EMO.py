"""EMO: multi-output backbones of inverted residual mobile blocks (iRMB).

Paper: "Rethinking Mobile Block for Efficient Attention-based Models", ICCV 2023, https://arxiv.org/abs/2301.01146
Origin: https://github.com/zhangzjn/EMO, in the form that the RT-DETR tutorials published.

An iRMB is attention and a depth-wise convolution between an expansion `v` and a projection:

    F(x) = proj(y + SE(DWC(y))),   y = v(softmax(Q K^T / sqrt(d)) norm(x)),   output = x + F(x)

with windows that are strided: pixels that lie H / 7 apart share one. Differences from the paper, which the published
tutorials made and which published weights need: every `ConvNormAct` ends in GELU, and every block has a squeeze of
four branches. Difference from the published code: the widths of the outputs are known without running a forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ultralytics.nn.AddModules.layers.execution_mode import has_hooks, is_eager
from ultralytics.nn.AddModules.layers.tokens import DILATION
from ultralytics.nn.AddModules.registry import backbone, register
from ultralytics.utils.torch_utils import fuse_conv_and_bn

__all__ = "EMO", "EMO_1M", "EMO_2M", "EMO_5M", "EMO_6M", "iRMB"

NORM_EPS = 1e-6
PIECE = 2**21  # elements of each part of a tensor that is made in parts, 8 MiB in fp32
FRESH = 2**23  # elements of the largest tensor whose memory glibc keeps for the next when it is freed, 32 MiB


def in_place(*sources: nn.Module) -> bool:
    """Whether the result of some layers may be written over: nothing else needs it, and no hook may hold it.

    Fresh memory is what costs most on a CPU.
    """
    return is_eager() and not torch.is_grad_enabled() and not has_hooks(*sources)


def gelu_(x: torch.Tensor) -> torch.Tensor:
    """GELU in place."""
    # The fast kernel takes contiguous tensors only, which a channels-last one is in another order of its axes
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    torch.ops.aten.gelu_(x.permute(0, 2, 3, 1) if channels_last else x)
    return x


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a (B, C, H, W) map."""

    def __init__(self, dim: int, eps: float = NORM_EPS):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_norm(name: str, dim: int) -> nn.Module:
    """Build a norm by its name in the origin's configuration: 'none', 'bn_2d' or 'ln_2d'."""
    if name == "none":
        return nn.Identity()
    if name == "bn_2d":
        return nn.BatchNorm2d(dim, eps=NORM_EPS)
    if name == "ln_2d":
        return LayerNorm2d(dim)
    raise ValueError(f"norm_layer={name!r} is unknown, choose 'none', 'bn_2d' or 'ln_2d'")


class DropPath(nn.Module):
    """Stochastic depth: in training each sample's branch is left out with a probability, and else scaled up for it.

    timm has the same, but its import takes longer than that of ultralytics.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.dropout(x.new_ones(len(x), 1, 1, 1), self.drop_prob) if self.training else x


def make_drop_path(rate: float) -> nn.Module:
    """Build stochastic depth, or nothing for a rate of 0."""
    return DropPath(rate) if rate else nn.Identity()


class ConvNormAct(nn.Module):
    """Convolution, norm and GELU, with a residual of its own where `skip` is set and the shapes allow."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        skip: bool = False,
        norm_layer: str = "bn_2d",
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.has_skip = skip and dim_in == dim_out and stride == 1
        padding = math.ceil((dilation * (kernel_size - 1) + 1 - stride) / 2)
        self.conv = nn.Conv2d(dim_in, dim_out, kernel_size, stride, padding, dilation, groups, bias)
        self.norm = make_norm(norm_layer, dim_out)
        self.act = nn.GELU()
        self.drop_path = make_drop_path(drop_path_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.conv(x))
        out = gelu_(out) if self.is_gelu() and in_place(self.conv, self.norm, self.act) else self.act(out)
        return x + self.drop_path(out) if self.has_skip else out

    def is_gelu(self) -> bool:
        """Whether the activation is the one that this module is built with."""
        return type(self.act) is nn.GELU and self.act.approximate == "none"

    def is_plain(self) -> bool:
        """Whether the convolution can be run in parts: dense or depth-wise, with a bias, and seen by no hook."""
        conv = self.conv
        split = conv.bias is not None and conv.groups in (1, conv.out_channels)
        return split and self.is_gelu() and not (self.has_skip or has_hooks(self, conv, self.norm, self.act))

    def fuse(self) -> None:
        """Fold a batch norm into the convolution, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_and_bn(self.conv, self.norm), nn.Identity()


class SELayerV2(nn.Module):
    """Squeeze and excitation with four parallel squeezing branches; keeps (B, channel, H, W)."""

    def __init__(self, channel: int, reduction: int = 4):
        super().__init__()
        self.reduction = reduction
        self.cardinality = 4
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        squeezed = channel // reduction
        self.fc1 = self._branch(channel, squeezed)
        self.fc2 = self._branch(channel, squeezed)
        self.fc3 = self._branch(channel, squeezed)
        self.fc4 = self._branch(channel, squeezed)
        self.fc = nn.Sequential(nn.Linear(squeezed * self.cardinality, channel, bias=False), nn.Sigmoid())

    @staticmethod
    def _branch(channel: int, squeezed: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(channel, squeezed, bias=False), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Give the factors of the channels, (B, C, 1, 1)."""
        pooled = self.avg_pool(x).flatten(1)  # (B, C)
        squeezed = torch.cat([branch(pooled) for branch in self.branches()], dim=1)
        return self.fc(squeezed)[:, :, None, None]

    def branches(self) -> list[nn.Module]:
        """List the squeezing branches: four, or the one that they are fused to."""
        return [getattr(self, name) for name in ("fc1", "fc2", "fc3", "fc4") if hasattr(self, name)]

    def fuse(self) -> None:
        """Make the four branches one matrix, for inference."""
        branches: list[Any] = self.branches()
        if len(branches) == 1:
            return
        weight = torch.cat([branch[0].weight for branch in branches]).detach()
        self.fc1 = nn.Sequential(nn.Linear(*weight.shape[::-1], bias=False, device="meta"), nn.ReLU(inplace=True))
        self.fc1[0].weight = nn.Parameter(weight, requires_grad=False)
        del self.fc2, self.fc3, self.fc4


class iRMB(nn.Module):
    """Inverted residual mobile block.

    Args:
        dim_in, dim_out: Channels of the input and the output.
        norm_in: Normalise the input.
        has_skip: Add the input to the output, where the shapes allow.
        exp_ratio: Channels of the expansion over `dim_in`.
        norm_layer: 'bn_2d', 'ln_2d' or 'none', of the input norm.
        act_layer: Accepted for compatibility, unused: every activation is GELU.
        v_proj: Build the expansion; without it exp_ratio must be 1.
        dw_ks: Kernel size of the depth-wise convolution.
        stride, dilation: Of the depth-wise convolution.
        se_ratio: Any value above 0 builds the squeeze, whose reduction is 4.
        dim_head: Channels of an attention head; must divide `dim_in` where there is attention.
        window_size: Side of the strided attention windows; 0 for one window.
        attn_s: Build the attention.
        qkv_bias: Bias of the query-key and the expansion convolution.
        attn_drop, drop, drop_path: Dropout of attention weights, of the projection's input, and drop path.
        v_group: Expand head by head.
        attn_pre: Attend to the input and expand afterwards; otherwise attend to the expanded input.

    Shapes:
        Input (B, dim_in, H, W); output (B, dim_out, ceil(H / stride), ceil(W / stride)) for odd `dw_ks`.

    Raises:
        ValueError: If `dim_head` does not divide `dim_in`, or `exp_ratio` is not 1 without `v_proj`.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        norm_in: bool = True,
        has_skip: bool = True,
        exp_ratio: float = 1.0,
        norm_layer: str = "bn_2d",
        act_layer: str = "gelu",
        v_proj: bool = True,
        dw_ks: int = 3,
        stride: int = 1,
        dilation: int = 1,
        se_ratio: float = 0.0,
        dim_head: int = 64,
        window_size: int = 7,
        attn_s: bool = True,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        v_group: bool = False,
        attn_pre: bool = False,
    ):
        super().__init__()
        if attn_s and dim_in % dim_head:
            raise ValueError(f"dim_head={dim_head} does not divide dim_in={dim_in}")
        if not v_proj and exp_ratio != 1:
            raise ValueError(f"exp_ratio={exp_ratio} must be 1 without v_proj")
        self.norm = make_norm(norm_layer, dim_in) if norm_in else nn.Identity()
        dim_mid = int(dim_in * exp_ratio)
        self.has_skip = dim_in == dim_out and stride == 1 and has_skip
        self.attn_s = attn_s
        heads = dim_in // dim_head if attn_s else 1
        if attn_s:
            self.dim_head = dim_head
            self.window_size = window_size
            self.num_head = heads
            self.scale = dim_head**-0.5
            self.attn_pre = attn_pre
            self.qk = ConvNormAct(dim_in, 2 * dim_in, kernel_size=1, bias=qkv_bias, norm_layer="none")
        groups = heads if v_group else 1
        expand = ConvNormAct(dim_in, dim_mid, kernel_size=1, groups=groups, bias=qkv_bias, norm_layer="none")
        self.v = expand if v_proj else nn.Identity()
        if attn_s:
            self.attn_drop = nn.Dropout(attn_drop)
        self.conv_local = ConvNormAct(dim_mid, dim_mid, dw_ks, stride, dilation, groups=dim_mid)
        self.se: Any = SELayerV2(dim_mid) if se_ratio > 0 else nn.Identity()
        self.proj_drop = nn.Dropout(drop)
        self.proj = ConvNormAct(dim_mid, dim_out, kernel_size=1, norm_layer="none")
        self.drop_path = make_drop_path(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim_in, H, W) to (B, dim_out, H', W')."""
        shortcut = x
        x = self.norm(x)
        if not self.has_skip:
            local = self.conv_local(self._attend(x)) if self.attn_s else self._expand_and_filter(x)
            free = self._is_gate() and in_place(*self.conv_local.modules())
            local = local.mul_(self.se.gate(local)) if free else self.se(local)
            return self.proj(self.proj_drop(local))
        x = self._attend(x) if self.attn_s else self.v(x)
        local = self.conv_local(x)
        if self._is_gate() and is_eager():  # CoreML's converter has no addcmul
            free = x is not shortcut and in_place(*self.norm.modules(), *self.v.modules())
            x = torch.addcmul(x, local, self.se.gate(local), out=x if free else None)
        else:
            x = x + self.se(local)
        x = self.drop_path(self.proj(self.proj_drop(x)))
        free = x.dtype == shortcut.dtype and in_place(*self.proj.modules(), self.proj_drop, self.drop_path)
        return x.add_(shortcut) if free else x + shortcut

    def _is_gate(self) -> bool:
        """Whether the squeeze is the one that this module is built with, seen by no hook."""
        return type(self.se) is SELayerV2 and not has_hooks(self.se)

    def _expand_and_filter(self, x: torch.Tensor) -> torch.Tensor:
        """Expansion and depth-wise convolution, (B, dim_in, H, W) to (B, dim_mid, H', W').

        An expanded map too large for memory that was freed before is made by groups of channels, which no depth-wise
        convolution mixes.
        """
        layers: tuple[Any, ...] = self.v, self.conv_local
        numel = x[:, :1].numel() * self.conv_local.conv.in_channels
        fused = all(isinstance(m, ConvNormAct) and isinstance(m.norm, nn.Identity) and m.is_plain() for m in layers)
        if numel <= FRESH or not (fused and in_place() and x.device.type == "cpu"):
            return self.conv_local(self.v(x))
        channels = max(8, PIECE // x[:, :1].numel() // 8 * 8)
        parameters = (t.split(channels) for m in layers for t in (m.conv.weight, m.conv.bias))
        local = self.conv_local.conv
        parts = []
        for weight, bias, local_weight, local_bias in zip(*parameters):
            expanded = gelu_(F.conv2d(x, weight, bias, dilation=DILATION))
            options = {"stride": local.stride, "padding": local.padding, "dilation": local.dilation}
            parts.append(gelu_(F.conv2d(expanded, local_weight, local_bias, groups=len(local_bias), **options)))
        return torch.cat(parts, dim=1)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """Attention in strided windows, and the expansion: (B, dim_in, H, W) to (B, dim_mid, H, W)."""
        H, W = x.shape[2:]
        h, w = (self.window_size, self.window_size) if self.window_size > 0 else (H, W)
        x = F.pad(x, (0, -W % w, 0, -H % h))  # attended to as zeros, as in the origin's code
        rows, columns = x.shape[2] // h, x.shape[3] // w

        # Strided windows: pixel (i, j) is in window (i % rows, j % columns)
        windows = rearrange(x, "b c (h r) (w s) -> (b r s) (h w) 1 c", h=h, w=w)
        value = windows if self.attn_pre else self._project(self.v, windows)
        q, k = self._project(self.qk, windows).chunk(2, dim=-1)
        q, k, value = (rearrange(t, "n l 1 (heads d) -> n heads l d", heads=self.num_head) for t in (q, k, value))
        if not is_eager():  # the fused kernel has read wrong strides under torch.compile's aot_eager
            q, k, value = q.contiguous(), k.contiguous(), value.contiguous()
        dropout = self.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, value, dropout_p=dropout, scale=self.scale)
        out = rearrange(out, "(b r s) heads (h w) d -> b (h r) (w s) (heads d)", r=rows, s=columns, h=h)
        out = out.permute(0, 3, 1, 2)
        return (self.v(out) if self.attn_pre else out)[:, :, :H, :W]  # padding is expanded, as published GFLOPs count

    @staticmethod
    def _project(layer: nn.Module, windows: torch.Tensor) -> torch.Tensor:
        """Apply a 1x1 convolution to (n, L, 1, C) windows."""
        return layer(windows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def fuse(self) -> None:
        """Fold a batch norm in front of the expansion into that, for inference."""
        if self.attn_s or not isinstance(self.norm, nn.BatchNorm2d) or not isinstance(self.v, ConvNormAct):
            return
        conv, norm = self.v.conv, self.norm
        assert norm.running_mean is not None and norm.running_var is not None  # as make_norm builds it
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        with torch.no_grad():
            bias = conv.weight.sum((2, 3)) @ shift + (0 if conv.bias is None else conv.bias)
            conv.weight = nn.Parameter(conv.weight * scale.view(1, -1, 1, 1), requires_grad=False)
            conv.bias = nn.Parameter(bias, requires_grad=False)
        self.norm = nn.Identity()


class MSPatchEmb(nn.Module):
    """Stem: a strided convolution and its norm."""

    def __init__(self, dim_in: int, emb_dim: int, kernel_size: int = 3, stride: int = 2):
        super().__init__()
        self.dilation_num = 1
        conv = nn.Conv2d(dim_in, emb_dim, kernel_size, stride, padding=math.ceil((kernel_size - stride) / 2))
        self.convs = nn.ModuleList([nn.Sequential(conv, make_norm("bn_2d", emb_dim), nn.Identity())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs[0](x)

    def fuse(self) -> None:
        """Fold the batch norm into the convolution, for inference."""
        layers: Any = self.convs[0]
        conv, norm, act = layers
        if isinstance(norm, nn.BatchNorm2d):
            self.convs[0] = nn.Sequential(fuse_conv_and_bn(conv, norm), nn.Identity(), act)


@register(backbone)
class EMO(nn.Module):
    """A stem and four stages of iRMBs, whose outputs are all returned.

    Args:
        dim_in: Channels of the image.
        num_classes: Classes of the classifier, which with its norm is built for the published totals and never
            used; 0 for none.
        img_size: Accepted for compatibility, unused: any size works.
        depths, stem_dim, embed_dims, exp_ratios: Blocks, channels and expansions.
        norm_layers, dw_kss, dim_heads, window_sizes, attn_ss: Per stage, as in `iRMB`.
        act_layers: Accepted for compatibility, unused: every activation is GELU.
        qkv_bias, attn_drop, drop, v_group, attn_pre: As in `iRMB`.
        drop_path: Drop path of the last block; the others have their linear share of it.

    Attributes:
        width_list: Channels of the four outputs, whose reductions are 4, 8, 16 and 32.

    Shapes:
        Input (B, dim_in, H, W); output four maps (B, width_list[i], H / 2^(i + 2), W / 2^(i + 2)), rounded up.
    """

    def __init__(
        self,
        dim_in: int = 3,
        num_classes: int = 1000,
        img_size: int = 224,
        depths: Sequence[int] = (1, 2, 4, 2),
        stem_dim: int = 16,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        exp_ratios: Sequence[float] = (4.0, 4.0, 4.0, 4.0),
        norm_layers: Sequence[str] = ("bn_2d", "bn_2d", "ln_2d", "ln_2d"),
        act_layers: Sequence[str] = ("gelu", "gelu", "gelu", "gelu"),
        dw_kss: Sequence[int] = (3, 3, 5, 5),
        dim_heads: Sequence[int] = (16, 16, 16, 16),
        window_sizes: Sequence[int] = (7, 7, 7, 7),
        attn_ss: Sequence[bool] = (False, False, True, True),
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        v_group: bool = False,
        attn_pre: bool = True,
    ):
        super().__init__()
        self.num_classes = num_classes
        stem = iRMB(
            stem_dim, stem_dim, norm_in=False, has_skip=False, v_proj=False, dw_ks=dw_kss[0], se_ratio=1, attn_s=False
        )
        self.stage0 = nn.ModuleList([MSPatchEmb(dim_in, stem_dim), stem])

        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        previous = stem_dim
        for i, (depth, dim) in enumerate(zip(depths, embed_dims)):
            blocks = []
            for j in range(depth):
                first = j == 0
                block = iRMB(
                    previous,
                    dim,
                    has_skip=not first,
                    exp_ratio=exp_ratios[i] * (2 if first else 1),
                    norm_layer=norm_layers[i],
                    dw_ks=dw_kss[i],
                    stride=2 if first else 1,
                    se_ratio=1,
                    dim_head=dim_heads[i],
                    window_size=window_sizes[i],
                    attn_s=attn_ss[i] and not first,
                    qkv_bias=qkv_bias,
                    attn_drop=attn_drop,
                    drop=drop,
                    drop_path=rates[sum(depths[:i]) + j],
                    v_group=v_group,
                    attn_pre=attn_pre,
                )
                blocks.append(block)
                previous = dim
            setattr(self, f"stage{i + 1}", nn.ModuleList(blocks))
        self.norm = make_norm(norm_layers[-1] if num_classes else "none", previous)
        self.pre_dim = previous
        self.pre_head = nn.Identity()  # counted, with the classifier, in the published `layers`
        self.head = nn.Linear(previous, num_classes) if num_classes else nn.Identity()
        self.width_list = list(embed_dims)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of strides 4, 8, 16 and 32."""
        if x.device.type == "cpu" and is_eager():
            x = x.contiguous(memory_format=torch.channels_last)  # as the faster kernels have it, here to the outputs
        outputs = []
        stages: tuple[Any, ...] = self.stage0, self.stage1, self.stage2, self.stage3, self.stage4
        for stage in stages:
            for block in stage:
                x = block(x)
            outputs.append(x)
        return outputs[1:]


@register(backbone)
class EMO_1M(EMO):
    """EMO with widths 32, 48, 80, 168; 4,450,208 parameters."""

    def __init__(self, pretrained: bool = False, **kwargs):
        config = dict(
            depths=(2, 2, 8, 3),
            stem_dim=24,
            embed_dims=(32, 48, 80, 168),
            exp_ratios=(2.0, 2.5, 3.0, 3.5),
            dim_heads=(16, 16, 20, 21),
            drop_path=0.04036,
        )
        refuse_pretrained(pretrained)
        super().__init__(**{**config, **kwargs})


@register(backbone)
class EMO_2M(EMO):
    """EMO with widths 32, 48, 120, 200; 8,131,728 parameters."""

    def __init__(self, pretrained: bool = False, **kwargs):
        config = dict(
            depths=(3, 3, 9, 3),
            stem_dim=24,
            embed_dims=(32, 48, 120, 200),
            exp_ratios=(2.0, 2.5, 3.0, 3.5),
            dim_heads=(16, 16, 20, 20),
            drop_path=0.05,
        )
        refuse_pretrained(pretrained)
        super().__init__(**{**config, **kwargs})


@register(backbone)
class EMO_5M(EMO):
    """EMO with widths 48, 72, 160, 288; 21,318,976 parameters."""

    def __init__(self, pretrained: bool = False, **kwargs):
        config = dict(
            depths=(3, 3, 9, 3),
            stem_dim=24,
            embed_dims=(48, 72, 160, 288),
            exp_ratios=(2.0, 3.0, 4.0, 4.0),
            dim_heads=(24, 24, 32, 32),
            drop_path=0.05,
        )
        refuse_pretrained(pretrained)
        super().__init__(**{**config, **kwargs})


@register(backbone)
class EMO_6M(EMO):
    """EMO with widths 48, 72, 160, 320; 29,153,408 parameters."""

    def __init__(self, pretrained: bool = False, **kwargs):
        config = dict(
            depths=(3, 3, 9, 3),
            stem_dim=24,
            embed_dims=(48, 72, 160, 320),
            exp_ratios=(2.0, 3.0, 4.0, 5.0),
            dim_heads=(16, 24, 20, 32),
            drop_path=0.05,
        )
        refuse_pretrained(pretrained)
        super().__init__(**{**config, **kwargs})


def refuse_pretrained(pretrained: bool) -> None:
    """Raise for `pretrained=True`: the paper's weights do not fit the published variant, and nobody hosts others."""
    if pretrained:
        raise ValueError("no pretrained EMO weights are published for this variant; use load_state_dict for your own")
