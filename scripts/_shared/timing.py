"""Time several sides of a comparison in turn in one run, so that other load on the machine affects all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SAMPLE = 0.01  # least seconds of a sample: shorter calls are repeated within it


@dataclass
class Times:
    """Seconds of one call, one sample a round."""

    samples: list[float]

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
        if len(self.samples) < 4:
            return (max(self.samples) - min(self.samples)) / 2 / self.median
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / 2 / self.median

    def over(self, other: Times) -> float:
        """The median of the ratios of samples of the same round."""
        return statistics.median(a / b for a, b in zip(self.samples, other.samples))


def synchronise(device: torch.device) -> None:
    """Wait for the work on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turn(sides: dict[str, Callable[[], object]], device: torch.device, rounds: int, seconds: float) -> dict:
    """Time several calls in turn.

    Args:
        sides: The calls, by name.
        device: Where they run.
        rounds: Samples of each side.
        seconds: Stop once all samples together take longer, but not before the third round.

    Returns:
        The `Times` of each side, as many samples of each.
    """
    repeats = {}
    for name, call in sides.items():
        call()  # builds kernels and buffers
        repeats[name] = max(1, math.ceil(SAMPLE / time_call(call, 1, device)))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    started, names = time.perf_counter(), list(sides)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            samples[name].append(time_call(sides[name], repeats[name], device))
        if i >= 2 and time.perf_counter() - started > seconds:
            break
    return {name: Times(values) for name, values in samples.items()}


def time_call(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the seconds of a call, averaged over some repeats."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def time_quickest(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the quickest of five calls."""
    call()
    return min(time_call(call, 1, device) for _ in range(5))


def fit_exponent(sizes: list[int], values: list[float]) -> float:
    """Fit values = a * sizes^b by least squares of the logarithms; return b."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope
