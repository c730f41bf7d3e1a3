"""Users' attention modules, each with what such modules keep beside weights.

The tests import this file as `ultralytics.nn.AddModules.users_attention`, as if a user had put it there.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import trunc_normal_
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register
from ultralytics.nn.modules.conv import Conv


def scale_by_two(x):
    return 2 * x


class h_swish(nn.Module):
    def forward(self, x):
        return x * F.relu6(x + 3) / 6


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
