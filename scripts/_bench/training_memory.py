"""Measure the memory of a training step at 640 pixels, plain, as in the recipes, and with checkpoints.

Plain is without a switch; the recipes have `fast_kernels=True checkpoint_activations=norms`; "checkpointed" is
`checkpoint_activations=True`. Times are relative to plain.
"""

from __future__ import annotations

import torch

from _bench.cases import BASELINE
from _bench.models import SIZE, build_trainable_model, measure_model_memory
from _shared.module_calls import make_training_step
from _shared.timing import time_in_turn

NAMES = [BASELINE, "rtdetr-r18", "rtdetr-l-FLA", "rtdetr-l-EMO"]
SIDES = "plain", "recipe", "checkpointed"


def measure_training_memory(
    names: list[str], device: torch.device, options: dict, batches: list[int], rounds: int, seconds: float
) -> list[dict]:
    """Measure models by batch size: weights, gradients, AdamW's state and activations, and the time of a step."""
    rows = []
    for name in names:
        weights = sum(p.nbytes for p in build_trainable_model(name, device).parameters()) / 2**30
        for batch in batches:
            row: dict = {"model": name, "batch": batch}
            for side in SIDES:
                peak = measure_model_memory(name, side, "training", device, options, batch)
                row[f"GiB {side}"] = weights + peak / 2**10
            rows.append(row | {f"time {side}": "" for side in SIDES[1:]})
        steps = {
            side: make_training_step(build_trainable_model(name, device, side), device, options, batches[-1], SIZE)
            for side in SIDES
        }
        found = time_in_turn(steps, device, rounds, seconds)
        rows[-1] |= {f"time {side}": found[side].over(found["plain"]) for side in SIDES[1:]}
    return rows
