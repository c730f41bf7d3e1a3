"""Measure the modules of the shelf against their floors.

A floor is what no form of the equation leaves out, with torch's kernels: the module's convolutions, one pass over the
map for each of its means and maxima, one for each function of the whole map, and the product or the sum at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from _shared.timing import time_in_turn
from ultralytics.nn.AddModules import NAMES

SHAPES = (2, 256, 40, 40), (2, 256, 80, 80)


def pool_and_scale(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Take the mean of each channel, and scale the map by a number a channel."""
    return x * x.mean((2, 3), keepdim=True)


def scale_rows_and_columns(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Take the means of rows and of columns, and scale the map by both."""
    return x * x.mean(3, keepdim=True) * x.mean(2, keepdim=True)


def scale_by_energy(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Take mean and variance, and scale the map by a function of itself."""
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return x * torch.sigmoid((x - mean).square() / variance)


def gate_groups(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Do the convolution, the norm, the means and the products of groups of channels."""
    B, C, H, W = x.shape
    g = x.reshape(B * m.groups, C // m.groups, H, W)
    a = m.gn(g * g.mean(3, keepdim=True) * g.mean(2, keepdim=True))
    b = m.conv3x3(g)
    gate = a.mean((2, 3))[:, None] @ b.flatten(2) + b.mean((2, 3))[:, None] @ a.flatten(2)
    return g * gate.view(-1, 1, H, W)


def pool_three_axes(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Take maximum and mean over each axis, do the three convolutions, and scale the map by the sum of the gates."""
    gates = []
    for gate, axis in ((m.over_channels, 1), (m.over_rows, 2), (m.over_columns, 3)):
        pooled = torch.stack([x.amax(axis), x.mean(axis)], dim=1)
        gates.append(gate.conv(pooled)[:, 0].unsqueeze(axis))
    return x * (gates[0] + gates[1] + gates[2])


def convolve_and_scale(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Do the five convolutions, and scale the map by their output."""
    return x * m.conv1(m.conv_spatial_v(m.conv_spatial_h(m.conv0v(m.conv0h(x)))))


def sample(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Do the convolution of the offsets, and sample the map at a grid."""
    B, C, H, W = x.shape
    grid = F.pixel_shuffle(m.offset(x), 2).view(B * m.groups, 2, 2 * H, 2 * W).permute(0, 2, 3, 1)
    parts = x.reshape(B * m.groups, C // m.groups, H, W)
    return F.grid_sample(parts, grid, padding_mode="border", align_corners=False)


def add_context(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Do the convolution of the scores and the weighted sum of the positions, and add a number a channel."""
    context = x.flatten(2) @ m.conv_attn(x).flatten(2).transpose(1, 2)
    return x + context[..., None]


def convolve_a_part(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Do the three convolutions, the norm and the activation, and add the input."""
    part = m.spatial_mixing.part
    mixed = torch.cat([m.spatial_mixing.partial_conv3(x[:, :part]), x[:, part:]], dim=1)
    return x + m.out(torch.relu(m.norm(m.conv(mixed))))


FLOORS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "SqueezeExcitation": pool_and_scale,
    "ECA": pool_and_scale,
    "CoordinateAttention": scale_rows_and_columns,
    "SimAM": scale_by_energy,
    "EMA": gate_groups,
    "TripletAttention": pool_three_axes,
    "LSKA": convolve_and_scale,
    "DySample": sample,
    "GlobalContext": add_context,
    "FasterNetBlock": convolve_a_part,
}


def build(name: str, channels: int) -> nn.Module:
    """Build a module with its own defaults."""
    cls = NAMES[name]
    return cls() if name in ("SimAM", "TripletAttention") else cls(channels)


def measure_shelf(names: list[str], device: torch.device, rounds: int, seconds: float) -> list[dict]:
    """Time modules for inference and for training, and count what they keep for the backward pass."""
    rows = []
    for name in names:
        for shape in SHAPES:
            torch.manual_seed(0)
            m, x = build(name, shape[1]).to(device), torch.randn(shape, device=device)
            row: dict = {"module": name, "size": "x".join(map(str, shape))}
            for mode in "inference", "training":
                m.train(mode == "training")
                found = time_in_turn(make_sides(m, FLOORS[name], x, mode), device, rounds, seconds)
                row |= {
                    f"{mode}, ms": found["ours"].median * 1e3,
                    f"{mode}, of the floor": found["ours"].over(found["floor"]),
                }
            ours, floor = (count_kept_bytes(call, x) for call in (m, functools.partial(FLOORS[name], m)))
            rows.append(row | {"memory kept, MiB": ours / 2**20, "memory kept, of the floor": ours / floor})
    return rows


def make_sides(m: nn.Module, floor: Callable, x: torch.Tensor, mode: str) -> dict[str, Callable[[], object]]:
    """Make the calls that are compared: the module and its floor, with the backward pass in training."""

    def run(call: Callable) -> object:
        if mode == "inference":
            with torch.no_grad():
                return call(x)
        t = x.detach().requires_grad_()
        return call(t).sum().backward()

    return {"ours": lambda: run(m), "floor": lambda: run(lambda t: floor(m, t))}


def count_kept_bytes(call: Callable, x: torch.Tensor) -> int:
    """Count the bytes of the tensors that a call keeps for its backward pass, each memory once, without parameters."""
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, nn.Parameter):
            storage = t.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return t.detach()

    with saved_tensors_hooks(pack, lambda t: t):
        call(x.detach().requires_grad_())
    return sum(kept.values())
