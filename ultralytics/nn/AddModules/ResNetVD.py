"""ResNet-vd, the backbone of the official RT-DETR-R18 to -R101.

Bag of Tricks for Image Classification with Convolutional Neural Networks, https://arxiv.org/abs/1812.01187 (ResNet-D),
as RT-DETR, https://arxiv.org/abs/2304.08069, uses it. A residual block computes

    y = relu(f(x) + s(x))

where f is two 3x3 convolutions (basic) or a 1x1, a 3x3 and a 1x1 one (bottleneck), with the stride on the first 3x3,
and s is the identity, but in a stage's first block a 1x1 convolution, behind a 2x2 average pool where the stride is 2.
The stem is three 3x3 convolutions and a max pool.

The one difference from the paper is RT-DETR's: the first block of the first stage has its 1x1 convolution also where
the channels stay what they are, in R18 and R34.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ultralytics.nn.AddModules.registry import changes_channels, register
from ultralytics.nn.modules.conv import Conv

__all__ = "ResNetVDBlock", "ResNetVDStage", "ResNetVDStem"

ReLU: Any = nn.ReLU  # upstream's annotation of `act` is narrower than what it takes
EXPANSION = 4  # output channels of a bottleneck, per channel inside


class ResNetVDBlock(nn.Module):
    """A residual block of ResNet-vd, with two 3x3 convolutions or with a bottleneck.

    Args:
        c1: Channels of the input.
        c2: Channels of the output.
        s: Stride, 1 or 2.
        bottleneck: Whether the block is a bottleneck of a quarter of the output's channels.
        project: Whether the shortcut has a convolution.
    """

    def __init__(self, c1: int, c2: int, s: int = 1, bottleneck: bool = False, project: bool = False):
        super().__init__()
        if bottleneck:
            c = c2 // EXPANSION
            self.cv1 = Conv(c1, c, 1, act=ReLU())
            self.cv2 = Conv(c, c, 3, s, act=ReLU())
            self.cv3 = Conv(c, c2, 1, act=False)
        else:
            self.cv1 = Conv(c1, c2, 3, s, act=ReLU())
            self.cv2 = Conv(c2, c2, 3, act=False)
        projection = Conv(c1, c2, 1, act=False) if project else nn.Identity()
        # An odd map keeps its last row and column, as the convolution of stride 2 beside the pool does
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), projection) if s == 2 else projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, c1, H, W) to (B, c2, ⌈H / s⌉, ⌈W / s⌉)."""
        return F.relu(self.branch(x) + self.shortcut(x))

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """Compute what is added to the shortcut."""
        x = self.cv2(self.cv1(x))
        return self.cv3(x) if hasattr(self, "cv3") else x


@register(changes_channels)
class ResNetVDStem(nn.Module):
    """Three 3x3 convolutions and a 3x3 max pool: stride 4.

    Row: `[-1, 1, ResNetVDStem, [64]]`.

    Args:
        c1: Channels of the image.
        c2: Channels of the output; the first two convolutions have half of them.
    """

    def __init__(self, c1: int, c2: int = 64):
        super().__init__()
        self.convs = nn.Sequential(
            Conv(c1, c2 // 2, 3, 2, act=ReLU()),
            Conv(c2 // 2, c2 // 2, 3, act=ReLU()),
            Conv(c2 // 2, c2, 3, act=ReLU()),
        )
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, c1, H, W) to (B, c2, H / 4, W / 4), rounded up."""
        return self.pool(self.convs(x))


@register(changes_channels)
class ResNetVDStage(nn.Module):
    """A stage of ResNet-vd.

    Row: `[-1, 2, ResNetVDStage, [128, 2]]`: two basic blocks, 128 channels, stride 2;
    `[-1, 4, ResNetVDStage, [512, 2, True]]`: four bottlenecks of 128 channels inside, 512 outside.

    Args:
        c1: Channels of the input.
        c2: Channels of the output.
        n: Number of blocks; a row's repeats.
        s: Stride of the first block, 1 or 2.
        bottleneck: Whether the blocks are bottlenecks of a quarter of the output's channels.

    Raises:
        ValueError: For a stride other than 1 or 2, or channels that a bottleneck cannot take a quarter of.
    """

    block = ResNetVDBlock

    def __init__(self, c1: int, c2: int, n: int = 1, s: int = 2, bottleneck: bool = False):
        super().__init__()
        if s not in (1, 2):
            raise ValueError(f"stride {s!r}; expected 1 or 2")
        if bottleneck and c2 % EXPANSION:
            raise ValueError(f"{c2} channels of a bottleneck; expected a multiple of {EXPANSION}")
        first = self.block(c1, c2, s, bottleneck, project=True)
        self.blocks = nn.Sequential(first, *(self.block(c2, c2, 1, bottleneck) for _ in range(n - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, c1, H, W) to (B, c2, ⌈H / s⌉, ⌈W / s⌉)."""
        return self.blocks(x)
