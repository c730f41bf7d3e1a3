"""Measure the costs of a trained model: parameters, operations, latency and memory, for the table of a study.

    python -m _compare.cost FILE PIXELS BATCH    print the MiB that a forward and a training step take on the CPU

Memory on a CPU can only be measured in a process of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _compare.training_run import summarise_error
from _shared.flops import count_gflops, count_published_gflops
from _shared.machine import describe_machine
from _shared.module_calls import make_call, make_training_step
from _shared.peak_memory import measure_peak_memory, run_module
from _shared.timing import time_in_turn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG

ROUNDS, SECONDS = 30, 20.0  # samples of each model; seconds for each model, at the most
SCOPE = "forward of the fused model in fp32, batch 1, warm, without pre- and post-processing"


def measure_costs(models: dict[str, Path], sizes: dict[str, int], device: torch.device, batch: int) -> dict[str, Any]:
    """Measure the costs of models in one run.

    Args:
        models: A checkpoint by label.
        sizes: Side of the image in pixels of each.
        device: Where they are timed; elsewhere than on a CPU or CUDA on the CPU, as only those can be waited for.
        batch: Images of a training step.

    Returns:
        The `machine`, and `models`, by label: parameters; GFLOPs at this size, as published tables count them and
        honestly; `ms`, the median latency over rounds in which all models take turns, its `spread` (half the distance
        of the quartiles, over the median) and `over_first`, the median ratio to the first model of the same round;
        `MiB` of a forward at its peak, and on a CPU `MiB training` of a training step. What could not be measured is
        in `failures`, a line each.
    """
    device = device if device.type == "cuda" else torch.device("cpu")
    calls, found = {}, {label: {"failures": []} for label in models}

    @contextlib.contextmanager
    def measuring(label: str, what: str) -> Iterator[dict]:
        try:
            yield found[label]
        except Exception as e:  # if one tool fails, the other figures stay
            found[label]["failures"].append(f"{what} of {label}: {summarise_error(e)}")

    for label, file in models.items():
        plain, side = load_checkpoint(file)[0].float().eval(), sizes[label]
        found[label]["parameters"] = sum(p.numel() for p in plain.parameters())
        with measuring(label, "GFLOPs in the published style") as mine:
            mine["GFLOPs published"] = count_published_gflops(plain, side)
        with measuring(label, "GFLOPs") as mine:
            mine["GFLOPs honest"] = count_gflops(plain, side)
        with measuring(label, "latency"):
            call = make_call(load_fused(file, device), torch.zeros(1, 3, side, side, device=device), "inference", None)
            call()
            calls[label] = call
        with measuring(label, "memory") as mine:
            if device.type == "cuda":
                mine["MiB"] = measure_peak_memory(calls[label], device)
            else:
                lines = run_module("_compare.cost", str(file), str(side), str(batch)).splitlines()
                mine["MiB"], mine["MiB training"] = map(float, lines[-2:])
    times = time_in_turn(calls, device, ROUNDS, SECONDS * len(models)) if calls else {}
    first = next(iter(models))
    for label, mine in times.items():
        found[label] |= {"ms": 1e3 * mine.median, "spread": mine.spread}
        if first in times:
            found[label]["over_first"] = mine.over(times[first])
    return {"machine": describe_machine(device), "models": found}


def load_fused(file: Path, device: torch.device) -> nn.Module:
    """Load a checkpoint, fused as `yolo predict` runs it."""
    return load_checkpoint(file)[0].float().eval().fuse(verbose=False).to(device)


def load_trainable(file: Path) -> nn.Module:
    """Load a checkpoint, ready to train."""
    model = load_checkpoint(file)[0].float().train()
    for p in model.parameters():
        p.requires_grad_()  # a loaded checkpoint is frozen
    model.criterion, model.args = None, get_cfg(DEFAULT_CFG, getattr(model, "args", None) and dict(model.args))
    model.nc = model.yaml["nc"]
    return model


def main() -> None:
    """Print the figures. A small image goes first, so that memory that is allocated once does not count."""
    file, imgsz, batch = Path(sys.argv[1]), *map(int, sys.argv[2:])
    device, model = torch.device("cpu"), load_fused(Path(file), torch.device("cpu"))
    small, whole = (make_call(model, torch.zeros(1, 3, side, side), "inference", None) for side in (64, imgsz))
    small()
    print(measure_peak_memory(whole, device))
    model, options = load_trainable(file), {"autocast": None, "compile": False}
    make_training_step(model, device, options, 1, 64)()
    model.zero_grad(set_to_none=True)
    print(measure_peak_memory(make_training_step(model, device, options, batch, imgsz), device))


if __name__ == "__main__":
    main()
