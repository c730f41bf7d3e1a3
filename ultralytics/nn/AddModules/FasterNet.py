"""FasterNet: a block around a partial convolution, of a quarter of the channels.

Paper: "Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks", CVPR 2023, https://arxiv.org/abs/2303.03667

    p(x) = [conv3x3(x_1); x_2], x_1 the first C / 4 channels
    y = x + W2 relu(norm(W1 p(x)))

Differences from the paper: none. timm's `fasternet` has the same block.
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register
from ultralytics.utils.torch_utils import fuse_conv_and_bn

__all__ = "FasterNetBlock", "PartialConv"


@register(keeps_channels, yields=True)
class PartialConv(nn.Module):
    """Convolve the first channels, and leave the others.

    Args:
        dim: Channels of the input and the output.
        n_div: Share of the channels that are convolved, 1 / n_div.
        kernel_size: Of the convolution; odd.

    Shapes:
        Input and output (B, dim, H, W).
    """

    def __init__(self, dim: int, n_div: int = 4, kernel_size: int = 3):
        super().__init__()
        self.part = dim // n_div
        self.partial_conv3 = nn.Conv2d(self.part, self.part, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        first, rest = x.split([self.part, x.shape[1] - self.part], dim=1)
        return torch.cat([self.partial_conv3(first), rest], dim=1)


@register(keeps_channels, yields=True)
class FasterNetBlock(nn.Module):
    """A partial convolution and two layers over the channels, with a residual.

    Args:
        dim: Channels of the input and the output.
        n_div: Share of the channels that are convolved, 1 / n_div.
        mlp_ratio: Channels between the two layers over `dim`.

    Shapes:
        Input and output (B, dim, H, W).
    """

    def __init__(self, dim: int, n_div: int = 4, mlp_ratio: float = 2.0):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.spatial_mixing = PartialConv(dim, n_div)
        self.conv = nn.Conv2d(dim, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        return x + self.out(self.act(self.norm(self.conv(self.spatial_mixing(x)))))

    def fuse(self) -> None:
        """Fold the batch norm into the convolution before it, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_and_bn(self.conv, self.norm), nn.Identity()
