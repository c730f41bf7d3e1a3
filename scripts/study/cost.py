"""What a trained model costs: parameters, operations, latency and memory, for the table of a study.

python -m study.cost FILE PIXELS    print the MiB that a forward takes on the CPU, which only a process of its own tells
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from benchmark.measure import caller, peak_of
from benchmark.timing import compare
from flops import count_gflops, count_published_gflops
from torch import nn

from ultralytics.nn.tasks import load_checkpoint

ROUNDS, SECONDS = 30, 20.0  # samples of each model; seconds for each model, at the most
SCOPE = "forward of the fused model in fp32, batch 1, warm, without pre- and post-processing"


def costs(models: dict[str, Path], imgsz: int, device: torch.device) -> dict[str, dict]:
    """Measure models beside each other.

    Args:
        models: A checkpoint by label.
        imgsz: Side of the image in pixels.
        device: Where they are timed.

    Returns:
        By label: parameters; GFLOPs at this size, as published tables count them and honestly; `ms`, the median latency
        over rounds in which all models take turns, its `spread` (half the distance of the quartiles, over the median)
        and `over_first`, the median ratio to the first model of the same round; `MiB` of a forward at its peak.
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
        found[label]["MiB"] = peak_of(calls[label], device) if device.type == "cuda" else peak_alone(file, imgsz)
    return found


def fused(file: Path, device: torch.device) -> nn.Module:
    """Load a checkpoint as `yolo predict` runs it."""
    return load_checkpoint(file)[0].float().eval().fuse(verbose=False).to(device)


def peak_alone(file: Path, imgsz: int) -> float | None:
    """Measure a forward's memory on the CPU in a process of its own; None where it cannot be told."""
    scripts = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "study.cost", str(file), str(imgsz)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    return None if done.returncode else float(done.stdout.split()[-1])


def main() -> None:
    """Print one figure; a small image goes first, which sets up what is no activation."""
    file, imgsz = Path(sys.argv[1]), int(sys.argv[2])
    model, device = fused(file, torch.device("cpu")), torch.device("cpu")
    caller(model, torch.zeros(1, 3, 64, 64), "inference", None)()
    print(peak_of(caller(model, torch.zeros(1, 3, imgsz, imgsz), "inference", None), device))


if __name__ == "__main__":
    main()
