"""Measure whole `yolo` commands against the untouched release: processor time, time on the clock and peak memory.

Both sides read the same checkpoint, which the untouched release has written, the same ONNX file and the same images.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from _bench.release_trees import OURS, UNTOUCHED, YOLO, Finished, lay_down_trees, run_python
from _shared.small_data import write_shapes
from _shared.timing import Times

IMGSZ, TRAINED, VALIDATED = 320, 16, 64  # pixels, images
PREPARE = """
import sys
from ultralytics import RTDETR
model = RTDETR(sys.argv[1])
model.save("model.pt")
if sys.argv[3] == "onnx":
    RTDETR("model.pt").export(format="onnx", imgsz=int(sys.argv[2]))
"""


@dataclass
class Command:
    """A command of `yolo`.

    Attributes:
        name: As it is in the table.
        arguments: Of `yolo`.
        needs: The modules without which it cannot run.
    """

    name: str
    arguments: list[str]
    needs: tuple[str, ...] = field(default=())

    @property
    def is_possible(self) -> bool:
        """Whether what it needs is installed."""
        return all(importlib.util.find_spec(name) for name in self.needs)


def list_commands(model: str, imgsz: int) -> list[Command]:
    """List the commands: the start, a first prediction of each kind, a validation and a training."""
    common = [f"imgsz={imgsz}", "project=runs", "exist_ok=True", "verbose=False"]
    image = ["source=bus.jpg", *common]
    return [
        Command("yolo version", ["version"]),
        Command("predict, 1 image, .pt", ["predict", "model=model.pt", *image]),
        Command("predict, 1 image, .onnx", ["predict", "model=model.onnx", *image], ("onnxruntime",)),
        Command(f"val, {VALIDATED} images", ["val", "model=model.pt", "data=shapes.yaml", "batch=4", *common]),
        Command(
            f"train, 1 epoch, {TRAINED} images",
            ["train", f"model={model}", "data=few.yaml", "epochs=1", "batch=4", "pretrained=False", *common],
        ),
    ]


def write_inputs(trees: dict[str, Path], folder: Path, model: str, imgsz: int) -> None:
    """Write the model's files, the images and the data sets' YAMLs that all commands read."""
    write_shapes(folder / "shapes", 4, VALIDATED)
    write_shapes(folder / "few", TRAINED, TRAINED)
    shutil.copy(trees[UNTOUCHED] / "ultralytics" / "assets" / "bus.jpg", folder)
    kind = "onnx" if importlib.util.find_spec("onnxruntime") else "pt"
    run_python(trees[UNTOUCHED], ["-c", PREPARE, model, str(imgsz), kind], folder)


def measure_commands(
    root: Path, model: str, only: str, rounds: int, report: Callable[[str], object], imgsz: int = IMGSZ
) -> list[dict]:
    """Run each command in turn on both trees.

    Args:
        root: The checkout.
        model: A model that the untouched release has, by its file's name without `.yaml`.
        only: What the names of the commands have in them.
        rounds: Processes of each side.
        report: Is called with the name of each command that is done.
        imgsz: Image size, pixels.

    Returns:
        A row for each command: ours over the untouched release, medians of the ratios of the same round.
    """
    rows = []
    model = f"{model}.yaml"
    with lay_down_trees(root) as trees, tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_inputs(trees, folder, model, imgsz)
        for command in list_commands(model, imgsz):
            if only not in command.name or not command.is_possible:
                continue
            rows.append({"command": command.name, **measure_command(command.arguments, trees, folder, rounds)})
            report(command.name)
    return rows


def measure_command(arguments: list[str], trees: dict[str, Path], folder: Path, rounds: int) -> dict:
    """Run one command in turn on both trees, once more than counts."""
    found: dict[str, list[Finished]] = {OURS: [], UNTOUCHED: []}
    for i in range(rounds + 1):
        for side, tree in list(trees.items())[:: 1 if i % 2 else -1]:
            finished = run_python(tree, ["-c", YOLO, *arguments], folder)
            if i:  # the first ones write byte code and warm the disk's cache
                found[side].append(finished)
    row = {}
    for key in ("cpu", "wall", "peak"):
        ours, untouched = (Times([getattr(one, key) for one in found[side]]) for side in (OURS, UNTOUCHED))
        row |= {f"ours {key}": ours.median, f"untouched {key}": untouched.median, f"of {key}": ours.over(untouched)}
    return row
