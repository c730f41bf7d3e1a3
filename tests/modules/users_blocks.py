"""Users' blocks of several layers, each with what such modules keep beside weights.

The tests import this file as `ultralytics.nn.AddModules.users_blocks`, as if a user had put it there.
"""

import math
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange, Reduce
from timm.layers import LayerNorm2d, Mlp
from torch import nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from ultralytics.nn.AddModules.registry import keeps_channels, register
from ultralytics.nn.modules.conv import Conv


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
class GRUMixer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gru, self.proj = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True), nn.Linear(dim, dim)

    def forward(self, x):
        y, _ = self.gru(x.mean(3).transpose(1, 2))
        return x + self.proj(y).transpose(1, 2)[..., None]


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
