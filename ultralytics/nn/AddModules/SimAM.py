"""SimAM: an attention without parameters, from the energy of each neuron.

Paper: "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks", ICML 2021,
https://proceedings.mlr.press/v139/yang21o.html

    y = x * sigmoid((x - mean)^2 / (4 (variance + lambda)) + 1/2)

with the mean and the variance of a channel over the positions of its map, the latter over H W - 1.

Differences from the paper: a map of one position has a variance of 0, where the paper's code divides by 0. The squares
are summed in fp32.
"""

from __future__ import annotations

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import keeps_channels, register

__all__ = ("SimAM",)


@register(keeps_channels, yields=True)
class SimAM(nn.Module):
    """Scale each value by how much it differs from the others of its channel.

    Args:
        e_lambda: Added to the variance.

    Shapes:
        Input and output (B, C, H, W).
    """

    def __init__(self, e_lambda: float = 1e-4):
        super().__init__()
        self.e_lambda = e_lambda

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to the same."""
        others = max(1, x.shape[2] * x.shape[3] - 1)
        squares = (x - x.mean((2, 3), keepdim=True)).float().square()
        variance = squares.sum((2, 3), keepdim=True) / others
        return x * (squares / (4 * (variance + self.e_lambda)) + 0.5).sigmoid().to(x.dtype)
