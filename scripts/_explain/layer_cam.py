"""LayerCAM: where each layer has the evidence for the detections of an image.

Paper: "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", TIP 2021,
https://ieeexplore.ieee.org/document/9462463. For a detection's score s and a layer's map A, of C channels,

    M = relu(sum_c relu(ds / dA_c) * A_c)

as upstream's `visualize=True` computes it of the decoder's inputs. The map of each detection and layer is divided by
its largest value; a layer's map is the largest of those of its detections, and all layers' the largest of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from _explain import drawing
from _explain.detections import Detections, allowed_classes, strongest_detections
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

TOP = 16  # detections, each of which takes a backward pass


@dataclass(frozen=True)
class LayerMap:
    """The evidence in one layer.

    Attributes:
        source: The layer.
        stride: Pixels of the input for a position of its map.
        heat: (height, width) of the image, from 0 to 1.
    """

    source: Source
    stride: int
    heat: np.ndarray

    @property
    def label(self) -> str:
        """The layer's name in a picture."""
        return f"{self.source.label}, stride {self.stride}"


@dataclass(frozen=True)
class LayerCam:
    """LayerCAM of an image.

    Attributes:
        layers: One map a layer.
        together: (height, width), the largest value of all layers at each pixel.
        detections: What the maps are the evidence for.
    """

    layers: list[LayerMap]
    together: np.ndarray
    detections: Detections


def layer_cam(
    model: str | Path | Model | nn.Module | OpenedModel,
    image: str | Path | np.ndarray | View,
    layers: Sequence[int] | None = None,
    conf: float = 0.25,
    classes: Sequence[int] | None = None,
    top: int = TOP,
    imgsz: int | Sequence[int] | None = None,
) -> LayerCam:
    """Compute the evidence for what a model detects in an image.

    Args:
        model: A checkpoint, a model file, or what was made of one; it is not changed.
        image: A file, or (height, width, 3) bytes, BGR.
        layers: Rows as the model's summary numbers them; the decoder's inputs by default.
        conf: Least score of a detection; if none reaches it, the single best one is used.
        classes: The classes to detect, by default all.
        top: Most detections, the strongest ones.
        imgsz: Side of the input, or its height and width, in pixels; by default what the model was trained with.

    Raises:
        ValueError: If a model, an image, layers or classes are not valid.
        OSError: If a file cannot be read.
    """
    opened = open_model(model, imgsz)
    view, wanted, allowed = (
        load_view(image, opened),
        choose_sources(opened.net, layers),
        allowed_classes(opened, classes),
    )
    with prepare_gradients(opened.net):
        with record_maps(opened.net, wanted) as maps:
            boxes, logits = run_detection(opened.net, view.x)
        found = strongest_detections(boxes, logits, view.frame, conf, allowed, max(1, top))
        heats = compute_evidence(logits[found.queries][:, allowed].amax(dim=1), maps, view.frame.size)
    strides = [round(view.frame.size[0] / m.shape[2]) for m in maps]
    together = view.frame.on_image(heats.amax(dim=0).numpy())
    on_image = (view.frame.on_image(heat.numpy()) for heat in heats)
    return LayerCam([LayerMap(*found) for found in zip(wanted, strides, on_image)], together, found)


def compute_evidence(scores: torch.Tensor, maps: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Compute LayerCAM of some scores.

    Args:
        scores: (n,) with a graph that has the maps in it.
        maps: Of shape (1, C, h, w).
        size: Height and width of the input in pixels.

    Returns:
        (maps, height, width), from 0 to 1; 0 where there is no evidence.
    """
    heats = torch.zeros(len(maps), *size)
    for i, score in enumerate(scores):
        grads = torch.autograd.grad(score, maps, retain_graph=i + 1 < len(scores), allow_unused=True)
        for heat, activation, grad in zip(heats, maps, grads):
            if grad is not None:  # a layer that no score depends on
                positive = (grad.float().relu() * activation.detach().float()).sum(dim=1, keepdim=True).relu()
                grid = F.interpolate(positive, size, mode="bilinear", align_corners=False)[0, 0]
                torch.maximum(heat, (grid / grid.amax().clamp(min=torch.finfo(grid.dtype).tiny)).cpu(), out=heat)
    return heats


def draw_layer_cam(cam: LayerCam, view: View, opened: OpenedModel) -> Figure:
    """Draw the detections, the map of each layer, and all layers together."""
    n, above = len(cam.detections.scores), cam.detections.above
    what = f"{n} detection{'s'[: n > 1]}" if above else "the best query (no score is above the threshold)"
    what = f"the {n} strongest of {above} detections" if above > n else what
    title = f"LayerCAM: where the evidence for {what} is"
    lines = len(drawing.list_detections(cam.detections, opened.classes))
    below = max(drawing.BELOW, 0.35 + drawing.LINE * lines)
    figure, panels = drawing.make_figure(len(cam.layers) + 2, view.frame.shape, title, view.name, opened, below)
    drawing.draw_image(panels[0], view, "detections, by rank (score)")
    drawing.draw_boxes(panels[0], cam.detections, opened.classes, view.frame.shape)
    meaning = "evidence, of the largest for each detection"
    for panel, layer in zip(panels[1:], cam.layers):
        drawing.draw_heat(panel, view, layer.heat, layer.label, meaning)
    drawing.draw_heat(panels[-1], view, cam.together, "all layers, the largest value", meaning)
    for panel in panels[1:]:
        drawing.draw_box_hints(panel, cam.detections)
    return figure
