"""What a study's figures say: mean average precision of resampled images, and intervals of differences.

Two models are validated on the same images, so that images are resampled for both at once (a paired bootstrap, Efron
and Tibshirani 1993, chapter 16): what one sample makes easier, it makes easier for both. Seeds are not paired: the same
seed gives two architectures other weights. So the variance of a difference is that of the paired bootstrap over images,
of the means over seeds, and what the seeds of either model scatter. The interval is Student's t of both, with Welch's
and Satterthwaite's degrees of freedom, because the scatter of two or three seeds is itself hardly known.

Several comparisons are corrected by Holm's rule (1979). Over several data sets, the data set is a random effect: the
interval is that of Hartung and Knapp (2001) with equal weights, never narrower in its standard error than the data sets
themselves allow (Roever, Knapp and Friede 2015).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from _compare.validation import Validation
from ultralytics.utils.metrics import compute_ap

LEVEL = 0.95
EPS = 1e-16  # as upstream adds it to the number of objects


@dataclass(frozen=True)
class Difference:
    """The difference of two models' means, with the interval that contains the true difference at `LEVEL`.

    `seeds` says whether the interval includes the scatter over seeds: with one seed a model it is unknown. `error` is
    the standard error, and `p` the probability of a difference at least as large if there were none.
    """

    value: float
    low: float
    high: float
    seeds: bool
    error: float
    p: float

    @property
    def shown(self) -> bool:
        """Whether the interval includes the scatter over seeds and excludes zero."""
        return self.seeds and not self.low <= 0 <= self.high


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation of a sample (n - 1), or None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def draw_resamples(images: int, count: int, seed: int = 0) -> np.ndarray:
    """Draw images with replacement: how often each one is in each sample, (count, images)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=count)


def average_precision(found: Validation, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute mAP50-95 of samples of the images by upstream's rule; for all images once it equals that of `yolo val`.

    Args:
        found: What a validation found.
        weights: How often each image is in each sample, (samples, images); by default each once.

    Returns:
        The mean over the classes that have objects in the sample and over ten thresholds, (samples,). NaN for a sample
        without any object.
    """
    weights = np.ones((1, len(found.images)), int) if weights is None else weights
    order = np.argsort(-found.conf, kind="stable")
    tp, cls, image = found.tp[order], found.cls[order], found.image[order]
    classes = np.unique(found.target_cls)
    ap, present = np.zeros((len(classes), len(weights))), np.zeros((len(classes), len(weights)), bool)
    for row, c in enumerate(classes):
        targets = np.bincount(found.target_image[found.target_cls == c], minlength=len(found.images))
        mine = cls == c
        hits, owner = tp[mine], image[mine]
        for column, sample in enumerate(weights):
            objects = int(targets @ sample)
            present[row, column] = objects > 0
            taken = sample[owner] > 0
            if not objects or not taken.any():
                continue
            times = sample[owner[taken], None]
            true = (hits[taken] * times).cumsum(0)
            precision = true / times.cumsum(0)
            recall = true / (objects + EPS)
            ap[row, column] = np.mean([compute_ap(r, p)[0] for r, p in zip(recall.T, precision.T)])
    counts = present.sum(0)
    return np.where(counts > 0, ap.sum(0) / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Scores:
    """A figure of a model: its values for each seed, and on each resample of the images, (seeds, samples)."""

    values: Sequence[float]
    samples: np.ndarray


def compare_means(pairs: Sequence[tuple[Scores, Scores]]) -> Difference:
    """Compare models with those that they are paired with, on average over the pairs.

    Args:
        pairs: A model and the one that it is compared with, on the same resamples of the images.
    """
    count = len(pairs)
    value = statistics.fmean(statistics.fmean(a.values) - statistics.fmean(b.values) for a, b in pairs)
    resampled = np.mean([a.samples.mean(0) - b.samples.mean(0) for a, b in pairs], 0)
    scatter = [
        (statistics.variance(x.values) / len(x.values) / count**2, len(x.values) - 1)
        for pair in pairs
        for x in pair
        if len(x.values) > 1
    ]
    total = float(np.nanvar(resampled, ddof=1)) + sum(part for part, _ in scatter)
    doubt = sum(part**2 / freedom for part, freedom in scatter)
    return make_difference(value, total, total**2 / doubt if doubt else math.inf, len(scatter) == 2 * count)


def combine_data_sets(found: Sequence[Difference]) -> Difference:
    """Combine the differences on two data sets or more into that on such data sets in general."""
    count = len(found)
    between = statistics.variance([one.value for one in found]) / count
    within = sum(one.error**2 for one in found) / count**2
    mean = statistics.fmean(one.value for one in found)
    return make_difference(mean, max(between, within), count - 1, all(one.seeds for one in found))


def make_difference(value: float, variance: float, freedom: float, seeds: bool) -> Difference:
    """Make a difference from its variance, which is known with some degrees of freedom."""
    error = math.sqrt(variance)
    reach = float(student.ppf((1 + LEVEL) / 2, freedom)) * error if error else 0.0
    p = 2 * float(student.sf(abs(value) / error, freedom)) if error else float(not value)
    return Difference(value, value - reach, value + reach, seeds, error, p)


def correct_by_holm(values: Sequence[float]) -> list[float]:
    """Correct the p-values of several comparisons by Holm's rule."""
    corrected, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = corrected[place] = max(least, min(1.0, (len(values) - rank) * values[place]))
    return corrected


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, gain) that no other point dominates."""
    front, best = [], -math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front
