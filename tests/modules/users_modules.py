"""Modules in the styles in which people write theirs, each with what such modules keep beside weights.

The tests import this file as `ultralytics.nn.AddModules.users_modules`, as if a user had put it there.
"""

import argparse
import enum
import math
import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import EinMix, Rearrange, Reduce
from timm.layers import DropPath, LayerNorm2d, Mlp, SqueezeExcite, trunc_normal_
from torch import nn
from torchvision.ops import DeformConv2d, SqueezeExcitation, StochasticDepth

from ultralytics.nn.AddModules.registry import keeps_channels, register
from ultralytics.nn.modules.conv import Conv, DWConv


def scale_by_two(x):
    return 2 * x


class h_swish(nn.Module):
    def forward(self, x):
        return x * F.relu6(x + 3) / 6


class Mode(enum.Enum):
    SPLIT = "split"
    SLICE = 2


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclass
class Config:
    kernel: int = 3
    act: type = nn.GELU
    sizes: list = field(default_factory=lambda: [1, 2])
    name: str = "x"


@dataclass(slots=True)
class SlottedConfig:
    kernel: int = 3


@dataclass(frozen=True, slots=True)
class FrozenConfig:
    kernel: int = 3
    mode: Mode = Mode.SPLIT


Stage = namedtuple("Stage", "depth width")


class PlainConfig:
    def __init__(self, kernel):
        self.kernel, self.mode = kernel, Mode.SLICE


@register(keeps_channels)
class FasterPConv(nn.Module):
    """FasterNet: the forward method is chosen in the constructor."""

    def __init__(self, dim, n_div=4, forward="split_cat"):
        super().__init__()
        self.dim_conv3 = dim // n_div
        self.dim_untouched = dim - self.dim_conv3
        self.partial_conv3 = nn.Conv2d(self.dim_conv3, self.dim_conv3, 3, 1, 1, bias=False)
        self.forward = self.forward_split_cat if forward == "split_cat" else self.forward_slicing

    def forward_slicing(self, x):
        x = x.clone()
        x[:, : self.dim_conv3] = self.partial_conv3(x[:, : self.dim_conv3])
        return x

    def forward_split_cat(self, x):
        a, b = torch.split(x, [self.dim_conv3, self.dim_untouched], 1)
        return torch.cat((self.partial_conv3(a), b), 1)


@register(keeps_channels)
class FasterBlock(nn.Module):
    """Methods kept under other names than forward's."""

    def __init__(self, dim):
        super().__init__()
        self.mixing, self.norm_layer, self.act_layer = FasterPConv(dim), nn.BatchNorm2d, partial(nn.ReLU, inplace=True)
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 1), self.norm_layer(2 * dim), self.act_layer(), nn.Conv2d(2 * dim, dim, 1)
        )
        self.drop_path = DropPath(0.1)
        self.branch = self._with_scale
        self.layer_scale = nn.Parameter(torch.ones(dim))

    def _with_scale(self, x):
        return self.layer_scale[:, None, None] * x

    def forward(self, x):
        return x + self.drop_path(self.branch(self.mlp(self.mixing(x))))


@register(keeps_channels)
class FocalModulation(nn.Module):
    def __init__(self, dim, focal_window=3, focal_level=2, act=F.gelu):
        super().__init__()
        self.focal_level, self.act = focal_level, act
        self.f, self.h = nn.Conv2d(dim, 2 * dim + focal_level + 1, 1), nn.Conv2d(dim, dim, 1)
        self.focal_layers = nn.ModuleList()
        self.kernel_sizes = []
        for k in range(focal_level):
            size = 2 * k + focal_window
            self.focal_layers.append(nn.Sequential(nn.Conv2d(dim, dim, size, 1, size // 2, groups=dim), nn.GELU()))
            self.kernel_sizes.append(size)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        q, ctx, gates = torch.split(self.f(x), [x.shape[1], x.shape[1], self.focal_level + 1], 1)
        out = 0
        for i, layer in enumerate(self.focal_layers):
            ctx = layer(ctx)
            out = out + ctx * gates[:, i : i + 1]
        out = out + self.act(ctx.mean((2, 3), keepdim=True)) * gates[:, self.focal_level :]
        return self.proj(q * self.h(out))


@register(keeps_channels)
class MetaFormerBlock(nn.Module):
    """The token mixer and the norm are classes, or partials of them, that the block keeps."""

    class Pooling(nn.Module):
        def __init__(self, pool_size=3):
            super().__init__()
            self.pool = nn.AvgPool2d(pool_size, 1, pool_size // 2, count_include_pad=False)

        def forward(self, x):
            return self.pool(x) - x

    def __init__(self, dim, mlp=Mlp):
        super().__init__()
        self.token_mixer_cls, self.mlp_cls = MetaFormerBlock.Pooling, mlp
        self.norm_layer = partial(nn.GroupNorm, 1, eps=1e-6)
        self.norms = {"before": partial(LayerNorm2d, eps=1e-6), "classes": [nn.BatchNorm2d, (nn.Identity, 1)]}
        self.norm1, self.norm2, self.token_mixer = (
            self.norm_layer(dim),
            self.norms["before"](dim),
            self.token_mixer_cls(),
        )
        self.mlp = self.mlp_cls(dim, 2 * dim, use_conv=True)

    def forward(self, x):
        x = x + self.token_mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LayerNormTwoFormats(nn.Module):
    def __init__(self, shape, eps=1e-6, data_format="channels_last"):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.eps, self.data_format, self.normalized_shape = eps, data_format, (shape,)

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


@register(keeps_channels)
class ConvNeXtBlock(nn.Module):
    def __init__(self, dim, drop_path=0.1, layer_scale_init_value=1e-6):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), LayerNormTwoFormats(dim)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(layer_scale_init_value * torch.ones(dim))
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x):
        y = self.pwconv2(self.act(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))))
        return x + self.drop_path((self.gamma * y).permute(0, 3, 1, 2))


@register(keeps_channels)
class SwinWindowAttention(nn.Module):
    def __init__(self, dim, num_heads=4, window=4):
        super().__init__()
        self.num_heads, self.window, self.scale = num_heads, (window, window), (dim // num_heads) ** -0.5
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        trunc_normal_(self.table, std=0.02)
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", relative[..., 0] * (2 * window - 1) + relative[..., 1], persistent=False)
        self.qkv, self.proj, self.softmax = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Softmax(-1)

    def forward(self, x):
        h, w = x.shape[2:]
        a, d = self.window
        x = F.pad(x, (0, -w % d, 0, -h % a))
        high, wide = x.shape[2] // a, x.shape[3] // d
        t = rearrange(x, "b c (y a) (x d) -> (b y x) (a d) c", a=a, d=d)
        q, k, v = rearrange(self.qkv(t), "b n (s h c) -> s b h n c", s=3, h=self.num_heads)
        bias = self.table[self.index.view(-1)].view(a * d, a * d, -1).permute(2, 0, 1)
        t = self.softmax(q @ k.transpose(-2, -1) * self.scale + bias) @ v
        t = self.proj(rearrange(t, "b h n c -> b n (h c)"))
        return rearrange(t, "(b y x) (a d) c -> b c (y a) (x d)", y=high, x=wide, a=a)[..., :h, :w]


@register(keeps_channels)
class RepViTBlock(nn.Module):
    """Re-parametrised by a method of another name, which nobody calls here."""

    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Sequential(
            OrderedDict(c=nn.Conv2d(dim, dim, 3, 1, 1, groups=dim, bias=False), bn=nn.BatchNorm2d(dim))
        )
        self.conv1, self.bn, self.se = nn.Conv2d(dim, dim, 1, groups=dim), nn.BatchNorm2d(dim), SqueezeExcite(dim, 0.25)

    def forward(self, x):
        return self.se(self.bn(self.conv(x) + self.conv1(x) + x))


@register(keeps_channels)
class MambaLikeScan(nn.Module):
    def __init__(self, dim, d_state=4):
        super().__init__()
        self.d_state, self.dt_rank = d_state, math.ceil(dim / 16)
        self.x_proj, self.dt_proj = nn.Linear(dim, self.dt_rank + 2 * d_state, bias=False), nn.Linear(self.dt_rank, dim)
        self.A_logs = nn.Parameter(torch.arange(1, d_state + 1).float().repeat(dim, 1).log())
        self.A_logs._no_weight_decay = True
        self.Ds = nn.Parameter(torch.ones(dim))
        self.forward_core, self.selective_scan = self.forward_corev0, self._scan

    def _scan(self, u, dt, a, b, c, d):
        h, out = torch.zeros(*u.shape[::2], self.d_state, dtype=u.dtype, device=u.device), []
        for i in range(u.shape[1]):
            h = (dt[:, i, :, None] * a).exp() * h + dt[:, i, :, None] * b[:, i, None] * u[:, i, :, None]
            out.append((h * c[:, i, None]).sum(-1))
        return torch.stack(out, 1) + u * d

    def forward_corev0(self, t):
        dt, b, c = self.x_proj(t).split([self.dt_rank, self.d_state, self.d_state], -1)
        return self.selective_scan(t, F.softplus(self.dt_proj(dt)), -self.A_logs.exp(), b, c, self.Ds)

    def forward(self, x):
        t = F.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        y = self.forward_core(t).transpose(1, 2).unflatten(-1, (2, 2))
        return x + F.interpolate(y, x.shape[2:])


@register(keeps_channels)
class DeformableConv(nn.Module):
    def __init__(self, dim, k=3):
        super().__init__()
        self.offset, self.mask = nn.Conv2d(dim, 2 * k * k, k, 1, k // 2), nn.Conv2d(dim, k * k, k, 1, k // 2)
        self.dcn, self.sigmoid = DeformConv2d(dim, dim, k, padding=k // 2), torch.sigmoid
        nn.init.zeros_(self.offset.weight)

    def forward(self, x):
        return self.dcn(x, self.offset(x), self.sigmoid(self.mask(x)))


@register(keeps_channels)
class DCNv4Wrapper(nn.Module):
    """Settings as an object of a data class."""

    def __init__(self, dim, group=4):
        super().__init__()
        self.config, self.slotted, self.frozen = Config(name="dcn"), SlottedConfig(5), FrozenConfig(7, Mode.SLICE)
        self.value_proj, self.offset_mask = nn.Linear(dim, dim), nn.Linear(dim, group * 27 // 8 * 8)
        self.act = self.config.act()

    def forward(self, x):
        y = self.act(self.value_proj(x.permute(0, 2, 3, 1)))
        return y.permute(0, 3, 1, 2) + self.slotted.kernel + self.frozen.kernel * (self.frozen.mode is Mode.SLICE)


@register(keeps_channels)
class KANConv(nn.Module):
    def __init__(self, dim, grid_size=3, spline_order=2, base_activation=nn.SiLU, grid_range=(-1, 1)):
        super().__init__()
        self.grid_size, self.spline_order, self.base_activation = grid_size, spline_order, base_activation()
        step = (grid_range[1] - grid_range[0]) / grid_size
        grid = torch.arange(-spline_order, grid_size + spline_order + 1) * step + grid_range[0]
        self.register_buffer("grid", grid)
        self.base, self.spline = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim * (grid_size + spline_order), dim, 1, bias=False)
        self.grid_range = np.array(grid_range, dtype=np.float32)
        self.step = np.float64(step)

    def forward(self, x):
        u, g = x.tanh()[..., None], self.grid
        bases = ((u >= g[:-1]) & (u < g[1:])).to(x)
        for k in range(1, self.spline_order + 1):
            left = (u - g[: -(k + 1)]) / (g[k:-1] - g[: -(k + 1)]) * bases[..., :-1]
            bases = left + (g[k + 1 :] - u) / (g[k + 1 :] - g[1:-k]) * bases[..., 1:]
        y = bases.movedim(-1, 2).flatten(1, 2)
        return self.base(self.base_activation(x)) + self.spline(y) * float(self.step) * float(self.grid_range[1])


@register(keeps_channels)
class FastKAN(nn.Module):
    class Basis(nn.Module):
        def __init__(self, num=4):
            super().__init__()
            self.centres, self.denominator = (
                nn.Parameter(torch.linspace(-2, 2, num), requires_grad=False),
                np.float32(4 / 3),
            )

        def forward(self, x):
            return (-(((x[..., None] - self.centres) / float(self.denominator)) ** 2)).exp()

    def __init__(self, dim):
        super().__init__()
        self.norm, self.rbf, self.out = (
            nn.InstanceNorm2d(dim),
            FastKAN.Basis(),
            EinMix("b c h w g -> b d h w", weight_shape="c g d", c=dim, g=4, d=dim),
        )

    def forward(self, x):
        return self.out(self.rbf(self.norm(x)))


@register(keeps_channels)
class CoordAtt(nn.Module):
    def __init__(self, inp, reduction=8):
        super().__init__()
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        mip = max(8, inp // reduction)
        self.conv1, self.bn1, self.act = nn.Conv2d(inp, mip, 1), nn.BatchNorm2d(mip), h_swish()
        self.conv_h, self.conv_w = nn.Conv2d(mip, inp, 1), nn.Conv2d(mip, inp, 1)

    def forward(self, x):
        h, w = x.shape[2:]
        y = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], 2)
        a, b = self.act(self.bn1(self.conv1(y))).split([h, w], 2)
        return x * self.conv_h(a).sigmoid() * self.conv_w(b.permute(0, 1, 3, 2)).sigmoid()


@register(keeps_channels)
class MyECA(nn.Module):
    def __init__(self, channel, k_size=3):
        super().__init__()
        self.avg_pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, k_size, padding=k_size // 2, bias=False)

    def forward(self, x):
        y = self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid()


@register(keeps_channels)
class MyCBAM(nn.Module):
    def __init__(self, c1, ratio=8):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(c1, c1 // ratio, 1), nn.ReLU(), nn.Conv2d(c1 // ratio, c1, 1))
        self.spatial, self.pools = nn.Conv2d(2, 1, 7, padding=3), [F.adaptive_avg_pool2d, F.adaptive_avg_pool2d]

    def forward(self, x):
        x = x * sum(self.mlp(pool(x, 1)) for pool in self.pools).sigmoid()
        return x * self.spatial(torch.cat([x.mean(1, True), x.amax(1, True)], 1)).sigmoid()


@register(keeps_channels)
class EMAAttention(nn.Module):
    def __init__(self, channels, factor=8):
        super().__init__()
        self.groups = factor
        c = channels // factor
        self.gn, self.conv1x1, self.conv3x3 = nn.GroupNorm(c, c), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 3, 1, 1)

    def forward(self, x):
        g = x.reshape(x.shape[0] * self.groups, -1, *x.shape[2:])
        h, w = self.conv1x1(torch.cat([g.mean(3, True), g.mean(2, True).mT], 2)).split(x.shape[2:], 2)
        a, b = self.gn(g * h.sigmoid() * w.mT.sigmoid()), self.conv3x3(g)
        weights = a.mean((2, 3))[:, None].softmax(-1) @ b.flatten(2) + b.mean((2, 3))[:, None].softmax(-1) @ a.flatten(
            2
        )
        return (g * weights.view(-1, 1, *x.shape[2:]).sigmoid()).reshape(x.shape)


@register(keeps_channels)
class LSKBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv0, self.spatial = (
            nn.Conv2d(dim, dim, 5, padding=2, groups=dim),
            nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3),
        )
        self.conv1, self.conv2, self.squeeze, self.conv = (
            nn.Conv2d(dim, dim // 2, 1),
            nn.Conv2d(dim, dim // 2, 1),
            nn.Conv2d(2, 2, 7, padding=3),
            nn.Conv2d(dim // 2, dim, 1),
        )

    def forward(self, x):
        a = self.conv0(x)
        a, b = self.conv1(a), self.conv2(self.spatial(a))
        y = torch.cat([a, b], 1)
        s = self.squeeze(torch.cat([y.mean(1, True), y.amax(1, True)], 1)).sigmoid()
        return x * self.conv(a * s[:, :1] + b * s[:, 1:])


@register(keeps_channels)
class TripletGate(nn.Module):
    def __init__(self, dim, kernel_size=7):
        super().__init__()
        self.gates = nn.ModuleDict({k: Conv(2, 1, kernel_size, act=False) for k in ("hc", "cw", "hw")})
        self.orders = {"hc": (0, 3, 2, 1), "cw": (0, 2, 1, 3), "hw": (0, 1, 2, 3)}

    def forward(self, x):
        out = 0
        for name, order in self.orders.items():
            y = x.permute(order)
            out = out + (y * self.gates[name](torch.cat([y.amax(1, True), y.mean(1, True)], 1)).sigmoid()).permute(
                order
            )
        return out / 3


@register(keeps_channels)
class ShuffleAttention(nn.Module):
    def __init__(self, channel, G=4):
        super().__init__()
        self.G, c = G, channel // (2 * G)
        self.gn = nn.GroupNorm(c, c)
        for name in ("cweight", "cbias", "sweight", "sbias"):
            setattr(self, name, nn.Parameter(torch.zeros(1, c, 1, 1)))
        self.apply(self._init)
        self.shuffle = ShuffleAttention.channel_shuffle

    @staticmethod
    def channel_shuffle(x, groups):
        return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

    def _init(self, m):
        if isinstance(m, nn.GroupNorm):
            nn.init.ones_(m.weight)

    def forward(self, x):
        a, b = x.reshape(x.shape[0] * self.G, -1, *x.shape[2:]).chunk(2, 1)
        a = a * (self.cweight * a.mean((2, 3), True) + self.cbias).sigmoid()
        b = b * (self.sweight * self.gn(b) + self.sbias).sigmoid()
        return self.shuffle(torch.cat([a, b], 1).reshape(x.shape), 2)


@register(keeps_channels)
class SKFusion(nn.Module):
    def __init__(self, dim, kernels=(1, 3)):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    [("conv", nn.Conv2d(dim, dim, k, padding=k // 2)), ("bn", nn.BatchNorm2d(dim)), ("relu", nn.ReLU())]
                )
            )
            for k in kernels
        )
        self.fc, self.fcs, self.stages = (
            nn.Linear(dim, 8),
            nn.ModuleList(nn.Linear(8, dim) for _ in kernels),
            [Stage(1, 2), Stage(3, 4)],
        )

    def forward(self, x):
        feats = torch.stack([c(x) for c in self.convs])
        z = self.fc(feats.sum(0).mean((2, 3)))
        return (torch.stack([fc(z) for fc in self.fcs]).softmax(0)[..., None, None] * feats).sum(0)


@register(keeps_channels)
class Involution(nn.Module):
    def __init__(self, channels, kernel_size=3):
        super().__init__()
        self.kernel_size, self.groups = kernel_size, channels // 16
        self.conv1, self.conv2 = (
            Conv(channels, channels // 4, 1),
            nn.Conv2d(channels // 4, kernel_size**2 * self.groups, 1),
        )
        self.unfold = nn.Unfold(kernel_size, 1, kernel_size // 2, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        weight = self.conv2(self.conv1(x)).view(b, self.groups, self.kernel_size**2, h, w).unsqueeze(2)
        return (
            (weight * self.unfold(x).view(b, self.groups, c // self.groups, self.kernel_size**2, h, w))
            .sum(3)
            .view(b, c, h, w)
        )


@register(keeps_channels)
class ODConvLike(nn.Module):
    """Attention functions that the constructor chooses among methods."""

    def __init__(self, dim, kernel_num=2):
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.randn(kernel_num, dim, dim, 3, 3) * 0.02), nn.Linear(dim, kernel_num)
        self.func_channel = self.skip if kernel_num == 1 else self.get_kernel_attention
        self.funcs = [self.skip, self.get_kernel_attention]

    def skip(self, _):
        return 1.0

    def get_kernel_attention(self, x):
        return self.fc(x.mean((2, 3))).softmax(-1)

    def forward(self, x):
        a = self.func_channel(x)
        w = torch.einsum("bk,koihw->boihw", a, self.weight)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), w.flatten(0, 1), padding=1, groups=x.shape[0])
        return y.view_as(x) * self.funcs[0](x)


@register(keeps_channels)
class WaveletConv(nn.Module):
    """Filters of numpy's, and a module-level function."""

    def __init__(self, dim):
        super().__init__()
        self.filters = np.array([[1, 1], [1, -1]], dtype=np.float32) / 2
        self.names, self.levels, self.scale = np.array([1, 2]), np.int64(1), scale_by_two
        self.register_buffer(
            "bank",
            torch.as_tensor(np.einsum("ai,bj->abij", self.filters, self.filters).reshape(4, 1, 2, 2).repeat(dim, 0)),
        )
        self.mix = nn.Conv2d(4 * dim, 4 * dim, 1, groups=dim)

    def forward(self, x):
        y = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        y = F.conv2d(y.repeat_interleave(1, 1), self.bank, stride=2, groups=x.shape[1])
        y = F.conv_transpose2d(self.mix(y), self.bank, stride=2, groups=x.shape[1])
        return self.scale(y[..., : x.shape[2], : x.shape[3]]) * int(self.levels)


@register(keeps_channels)
class FourierUnit(nn.Module):
    def __init__(self, dim, mode="SPLIT"):
        super().__init__()
        self.mode, self.flags, self.conv = Mode[mode], Flags.A | Flags.B, nn.Conv2d(2 * dim, 2 * dim, 1)
        self.by_mode = {Mode.SPLIT: 1, Mode.SLICE: 2}

    def forward(self, x):
        y = torch.fft.rfft2(x.float(), norm="ortho")
        y = self.conv(torch.cat([y.real, y.imag], 1)) * self.by_mode[self.mode]
        return torch.fft.irfft2(torch.complex(*y.chunk(2, 1)), s=x.shape[2:], norm="ortho")


@register(keeps_channels)
class GlobalFilter(nn.Module):
    def __init__(self, dim, h=8, w=5):
        super().__init__()
        self.complex_weight, self.size = nn.Parameter(torch.randn(dim, h, w, 2) * 0.02), torch.Size((h, w))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, x):
        y = torch.fft.rfft2(x.to(self.dtype), norm="ortho")
        real, imag = (
            F.interpolate(z.movedim(-1, 0), y.shape[2:])[0]
            for z in (self.complex_weight[..., :1], self.complex_weight[..., 1:])
        )
        real, imag = real if real.ndim == 3 else real[None], imag if imag.ndim == 3 else imag[None]
        return torch.fft.irfft2(y * torch.complex(real, imag), s=x.shape[2:], norm="ortho")


@register(keeps_channels)
class MixerBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mix = nn.Sequential(
            Rearrange("b c h w -> b h w c"),
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.GELU(),
            Rearrange("b h w c -> b c h w"),
        )
        self.pool = Reduce("b c h w -> b c () ()", "mean")

    def forward(self, x):
        return x + self.mix(x) * self.pool(x).sigmoid()


@register(keeps_channels)
class GatedMLP(nn.Module):
    """An activation chosen from a table of classes and functions."""

    ACTIVATIONS: ClassVar = {"gelu": nn.GELU, "relu": nn.ReLU}

    def __init__(self, dim, act="gelu"):
        super().__init__()
        self.table = {"gelu": F.gelu, "tanh": torch.tanh, "silu": F.silu, "sigmoid": torch.sigmoid}
        self.act_cls, self.fc1, self.fc2, self.key = (
            self.ACTIVATIONS[act],
            nn.Conv2d(dim, 2 * dim, 1),
            nn.Conv2d(dim, dim, 1),
            act,
        )

    def forward(self, x):
        a, b = self.fc1(x).chunk(2, 1)
        return self.fc2(a * self.table[self.key](b)) + self.act_cls()(x)


@register(keeps_channels)
class NamespaceAttention(nn.Module):
    """Settings as in the configurations of papers' repositories."""

    def __init__(self, dim):
        super().__init__()
        self.args, self.opt, self.plain = (
            argparse.Namespace(heads=4, eps=1e-6),
            types.SimpleNamespace(alpha=0.5),
            PlainConfig(3),
        )
        self.attn = nn.MultiheadAttention(dim, self.args.heads, batch_first=True)

    def forward(self, x):
        t = x.flatten(2).transpose(1, 2)
        t, _ = self.attn(t, t, t)
        return x + self.opt.alpha * t.transpose(1, 2).reshape(x.shape)


@register(keeps_channels)
class HookedBlock(nn.Module):
    """It watches one of its own layers."""

    def __init__(self, dim):
        super().__init__()
        self.conv, self.seen = Conv(dim, dim, 3), 0
        self.conv.register_forward_hook(self.watch)

    def watch(self, _module, _inputs, output):
        return output + 1

    def forward(self, x):
        return self.conv(x)


@register(keeps_channels)
class GhostLike(nn.Module):
    def __init__(self, dim, act=True):
        super().__init__()
        self.primary, self.cheap = Conv(dim, dim // 2, 1, act=act), DWConv(dim // 2, dim // 2, 5)

    def forward(self, x):
        y = self.primary(x)
        return torch.cat((y, self.cheap(y)), 1)


@register(keeps_channels)
class ParNetAttention(nn.Module):
    def __init__(self, channel):
        super().__init__()
        self.sse = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channel, channel, 1), nn.Sigmoid())
        self.conv1x1 = nn.Sequential(nn.Conv2d(channel, channel, 1), nn.BatchNorm2d(channel))
        self.conv3x3, self.silu = (
            nn.Sequential(nn.Conv2d(channel, channel, 3, padding=1), nn.BatchNorm2d(channel)),
            nn.SiLU(),
        )

    def forward(self, x):
        return self.silu(self.conv1x1(x) + self.conv3x3(x) + self.sse(x) * x)


@register(keeps_channels)
class LinearAttention(nn.Module):
    def __init__(self, dim, feature_map=None):
        super().__init__()
        self.qkv, self.feature_map = nn.Conv2d(dim, 3 * dim, 1), feature_map or F.elu

    def forward(self, x):
        q, k, v = (t.flatten(2) for t in self.qkv(x).chunk(3, 1))
        q, k = self.feature_map(q) + 1, self.feature_map(k) + 1
        y = (v @ k.transpose(1, 2)) @ q / (q * k.sum(-1, True)).sum(1, True).clamp(min=1e-6)
        return x + y.view_as(x)


@register(keeps_channels)
class GRUMixer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gru, self.proj = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True), nn.Linear(dim, dim)

    def forward(self, x):
        y, _ = self.gru(x.mean(3).transpose(1, 2))
        return x + self.proj(y).transpose(1, 2)[..., None]


@register(keeps_channels)
class BlurPoolBlock(nn.Module):
    """A size by a property, and a cache that is empty at first."""

    def __init__(self, dim, filt_size=3):
        super().__init__()
        self.filt_size, self._cache, self.pads = filt_size, None, [filt_size // 2] * 4
        coefficients = torch.tensor((np.poly1d((0.5, 0.5)) ** (filt_size - 1)).coeffs.astype(np.float32))
        self.register_buffer("filt", (coefficients[:, None] * coefficients)[None, None].repeat(dim, 1, 1, 1))

    @property
    def size(self):
        return self.filt_size

    def forward(self, x):
        self._cache = x.shape
        return F.conv2d(F.pad(x, self.pads, "reflect"), self.filt, groups=x.shape[1])


@register(keeps_channels)
class DynamicTanh(nn.Module):
    def __init__(self, dim, alpha=0.5):
        super().__init__()
        self.alpha, self.weight, self.bias = (
            nn.Parameter(torch.tensor([alpha])),
            nn.Parameter(torch.ones(dim)),
            nn.Parameter(torch.zeros(dim)),
        )

    def forward(self, x):
        return (self.alpha * x).tanh() * self.weight[:, None, None] + self.bias[:, None, None]


@register(keeps_channels)
class TiedBlock(nn.Module):
    """One layer under two names, as weight sharing does."""

    def __init__(self, dim):
        super().__init__()
        self.a = nn.Conv2d(dim, dim, 1)
        self.b, self.all = self.a, nn.ModuleList([self.a])
        self.se = SqueezeExcitation(dim, max(1, dim // 4), scale_activation=nn.Hardsigmoid)

    def forward(self, x):
        return self.se(self.b(self.a(x)))


@register(keeps_channels)
class DilatedReparam(nn.Module):
    """Branches that are made by a loop and found by name."""

    def __init__(self, dim, kernel=7):
        super().__init__()
        self.kernels, self.dilates = [5, 3], [1, 2]
        self.lk_origin, self.origin_bn = (
            nn.Conv2d(dim, dim, kernel, 1, kernel // 2, groups=dim, bias=False),
            nn.BatchNorm2d(dim),
        )
        for k, r in zip(self.kernels, self.dilates):
            setattr(self, f"dil_conv_k{k}_{r}", nn.Conv2d(dim, dim, k, 1, r * (k - 1) // 2, r, dim, bias=False))
            self.__setattr__(f"dil_bn_k{k}_{r}", nn.BatchNorm2d(dim))

    def forward(self, x):
        y = self.origin_bn(self.lk_origin(x))
        for k, r in zip(self.kernels, self.dilates):
            y = y + getattr(self, f"dil_bn_k{k}_{r}")(self.__getattr__(f"dil_conv_k{k}_{r}")(x))
        return y


@register(keeps_channels)
class AxialAttention(nn.Module):
    def __init__(self, dim, heads=4):
        super().__init__()
        self.heads, self.to_qkv, self.fuse = heads, nn.Linear(dim, 3 * dim), scale_by_two
        self.rows, self.columns = partial(rearrange, pattern="b c h w -> (b h) w c"), "b c h w -> (b w) h c"

    def attend(self, t):
        q, k, v = rearrange(self.to_qkv(t), "b n (s h c) -> s b h n c", s=3, h=self.heads)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)")

    def forward(self, x):
        w = x.shape[3]
        y = rearrange(self.attend(rearrange(x, self.columns)), "(b w) h c -> b c h w", w=w)
        return x + y


@register(keeps_channels)
class LayerScaled(nn.Sequential):
    """A subclass of a container."""

    def __init__(self, dim):
        super().__init__(nn.Conv2d(dim, dim, 3, 1, 1), nn.PReLU(dim), nn.Conv2d(dim, dim, 1))
        self.layers = {"first": 0, "last": 2}

    def forward(self, x):
        return x + self[self.layers["last"]](self[1](self[self.layers["first"]](x)))


@register(keeps_channels)
class GRNBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma, self.beta = nn.ParameterList([nn.Parameter(torch.zeros(1, dim, 1, 1)) for _ in range(2)])
        self.scales = nn.ParameterDict({"x": nn.Parameter(torch.ones(1))})

    def forward(self, x):
        g = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * g / (g.mean(1, True) + 1e-6)) + self.beta + self.scales["x"] * x


@register(keeps_channels)
class OrthogonalRotation(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.rotation = nn.Parameter(torch.eye(dim))
        self.ops = OrderedDict([("mul", torch.matmul), ("cat", torch.cat)])

    def forward(self, x):
        return self.ops["mul"](x.movedim(1, -1), self.rotation).movedim(-1, 1)
