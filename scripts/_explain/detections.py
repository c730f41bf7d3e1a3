"""A network's detections in an image, and the point of the image that the pictures explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from _explain.image_view import Frame, View
from _explain.network import OpenedModel, prepare_gradients, run_detection
from ultralytics.fork.errors import Refused
from ultralytics.utils.ops import xywh2xyxy


@dataclass(frozen=True)
class Detections:
    """The strongest detections, best first.

    Attributes:
        queries: (n,) the decoder's queries that made them.
        boxes: (n, 4) corners x1, y1, x2, y2 in pixels of the image.
        scores: (n,) from 0 to 1.
        classes: (n,) class numbers.
        above: The number above the threshold; if it is 0, the single best detection is used.
    """

    queries: torch.Tensor
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    above: int


def allowed_classes(opened: OpenedModel, classes: Sequence[int] | None) -> list[int]:
    """Return the classes to detect, by default all.

    Raises:
        ValueError: If the model does not have a class.
    """
    count = len(opened.classes)
    for number in classes or ():
        if not 0 <= number < count:
            raise Refused(f"class {number}: expected a number from 0 to {count - 1}, the model's classes")
    return sorted(set(classes)) if classes else list(range(count))


def strongest_detections(
    boxes: torch.Tensor, logits: torch.Tensor, frame: Frame, conf: float, classes: list[int], top: int
) -> Detections:
    """Choose detections as upstream's class activation maps do: one for each query, of its best class.

    Args:
        boxes: (queries, 4) centre and size as shares of the input's sides.
        logits: (queries, classes).
        frame: Where the image is in the input.
        conf: Least score.
        classes: The classes to detect.
        top: Most detections.
    """
    best, which = logits.detach()[:, classes].max(dim=1)
    scores, order = best.sigmoid().sort(descending=True, stable=True)
    above = int((scores >= conf).sum())
    queries = order[: max(1, min(above, top))]
    corners = xywh2xyxy(boxes.detach()[queries].float().cpu()).numpy().reshape(-1, 2, 2)
    return Detections(
        queries,
        frame.to_image(corners * frame.size[::-1]).reshape(-1, 4),
        scores[: len(queries)].float().cpu().numpy(),
        np.array(classes)[which[queries].cpu().numpy()],
        above,
    )


def choose_query(
    opened: OpenedModel, view: View, query: Sequence[float] | None, conf: float, classes: Sequence[int] | None
) -> tuple[float, float]:
    """Return the point to explain: the given one, else the centre of the best detection, else the image's.

    Args:
        opened: The network.
        view: The image.
        query: (x, y) in pixels of the image, if one is given.
        conf: Least score of a detection.
        classes: The classes to detect, by default all.

    Raises:
        ValueError: If the point is not in the image.
    """
    if query is not None:
        check_query(query, view.frame.shape, view.name)
        return float(query[0]), float(query[1])
    with prepare_gradients(opened.net), torch.no_grad():
        found = strongest_detections(
            *run_detection(opened.net, view.x), view.frame, conf, allowed_classes(opened, classes), 1
        )
    if not found.above:
        return view.centre
    x1, y1, x2, y2 = found.boxes[0]
    return float(x1 + x2) / 2, float(y1 + y2) / 2


def check_query(query: Sequence[float], shape: tuple[int, int], name: str) -> None:
    """Raise a `ValueError` for a point outside of an image of (height, width)."""
    x, y = query
    height, width = shape
    if not (0 <= x < width and 0 <= y < height):
        raise Refused(f"query {x:g},{y:g} is outside of {name}: expected x from 0 to {width - 1}, y to {height - 1}")
