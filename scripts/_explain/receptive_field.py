"""Effective receptive field: how much each pixel of the input influences the middle of a layer's map.

Paper: "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016,
https://arxiv.org/abs/1701.04128. The sum over channels of a layer's output at its middle position has a gradient with
respect to the input; its size, summed over colours and averaged over inputs, is the field. The measure is the side of
the smallest square around the field's middle that holds half, or 95 %, of it. That middle is its median along x and
along y: strided convolutions put it up to half a stride beside the position's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import nn

from _explain import drawing
from _explain.drawing import Panel
from _explain.image_view import View, load_view
from _explain.network import (
    OpenedModel,
    Source,
    choose_sources,
    open_model,
    prepare_gradients,
    record_maps,
    run_detection,
)
from ultralytics.engine.model import Model

INPUTS = 4  # least number of inputs to average
SHARES = 0.5, 0.95
LEAST = 1e-3  # share of the largest gradient below which nothing is drawn


@dataclass(frozen=True)
class Field:
    """The effective receptive field of one layer.

    Attributes:
        source: The layer.
        stride: Pixels of the input for a position of its map.
        position: Middle of the position, (x, y) in pixels of the input.
        centre: Middle of the field.
        gradient: (H, W) of the input, mean over the inputs.
        sides: Sides in pixels of the squares that hold the shares of `SHARES`; NaN where there is no gradient.
        inputs: How many inputs were averaged.
    """

    source: Source
    stride: int
    position: tuple[float, float]
    centre: tuple[float, float]
    gradient: np.ndarray
    sides: tuple[float, ...]
    inputs: int


def receptive_fields(
    model: str | Path | Model | nn.Module | OpenedModel,
    images: Iterable[str | Path | np.ndarray | View],
    layers: Sequence[int] | None = None,
    imgsz: int | Sequence[int] | None = None,
) -> list[Field]:
    """Compute the effective receptive fields of some layers.

    Args:
        model: A checkpoint, a model file, or what was made of one; it is not changed.
        images: Files, or (height, width, 3) bytes, BGR; if there are fewer than four, mirror images are added.
        layers: Rows as the model's summary numbers them; the decoder's inputs by default.
        imgsz: Side of the input, or its height and width, in pixels; by default what the model was trained with.

    Raises:
        ValueError: If a model, images or layers are not valid.
        OSError: If a file cannot be read.
    """
    opened = open_model(model, imgsz)
    wanted = choose_sources(opened.net, layers)
    total, count = np.zeros((len(wanted), *opened.size)), 0
    with prepare_gradients(opened.net):
        for x in add_mirrored_inputs(load_view(image, opened).x for image in images):
            x = x.clone().requires_grad_()
            with record_maps(opened.net, wanted) as maps:
                run_detection(opened.net, x)
            for i, m in enumerate(maps):
                total[i] += gradient_of_middle(m, x, retain_graph=i + 1 < len(maps))
            count += 1
    sizes = [tuple(m.shape[2:]) for m in maps]
    return [measure_field(source, size, found / count, count) for source, size, found in zip(wanted, sizes, total)]


def add_mirrored_inputs(images: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield images, (1, 3, H, W), and mirror images if there are fewer than four."""
    seen = []
    for x in images:
        seen.append(x) if len(seen) < INPUTS else None
        yield x
    mirrored = (x.flip(axes) for axes in ((3,), (2,), (2, 3)) for x in seen)
    yield from itertools.islice(mirrored, max(0, INPUTS - len(seen)))


def gradient_of_middle(m: torch.Tensor, x: torch.Tensor, retain_graph: bool = False) -> np.ndarray:
    """Compute the gradient of a map's middle position with respect to the pixels of an input.

    Args:
        m: The map, (1, C, h, w), with a graph.
        x: The input, (1, colours, H, W), in that.
        retain_graph: Whether the graph is needed again.

    Returns:
        (H, W), the absolute gradient of the sum over channels, summed over colours.
    """
    h, w = m.shape[2:]
    (grad,) = torch.autograd.grad(m[0, :, h // 2, w // 2].float().sum(), x, retain_graph=retain_graph)
    return grad[0].abs().sum(dim=0).double().cpu().numpy()


def measure_field(source: Source, size: tuple[int, int], gradient: np.ndarray, count: int) -> Field:
    """Measure a gradient, (H, W), of the middle position of a map of (h, w)."""
    (h, w), (H, W) = size, gradient.shape
    position = (w // 2 + 0.5) * W / w, (h // 2 + 0.5) * H / h
    centre = median_position(gradient.sum(axis=0)), median_position(gradient.sum(axis=1))
    return Field(source, round(H / h), position, centre, gradient, square_sides(gradient, centre), count)


def median_position(values: np.ndarray) -> float:
    """Return the median position in pixels of (n,) values, or the middle if all are 0."""
    held = np.concatenate([[0.0], np.cumsum(values)])
    if not (np.isfinite(held[-1]) and held[-1] > 0):
        return len(values) / 2
    i = int(np.searchsorted(held, held[-1] / 2, side="right")) - 1
    return i + (held[-1] / 2 - held[i]) / values[i]


def square_sides(
    gradient: np.ndarray, centre: tuple[float, float], shares: Sequence[float] = SHARES
) -> tuple[float, ...]:
    """Return the sides of the smallest squares that contain some shares of a gradient.

    Args:
        gradient: (H, W), of pixels.
        centre: Middle of the squares, (x, y) in pixels.
        shares: From 0 to 1.

    Returns:
        Sides in pixels; a square may reach over the border. NaN where there is no gradient.
    """
    if not (gradient.sum() > 0 and np.isfinite(gradient).all()):
        return (float("nan"),) * len(shares)
    far_x, far_y = (np.abs(np.arange(n) + 0.5 - c) for n, c in zip(gradient.shape[::-1], centre))
    side = 2 * np.maximum(far_x[None, :], far_y[:, None]).ravel() + 1  # of the square that reaches over a pixel
    order = np.argsort(side, kind="stable")
    held = np.cumsum(gradient.ravel()[order])
    return tuple(float(side[order[np.searchsorted(held, share * held[-1] * (1 - 1e-12))]]) for share in shares)


def draw_receptive_fields(found: list[Field], opened: OpenedModel) -> Figure:
    """Draw the field of each layer in pixels of the input, with the squares and their sides."""
    title = "Effective receptive field: the gradient of each layer's middle position with respect to the input"
    of = f"mean of {found[0].inputs} inputs"
    figure, panels = drawing.make_figure(len(found), opened.size, title, of, opened, drawing.BELOW + 0.35)
    for panel, one in zip(panels, found):
        draw_field(panel, one)
    return figure


def draw_field(panel: Panel, found: Field) -> None:
    """Draw the field of one layer."""
    (H, W), (x, y), most = found.gradient.shape, found.centre, found.gradient.max()
    shown = (found.gradient / most if most > 0 else found.gradient).clip(LEAST, 1)
    style = {"cmap": drawing.HEAT, "norm": LogNorm(LEAST, 1), "interpolation": "nearest"}
    artist = panel.axis.imshow(shown, extent=(0, W, H, 0), **style)
    drawing.draw_colour_bar(panel, artist, "gradient, of the largest")
    handles = [drawing.draw_point(panel, found.position, "position")]
    for side, share, colour, style in zip(found.sides, SHARES, (drawing.SKY, "white"), ("-", "--")):
        if np.isfinite(side):
            box = x - side / 2, y - side / 2, x + side / 2, y + side / 2
            label = f"{share:.0%} in {side:.0f} x {side:.0f} px"
            handles.append(drawing.draw_outline(panel, box, colour, style=style, label=label))
    panel.axis.set(xlim=(0, W), ylim=(H, 0))
    name = f"{found.source.label}, stride {found.stride}"
    drawing.set_title(panel, name if np.isfinite(found.sides).all() else f"{name}: no gradient")
    drawing.draw_legend(panel, handles, drop=drawing.BELOW)
