"""Compare two outputs of RT-DETR as sets of detections.

The order of detections does not count: detections of equal score may come in any order. Where the scores of positions
at the cut are equal but for rounding, rounding chooses which of them become queries: detections of these queries, and
of no others, may be missing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

PHOTOGRAPHS = "bus.jpg", "zidane.jpg"  # of upstream's assets


@dataclass(frozen=True)
class Bounds:
    """How far detections may be from each other and still be the same."""

    box: float  # each side of a box, in pixels of the input
    side: float  # the same, as a part of the image's longer side: the larger of the two counts
    score: float
    share: float  # of the detections that count, how many must be found again
    counts: float  # score from which a detection counts, or half of the best one's where that is less
    tie: float  # between the encoder's scores, as a part of the largest one, below which rounding chooses the queries
    end: float  # between scores at the end of the list, below which rounding chooses the last detections
    least: float  # share of the detections that must be found again, however many queries are tied

    def pixels(self, size: tuple[int, int]) -> float:
        """Give the bound of a box's sides in an image of (H, W)."""
        return max(self.box, self.side * max(size))


# By the bits of weights or activations
BOUNDS = {
    32: Bounds(box=1.0, side=0.0, score=1e-3, share=1.0, counts=0.0, tie=1e-5, end=1e-5, least=0.95),
    16: Bounds(box=2.0, side=0.01, score=0.05, share=0.9, counts=0.25, tie=2e-3, end=0.01, least=0.5),
    8: Bounds(box=4.0, side=0.025, score=0.25, share=0.75, counts=0.25, tie=0.02, end=0.05, least=0.5),
}


def count_tied_queries(scores: torch.Tensor, queries: int, bounds: Bounds) -> torch.Tensor:
    """Count the queries that rounding has chosen, where the encoder's best positions become queries.

    Args:
        scores: The best score of each position, as logits. (B, N)
        queries: How many are chosen.
        bounds: With the largest difference that rounding makes.

    Returns:
        Of each image, how many of the last queries. (B,)
    """
    if scores.shape[1] <= queries:
        return torch.zeros(len(scores), dtype=torch.long)
    ranked = scores.float().cpu().sort(dim=1, descending=True).values
    most = bounds.tie * ranked.abs().amax(dim=1, keepdim=True)
    last, first = ranked[:, queries - 1 : queries], ranked[:, queries : queries + 1]  # in, and out
    return torch.where((last - first <= most)[:, 0], (ranked[:, :queries] - first <= most).sum(1), 0)


@dataclass
class Parity:
    """Result of a comparison."""

    input: str
    detections: int  # that count, on either side
    matched: int
    box: float  # largest difference of matched ones, in pixels
    score: float
    raw: float  # largest difference of the outputs of matched ones: coordinates as shares of the image, scores
    tied: int = 0  # that rounding has chosen, and have no match
    finite: bool = True  # whether all numbers are

    def is_within(self, bounds: Bounds) -> bool:
        """Whether enough detections match."""
        found, wanted = self.matched + self.tied, bounds.share * self.detections
        enough = found >= wanted and self.matched >= bounds.least * self.detections
        return self.finite and self.detections > 0 and enough

    def __str__(self) -> str:
        tied = f", {self.tied} tied" if self.tied else ""
        finite = "" if self.finite else ", and not all numbers are finite"
        near = f"boxes within {self.box:.2g} px, scores within {self.score:.2g}; raw outputs within {self.raw:.2g}"
        of_them = f", {near}" if self.matched else ""
        return f"{self.input}: {self.matched} of {self.detections} detections match{tied}{of_them}{finite}"

    def to_metadata(self) -> dict[str, Any]:
        """Give the result for an export's metadata."""
        return {key: float(f"{v:.3g}") if isinstance(v, float) else v for key, v in asdict(self).items()}


def load_photograph(name: str, size: tuple[int, int], channels: int) -> torch.Tensor:
    """Load a photograph, stretched as RT-DETR's predictor does. (1, C, H, W), 0 to 1."""
    import cv2

    from ultralytics.utils import ASSETS

    image = cv2.imread(str(Path(ASSETS) / name))
    assert image is not None  # one of upstream's assets
    image = cv2.resize(image, size[::-1])[..., ::-1]
    image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255
    return image[:, torch.arange(channels) % 3]


def make_inputs(batch: int, size: tuple[int, int], channels: int = 3) -> dict[str, torch.Tensor]:
    """Make the two inputs that an export is verified with, each a batch of images. (B, C, H, W), 0 to 1."""
    images = [load_photograph(name, size, channels) for name in PHOTOGRAPHS]
    return {name: torch.cat([images[(first + i) % 2] for i in range(batch)]) for first, name in enumerate(PHOTOGRAPHS)}


def compare_detections(
    name: str,
    expected: torch.Tensor,
    found: torch.Tensor,
    size: tuple[int, int],
    bounds: Bounds,
    tied: torch.Tensor | None = None,
) -> Parity:
    """Match the detections of two outputs.

    Args:
        name: What to call the input.
        expected: Boxes, score and class, (B, N, 6): centre, width and height as shares of the image.
        found: The same from elsewhere.
        size: Height and width of the input in pixels.
        bounds: How far they may be from each other.
        tied: Which of the expected detections are of a query that rounding has chosen. (B, N)

    Raises:
        ValueError: If the shapes differ.
    """
    from ultralytics.models.utils.ops import linear_sum_assignment  # SciPy's, or what took its place
    from ultralytics.utils.ops import xywh2xyxy

    if expected.shape != found.shape:
        raise ValueError(f"{name}: the output is {tuple(found.shape)}, expected {tuple(expected.shape)}")
    tied = torch.zeros(expected.shape[:2], dtype=torch.bool) if tied is None else tied.cpu()
    parity = Parity(name, 0, 0, 0.0, 0.0, 0.0, finite=bool(expected.isfinite().all() and found.isfinite().all()))
    scale, most = torch.tensor([size[1], size[0], size[1], size[0]]), bounds.pixels(size)
    for ours, theirs, chance in zip(expected.float().cpu(), found.float().cpu(), tied):
        box = ((xywh2xyxy(ours[:, :4])[:, None] - xywh2xyxy(theirs[:, :4])) * scale).abs().amax(-1)
        score = (ours[:, None, 4] - theirs[:, 4]).abs()
        same = (ours[:, None, 5] == theirs[:, 5]) & (box <= most) & (score <= bounds.score)
        # As many pairs within the bounds as there can be, and of those the nearest
        near = (box / most + score / bounds.score).nan_to_num(1e3).clamp(max=1e3)
        i, j = (torch.from_numpy(t) for t in linear_sum_assignment(torch.where(same, near / 1e6, 1.0).numpy()))
        paired = same[i, j]
        least = min(bounds.counts, ours[:, 4].max().item() / 2)
        ours_count, theirs_count = ours[i, 4] >= least, theirs[j, 4] >= least
        counts = ours_count | theirs_count
        lost = counts & ~paired
        ends = ours[:, 4].min(), theirs[:, 4].min()  # several may be as good as the last one of a list
        end = (ours[i, 4] <= ends[0] + bounds.end) & (theirs[j, 4] <= ends[1] + bounds.end)
        end &= (ends[0] - ends[1]).abs() <= bounds.end
        gone = lost & ~end & ours_count
        new = int((lost & ~end & ~ours_count).sum())  # what the queries chosen instead may have found
        parity.detections += int(counts.sum())
        parity.matched += int((counts & paired).sum())
        parity.tied += int((lost & end).sum() + (gone & chance[i]).sum()) + min(new, int(chance.sum()))
        if paired.any():
            i, j = i[paired], j[paired]
            parity.box = max(parity.box, box[i, j].max().item())
            parity.score = max(parity.score, score[i, j].max().item())
            parity.raw = max(parity.raw, (ours[i] - theirs[j]).abs().max().item())
    return parity
