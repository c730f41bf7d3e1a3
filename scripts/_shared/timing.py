"""Time several sides of a comparison in one run, in turn, so that what the machine does else hits all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SAMPLE = 0.01  # seconds that a sample lasts at least: shorter calls are repeated within it


@dataclass
class Times:
    """Seconds of one call, a sample a round."""

    samples: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, over the median."""
        if len(self.samples) < 4:
            return (max(self.samples) - min(self.samples)) / 2 / self.median
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / 2 / self.median

    def over(self, other: Times) -> float:
        """The median of the ratios of samples of the same round."""
        return statistics.median(a / b for a, b in zip(self.samples, other.samples))


def synchronise(device: torch.device) -> None:
    """Wait for what was started on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turn(sides: dict[str, Callable[[], object]], device: torch.device, rounds: int, seconds: float) -> dict:
    """Time sides in turn.

    Args:
        sides: What to call, by name.
        device: Where they run.
        rounds: Samples of each side.
        seconds: Stop before the last round where all samples together take longer, but not before the third.

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
    """Seconds of a call, over some calls."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def time_quickest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of some calls."""
    call()
    return min(time_call(call, 1, device) for _ in range(5))


def fit_exponent(sizes: list[int], values: list[float]) -> float:
    """Fit values = a * sizes^b by least squares of the logarithms; give b."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope
