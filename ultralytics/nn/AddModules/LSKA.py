"""LSKA: large separable kernel attention.

Paper: "Large Separable Kernel Attention: Rethinking the Large Kernel Attention Design in CNN", Expert Systems with
Applications 2024, https://arxiv.org/abs/2309.01439

    y = x * W (dw_v(dw_h(dw_v(dw_h(x))))), the second pair dilated

Depth-wise convolutions of one row and of one column, which together see k x k positions.

Differences from the paper: none.
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register

__all__ = ("LSKA",)

# Of a kernel size: length of the first pair, length and dilation of the second one
KERNELS = {7: (3, 3, 2), 11: (3, 5, 2), 23: (5, 7, 3), 35: (5, 11, 3), 41: (5, 13, 3), 53: (5, 17, 3)}


@register(keeps_channels, yields=True)
class LSKA(nn.Module):
    """Scale each value by what depth-wise convolutions of a large kernel make of its surroundings.

    Args:
        dim: Channels of the input and the output.
        k_size: Kernel size: 7, 11, 23, 35, 41 or 53.

    Shapes:
        Input and output (B, dim, H, W).

    Raises:
        ValueError: For another kernel size.
    """

    def __init__(self, dim: int, k_size: int = 7):
        super().__init__()
        if k_size not in KERNELS:
            raise ValueError(f"k_size={k_size}; choose one of {', '.join(map(str, KERNELS))}")
        near, far, dilation = KERNELS[k_size]
        self.conv0h, self.conv0v = make_pair(dim, near, 1)
        self.conv_spatial_h, self.conv_spatial_v = make_pair(dim, far, dilation)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, dim, H, W) to the same."""
        near = self.conv0v(self.conv0h(x))
        return x * self.conv1(self.conv_spatial_v(self.conv_spatial_h(near)))


def make_pair(dim: int, length: int, dilation: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Build depth-wise convolutions of one row and of one column."""
    reach = dilation * (length - 1) // 2
    row = nn.Conv2d(dim, dim, (1, length), padding=(0, reach), dilation=(1, dilation), groups=dim)
    column = nn.Conv2d(dim, dim, (length, 1), padding=(reach, 0), dilation=(dilation, 1), groups=dim)
    return row, column
