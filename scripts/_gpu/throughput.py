"""Training in bf16 by `yolo`'s own trainer: images per second and memory, also of the untouched release."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from _bench.release_trees import run_python
from _bench.training_steps import SIDES, SKIPPED, find_model
from _gpu.checks import NotHere, Options, require, run_check
from _gpu.models import list_names
from _shared.flops import count_gflops
from _shared.small_data import write_shapes
from ultralytics.nn.tasks import RTDETRDetectionModel

ROOT = Path(__file__).resolve().parents[2]
UNTOUCHED = ROOT / ".gpu" / "untouched"
STEPS = 12


def check_throughput(name: str, options: Options) -> None:
    """Measure one model; the baseline also on the untouched release, and with the recipes' switches."""
    is_baseline = name == list_names(options)[0]
    for side in ("untouched", "ours", "recipe") if is_baseline else ("ours", "recipe"):
        run_check("throughput", f"{name}: {side}", lambda side=side: measure_throughput(name, side, options))


def measure_throughput(name: str, side: str, options: Options) -> dict:
    """Train some steps in a process of its own."""
    tree = UNTOUCHED if side == "untouched" else ROOT
    if not (tree / "ultralytics").is_dir():
        raise NotHere("the untouched release is not in .gpu: run `python scripts/gpu.py --prepare` first")
    imgsz, batch, steps = (64, 2, 2) if options.small else (640, 16, STEPS)
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        data = write_shapes(Path(folder) / "shapes", batch * (steps + SKIPPED), batch, size=96)
        arguments = {"imgsz": imgsz, "batch": batch, "nbs": batch, "optimizer": "AdamW", "lr0": 1e-4}
        arguments |= {"pretrained": False, "project": folder, "mosaic": 0.0, "close_mosaic": 0, "plots": False}
        arguments |= {"deterministic": False, "amp": "bf16" if options.device == "cuda" else False, **SIDES[side]}
        request = {"model": find_model(ROOT, name), "data": str(data), "device": options.device, "skip": SKIPPED}
        script = ROOT / "scripts" / "_bench" / "step_process.py"
        found = run_python(tree, [str(script), json.dumps({**request, "arguments": arguments})], Path(folder))
    result = found.read_result()
    seconds = statistics.median(sum(step.values()) for step in result["steps"])
    require(all(abs(loss) < 1e6 for loss in result["losses"]), f"losses are {result['losses'][:3]}")
    gflops = count_gflops(RTDETRDetectionModel(f"{name}.yaml", verbose=False), imgsz)
    parts = {part: statistics.median(step.get(part, 0.0) for step in result["steps"]) for part in result["steps"][0]}
    slowest = dict(sorted(parts.items(), key=lambda item: -item[1])[:4])
    rate = batch / seconds
    return {
        **{"images/s": rate, "images/s x GFLOPs": rate * gflops, "MiB": result["MiB"]},
        **{f"{part} ms": 1e3 * value for part, value in slowest.items()},
    }
