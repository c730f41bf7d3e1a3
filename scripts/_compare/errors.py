"""What is wrong in a validation: which detections and why, which objects are missed, and what a score is worth.

A detection from `CONFIDENCE` on that finds no object at IoU 0.5 is, by the object that it overlaps most: a duplicate
(of an object that a better detection has), a confusion of classes (IoU from 0.5 with another class), badly placed (IoU
from 0.1 with its own class), or on nothing. The kinds are those of TIDE (https://arxiv.org/abs/2008.08115).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from _compare.validation import Validation
from ultralytics.utils.metrics import box_iou

CONFIDENCE = 0.25  # the default threshold of `yolo predict`
FOUND, NEAR = 0.5, 0.1  # IoU
KINDS = "confusion", "duplicate", "badly placed", "on nothing"
BINS = 10  # of scores


@dataclass(frozen=True)
class Errors:
    """Errors of a model.

    Attributes:
        detections: Indices of wrong detections, those with the highest scores first.
        kinds: Of each, an index of `KINDS`.
        missed: Indices of objects that no detection from `CONFIDENCE` on finds, in the order of the images.
        confusions: How often an object of a class (row) is taken for another (column).
    """

    detections: np.ndarray
    kinds: np.ndarray
    missed: np.ndarray
    confusions: np.ndarray

    def counts(self) -> dict[str, int]:
        """Count the errors of each kind, and the objects that are missed."""
        wrong = np.bincount(self.kinds, minlength=len(KINDS))
        return {**{kind: int(count) for kind, count in zip(KINDS, wrong)}, "missed": len(self.missed)}


def find_errors(found: Validation) -> Errors:
    """Find the errors of a validation."""
    detections, kinds, missed = [], [], []
    confusions = np.zeros((len(found.names), len(found.names)), int)
    for image in range(len(found.images)):
        mine = np.flatnonzero((found.image == image) & (found.conf >= CONFIDENCE))
        objects = np.flatnonzero(found.target_image == image)
        iou = overlaps(found.box[mine], found.target_box[objects])
        same = found.cls[mine, None] == found.target_cls[None, objects]
        right = found.tp[mine, 0]
        hit = ((iou >= FOUND) & same)[right].any(0)
        missed += objects[~hit].tolist()
        for row in np.flatnonzero(~right):
            detections.append(mine[row])
            kinds.append(name_kind(iou[row], same[row]))
            if KINDS[kinds[-1]] == "confusion":
                confusions[found.target_cls[objects[iou[row].argmax()]], found.cls[mine[row]]] += 1
    order = np.argsort(-found.conf[np.array(detections, int)], kind="stable")
    return Errors(np.array(detections, int)[order], np.array(kinds, int)[order], np.array(missed, int), confusions)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the IoU of boxes (n, 4) with others (m, 4), (n, m)."""
    first, second = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (boxes, others))
    return box_iou(first, second).numpy()


def name_kind(iou: np.ndarray, same: np.ndarray) -> int:
    """Give the kind of a wrong detection.

    Args:
        iou: With each object of its image, (m,).
        same: Whether these have its class, (m,).
    """
    if (iou[same] >= FOUND).any():
        return KINDS.index("duplicate")
    if (iou[~same] >= FOUND).any():
        return KINDS.index("confusion")
    return KINDS.index("badly placed" if (iou[same] >= NEAR).any() else "on nothing")


def best_thresholds(found: Validation) -> dict[str, tuple[float, float]]:
    """Find for each class of which an object is found the score from which F1 at IoU 0.5 is highest, and that F1."""
    best = {}
    for number, name in enumerate(found.names):
        objects = int((found.target_cls == number).sum())
        mine = found.cls == number
        if not objects or not found.tp[mine, 0].any():
            continue
        order = np.argsort(-found.conf[mine], kind="stable")
        hits = found.tp[mine, 0][order].cumsum()
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
        place = int(f1.argmax())
        best[str(name)] = (float(found.conf[mine][order][place]), float(f1[place]))
    return best


def calibrate(found: Validation) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Compare scores with how often detections of such scores are right, at IoU 0.5.

    Returns:
        Of each bin that has detections the mean score, the share that is right, and the number; and the expected
        calibration error (https://arxiv.org/abs/1706.04599) of detections from `CONFIDENCE` on.
    """
    bins = np.minimum((found.conf * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    there = counts > 0
    scores, right = (np.bincount(bins, x, BINS)[there] / counts[there] for x in (found.conf, found.tp[:, 0]))
    sure = found.conf >= CONFIDENCE
    parts = [sure & (bins == number) for number in range(BINS)]
    gaps = [abs(found.conf[part].mean() - found.tp[part, 0].mean()) * part.sum() for part in parts if part.any()]
    return scores, right, counts[there], float(sum(gaps) / max(sure.sum(), 1))
