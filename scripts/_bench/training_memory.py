"""Measure the memory of a training step at 640 pixels, as it is and with `checkpoint_activations=True`."""

from __future__ import annotations

import torch

from _bench.cases import BASELINE, PUBLISHED
from _bench.models import SIZE, build_trainable_model, measure_model_memory
from _shared.module_calls import make_training_step
from _shared.timing import time_in_turn

NAMES = [BASELINE, *PUBLISHED]
SIDES = "plain", "checkpointed"


def measure_training_memory(
    names: list[str], device: torch.device, options: dict, batches: list[int], rounds: int, seconds: float
) -> list[dict]:
    """Measure models by batch size: weights, gradients, AdamW's state and activations, and the time of a step."""
    rows = []
    for name in names:
        weights = sum(p.nbytes for p in build_trainable_model(name, device).parameters()) / 2**30
        for batch in batches:
            peaks = [
                weights + measure_model_memory(name, side, "training", device, options, batch) / 2**10 for side in SIDES
            ]
            row = {"model": name, "batch": batch, "GiB": peaks[0], "GiB checkpointed": peaks[1]}
            rows.append(row | {"of the memory": peaks[1] / peaks[0], "of the time": ""})
        steps = {
            side: make_training_step(build_trainable_model(name, device, side), device, options, batches[-1], SIZE)
            for side in SIDES
        }
        found = time_in_turn(steps, device, rounds, seconds)
        rows[-1]["of the time"] = found["checkpointed"].over(found["plain"])
    return rows
