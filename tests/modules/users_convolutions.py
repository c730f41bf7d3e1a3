"""Users' convolutions and filters, each with what such modules keep beside weights.

The tests import this file as `ultralytics.nn.AddModules.users_convolutions`, as if a user had put it there.
"""

from collections import OrderedDict
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops.layers.torch import EinMix
from timm.layers import DropPath, SqueezeExcite
from torch import nn
from torchvision.ops import DeformConv2d

from ultralytics.nn.AddModules.registry import keeps_channels, register
from ultralytics.nn.modules.conv import Conv, DWConv


def scale_by_two(x):
    return 2 * x


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
class DeformableConv(nn.Module):
    def __init__(self, dim, k=3):
        super().__init__()
        self.offset, self.mask = nn.Conv2d(dim, 2 * k * k, k, 1, k // 2), nn.Conv2d(dim, k * k, k, 1, k // 2)
        self.dcn, self.sigmoid = DeformConv2d(dim, dim, k, padding=k // 2), torch.sigmoid
        nn.init.zeros_(self.offset.weight)

    def forward(self, x):
        return self.dcn(x, self.offset(x), self.sigmoid(self.mask(x)))


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
class GhostLike(nn.Module):
    def __init__(self, dim, act=True):
        super().__init__()
        self.primary, self.cheap = Conv(dim, dim // 2, 1, act=act), DWConv(dim // 2, dim // 2, 5)

    def forward(self, x):
        y = self.primary(x)
        return torch.cat((y, self.cheap(y)), 1)


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
