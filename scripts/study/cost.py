"""What a trained model costs: parameters, operations, latency and memory, for the table of a study.

    python -m study.cost FILE PIXELS BATCH    print the MiB that a forward and a training step take on the CPU

Only a process of its own tells the last.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark.measure import caller, peak_of
from benchmark.report import machine
from benchmark.timing import compare
from flops import count_gflops, count_published_gflops
from torch import nn

from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG

ROUNDS, SECONDS = 30, 20.0  # samples of each model; seconds for each model, at the most
PEAKS = "MiB", "MiB training"
SCOPE = "forward of the fused model in fp32, batch 1, warm, without pre- and post-processing"


def costs(models: dict[str, Path], imgsz: int, device: torch.device, batch: int) -> dict[str, Any]:
    """Measure models beside each other.

    Args:
        models: A checkpoint by label.
        imgsz: Side of the image in pixels.
        device: Where they are timed.
        batch: Images of a training step.

    Returns:
        The `machine`, and `models`, by label: parameters; GFLOPs at this size, as published tables count them and
        honestly; `ms`, the median latency over rounds in which all models take turns, its `spread` (half the distance
        of the quartiles, over the median) and `over_first`, the median ratio to the first model of the same round;
        `MiB` of a forward at its peak, and on a CPU `MiB training` of a training step.
    """
    x = torch.zeros(1, 3, imgsz, imgsz, device=device)
    calls, found = {}, {}
    for label, file in models.items():
        plain = load_checkpoint(file)[0].float().eval()
        found[label] = {
            "parameters": sum(p.numel() for p in plain.parameters()),
            "GFLOPs published": count_published_gflops(plain, imgsz),
            "GFLOPs honest": count_gflops(plain, imgsz),
        }
        calls[label] = caller(fused(file, device), x, "inference", None)
    times = compare(calls, device, ROUNDS, SECONDS * len(models))
    first = next(iter(models))
    for label, file in models.items():
        mine = times[label]
        found[label] |= {"ms": 1e3 * mine.median, "spread": mine.spread, "over_first": mine.over(times[first])}
        if device.type == "cuda":
            found[label]["MiB"] = peak_of(calls[label], device)
        else:
            found[label] |= peaks_alone(file, imgsz, batch)
    return {"machine": machine(device), "models": found}


def fused(file: Path, device: torch.device) -> nn.Module:
    """Load a checkpoint as `yolo predict` runs it."""
    return load_checkpoint(file)[0].float().eval().fuse(verbose=False).to(device)


def peaks_alone(file: Path, imgsz: int, batch: int) -> dict[str, float]:
    """Measure memory on the CPU in a process of its own, by this file's command; what it cannot tell is not there."""
    scripts = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "study.cost", str(file), str(imgsz), str(batch)]
    lines = subprocess.run(command, capture_output=True, text=True, env=env).stdout.splitlines()
    found = (line.partition(": ") for line in lines)
    return {name: float(value) for name, _, value in found if name in PEAKS}


def main() -> None:
    """Print the figures, the smaller first, as a machine may be too small for the other."""
    file, imgsz, batch = Path(sys.argv[1]), *map(int, sys.argv[2:])
    device = torch.device("cpu")
    model = fused(file, device)
    forward, step = PEAKS

    def run(side: int) -> Callable[[], object]:
        return caller(model, torch.zeros(1, 3, side, side), "inference", None)

    run(64)()  # sets up what is no activation
    print(f"{forward}: {peak_of(run(imgsz), device)}", flush=True)
    train = training_step(load_checkpoint(file)[0].float().train(), device)
    train(1, 64)
    print(f"{step}: {peak_of(lambda: train(batch, imgsz), device)}")


def training_step(model: nn.Module, device: torch.device) -> Callable[[int, int], None]:
    """Give a function that takes a step with AdamW, on images and objects made up, for a batch and a size."""
    for p in model.parameters():
        p.requires_grad_()  # as in training; a loaded checkpoint is frozen
    model.criterion, model.args = None, get_cfg(DEFAULT_CFG, getattr(model, "args", None) and dict(model.args))
    model.nc = model.yaml["nc"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(batch: int, imgsz: int) -> None:
        objects = 4 * batch
        data = {
            "img": torch.rand(batch, 3, imgsz, imgsz, device=device),
            "batch_idx": torch.arange(objects, device=device).float() // 4,
            "cls": torch.zeros(objects, 1, device=device),
            "bboxes": torch.rand(objects, 4, device=device) * 0.2 + 0.3,
        }
        optimizer.zero_grad(set_to_none=True)
        model.loss(data)[0].sum().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
