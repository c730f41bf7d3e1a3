"""The cases to measure: the published sizes of each family, each family on growing maps, and the models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw
from ultralytics.nn.AddModules.EMO import EMO_1M, EMO_6M, iRMB
from ultralytics.nn.AddModules.FLA import FocusedLinearAttention
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling
from ultralytics.nn.modules.block import HGBlock, HGStem
from ultralytics.nn.modules.conv import Conv, DWConv
from ultralytics.nn.modules.transformer import AIFI


class SelfAttention(nn.Module):
    """torch's multi-head attention over the positions of a map."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        tokens = x.flatten(2).transpose(1, 2)
        out, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return out.transpose(1, 2).reshape(x.shape)


def build_hgnet() -> nn.Module:
    """Build the backbone of upstream's rtdetr-l."""
    large = {"lightconv": True, "shortcut": False}
    return nn.Sequential(
        HGStem(3, 32, 48),
        HGBlock(48, 48, 128, 3, 6),
        DWConv(128, 128, 3, 2, 1, act=False),
        HGBlock(128, 96, 512, 3, 6),
        DWConv(512, 512, 3, 2, 1, act=False),
        HGBlock(512, 192, 1024, 5, 6, **large),
        HGBlock(1024, 192, 1024, 5, 6, True, True),
        HGBlock(1024, 192, 1024, 5, 6, True, True),
        DWConv(1024, 1024, 3, 2, 1, act=False),
        HGBlock(1024, 384, 2048, 5, 6, **large),
    )


@dataclass(frozen=True)
class Case:
    """One of this project's modules at one size.

    Attributes:
        family: FLA, BRA, EMO or MQA.
        build: Makes the module.
        shape: Of its input, (B, C, H, W).
        detail: The difference to other cases of the same family and shape.
    """

    family: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    detail: str = ""

    @property
    def name(self) -> str:
        """Family, batch x channels x height x width, and the detail."""
        return " ".join([self.family, "x".join(map(str, self.shape)), self.detail]).strip()

    def plain_modules(self) -> dict[str, Callable[[], nn.Module]]:
        """Plain modules of upstream and torch that could replace this module."""
        batch, channels, height, width = self.shape
        if self.family == "EMO":
            return {"HGNet": build_hgnet}
        found = {
            "Conv 3x3": lambda: Conv(channels, channels, 3),
            "MHA": lambda: SelfAttention(channels, max(1, channels // 32)),
        }
        if batch * 8 * (height * width) ** 2 <= SCORES:  # AIFI holds the scores in memory, more than once
            found["AIFI"] = lambda: AIFI(channels, 2 * channels, 8)
        return found


def fla(dim: int) -> Callable[[], nn.Module]:
    """Return a builder of focused linear attention."""
    return lambda: FocusedLinearAttention(dim)


def bra(dim: int, heads: int) -> Callable[[], nn.Module]:
    """Return a builder of bi-level routing attention."""
    return lambda: BiLevelRoutingAttention_nchw(dim, heads)


def mqa(dim: int, kv_strides: int = 1) -> Callable[[], nn.Module]:
    """Return a builder of multi-query attention."""
    return lambda: MultiQueryAttentionLayerWithDownSampling(dim, 2, 48, 48, 1, 1, kv_strides)


def irmb(dim: int) -> Callable[[], nn.Module]:
    """Return a builder of a block as in the third stage of EMO."""
    options = {"norm_layer": "ln_2d", "dw_ks": 5, "se_ratio": 1, "dim_head": 20, "qkv_bias": True, "attn_pre": True}
    return lambda: iRMB(dim, dim, exp_ratio=3.0, **options)


CASES = [
    Case("FLA", fla(1024), (2, 1024, 20, 20)),
    Case("FLA", fla(1024), (2, 1024, 40, 40)),
    Case("BRA", bra(1024, 1024), (2, 1024, 20, 20), "1024 heads"),
    Case("BRA", bra(1024, 32), (2, 1024, 20, 20), "32 heads"),
    Case("BRA", bra(1024, 1), (2, 1024, 40, 40), "1 head"),
    Case("BRA", bra(256, 8), (1, 256, 80, 80), "8 heads"),
    Case("EMO", EMO_1M, (1, 3, 640, 640), "1M"),
    Case("EMO", EMO_6M, (1, 3, 640, 640), "6M"),
    Case("MQA", mqa(256), (2, 256, 40, 40)),
    Case("MQA", mqa(64), (1, 64, 80, 80)),
    Case("MQA", mqa(64), (1, 64, 160, 160)),
]
SCORES = 2**30  # most attention scores of all heads to compute, 4 GiB in fp32
SIDES = (20, 40, 80, 160)
GROWTH = {
    "FLA": [Case("FLA", fla(256), (1, 256, s, s)) for s in SIDES],
    "BRA": [Case("BRA", bra(256, 8), (1, 256, s, s), "8 heads") for s in SIDES],
    "EMO": [Case("EMO", irmb(80), (1, 80, s, s), "iRMB") for s in SIDES],
    "MQA": [Case("MQA", mqa(64), (1, 64, s, s)) for s in SIDES],
    "MQA_SR": [Case("MQA", mqa(64, 2), (1, 64, s, s), "SR") for s in SIDES],
}

BASELINE = "rtdetr-l"
PUBLISHED = [
    "rtdetr-l-FLA",
    "rtdetr-l-HGBlock_FLA",
    "rtdetr-l-Biformer",
    "rtdetr-l-HGBlock_Biformer",
    "rtdetr-l-EMO",
    "rtdetr-ResNetLayer_MQA",
]
LARGER = ["rtdetr-l-EMO_2M", "rtdetr-l-EMO_5M", "rtdetr-l-EMO_6M", "rtdetr-ResNetLayer_MQA_SR"]
