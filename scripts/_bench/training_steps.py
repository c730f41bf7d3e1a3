"""Measure the parts of a training step, and of an epoch around it, against the untouched release.

Processes of all sides take turns. Each trains one epoch of a few steps with `yolo`'s own trainer, so that nothing of a
step is left out. Where the untouched release cannot build a model, the other sides are relative to the first of them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from _bench.cases import BASELINE, PUBLISHED
from _bench.release_trees import OURS, UNTOUCHED, lay_down_trees, run_python
from _bench.step_process import EPOCH_PARTS, REST
from _shared.small_data import write_shapes

NAMES = [BASELINE, *PUBLISHED, "rtdetr-r18"]
SIDES = {
    UNTOUCHED: {},
    OURS: {},
    "fast": {"fast_kernels": True},
    "recipe": {"fast_kernels": True, "checkpoint_activations": "norms"},
}
STEPS = (
    *("loader", "augmentation", "forward", "denoising", "matching", "loss", "backward"),
    *("clipping and checks", "optimiser", "EMA", REST),
)
SKIPPED = 2  # steps that build kernels and buffers


def measure_steps(
    root: Path, names: list[str], device: str, imgsz: int, batch: int, steps: int, rounds: int, report: Callable
) -> list[dict]:
    """Measure training steps of models.

    Args:
        root: The checkout.
        names: Models, by their file's name without `.yaml`.
        device: "cpu" or "cuda".
        imgsz: Image size, pixels.
        batch: Images a step.
        steps: Steps that count, in each process.
        rounds: Processes of each side.
        report: Is called with the name of each model that is done.

    Returns:
        A row for each model and side: seconds of a step and of its parts, seconds an epoch of validation, checkpoint
        and plots, MiB above what the start took, and `of the time` and `of the memory` of the first side.
    """
    rows = []
    with lay_down_trees(root) as trees, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data = write_shapes(Path(folder) / "shapes", batch * (steps + SKIPPED), 2 * batch)
        arguments = {"imgsz": imgsz, "batch": batch, "nbs": batch, "optimizer": "AdamW", "lr0": 1e-4, "amp": False}
        arguments |= {"pretrained": False, "project": folder, "mosaic": 0.0, "close_mosaic": 0}
        for name in names:
            request = {"model": find_model(root, name), "data": str(data), "device": device, "skip": SKIPPED}
            sides = {side: found for side, found in SIDES.items() if side != UNTOUCHED or is_upstream(trees, request)}
            found: dict[str, list[dict]] = defaultdict(list)
            for i in range(rounds):
                for side in list(sides)[:: -1 if i % 2 else 1]:
                    tree = trees[UNTOUCHED if side == UNTOUCHED else OURS]
                    asked = {**request, "arguments": {**arguments, **sides[side], "name": side}}
                    found[side].append(run_training(root, tree, asked, Path(folder)))
            rows += [summarise_side(name, side, found) for side in sides]
            report(name)
    return rows


def find_model(root: Path, name: str) -> str:
    """Give a model file that both trees find: a path, or upstream's own by name."""
    own = root / "cfg_custom" / "models" / f"{name}.yaml"
    return str(own if own.is_file() else f"{name}.yaml")


def is_upstream(trees: dict[str, Path], request: dict) -> bool:
    """Whether the untouched release can build a model."""
    try:
        run_python(
            trees[UNTOUCHED], ["-c", "import sys, ultralytics; ultralytics.RTDETR(sys.argv[1])", request["model"]]
        )
    except RuntimeError:
        return False
    return True


def run_training(root: Path, tree: Path, request: dict, folder: Path) -> dict:
    """Run `step_process.py` on a tree."""
    script = root / "scripts" / "_bench" / "step_process.py"
    return run_python(tree, [str(script), json.dumps(request)], folder).read_result()


def summarise_side(name: str, side: str, found: dict[str, list[dict]]) -> dict:
    """Summarise the processes of one side: medians over all steps, ratios of the same round."""
    first = next(iter(found))
    steps = [step for one in found[side] for step in one["steps"]]
    row: dict = {"model": name, "side": side, "step s": statistics.median(sum(step.values()) for step in steps)}
    row |= {part: statistics.median(step.get(part, 0.0) for step in steps) for part in STEPS}
    row |= {f"{part} s": statistics.median(one["epoch"][part] for one in found[side]) for part in EPOCH_PARTS}
    row["MiB"] = statistics.median(one["MiB"] for one in found[side])
    pairs = list(zip(found[side], found[first], strict=True))
    row["of the time"] = statistics.median(time_step(a) / time_step(b) for a, b in pairs)
    row["of the memory"] = statistics.median(a["MiB"] / b["MiB"] for a, b in pairs)
    row["losses"] = found[side][0]["losses"]
    return row


def time_step(one: dict) -> float:
    """Give the median seconds of a process's steps."""
    return statistics.median(sum(step.values()) for step in one["steps"])
