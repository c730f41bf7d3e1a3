"""Users' modules that keep their settings: enumerations, data classes, name spaces, tables of functions.

The tests import this file as `ultralytics.nn.AddModules.users_settings`, as if a user had put it there.
"""

import argparse
import enum
import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register


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
