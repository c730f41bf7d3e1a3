"""Do one run of a study: train or resume it, validate it, and write its outcome."""

from __future__ import annotations

import contextlib
import csv
import gc
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from _compare.study_folder import FOUND, IRRELEVANT_ARGUMENTS, Run, collect_versions, training_arguments
from _compare.validation import validate_checkpoint
from ultralytics import YOLO
from ultralytics.fork.training.resume import read_checkpoint
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import select_device

# The training's arguments that also apply to validation
VALIDATION_ARGUMENTS = (
    "imgsz",
    "batch",
    "workers",
    "single_cls",
    "classes",
    "max_det",
    "iou",
    "conf",
    "agnostic_nms",
    "split",
)
STRIDE = 32  # upstream's validator makes the image's side a multiple of it


def perform_run(run: Run, settings: dict, watch: Callable | None = None) -> dict:
    """Train a run to its end, validate it and write its outcome.

    A run that is done is not repeated, and an interrupted one continues from its checkpoint. An error becomes the
    outcome.

    Args:
        run: The run.
        settings: Of the study.
        watch: Called with the trainer after each epoch.

    Returns:
        The outcome: `state` "done", with `figures`, `epochs`, `seconds` of training and `MiB` that torch allocated
        on a GPU at its peak; or "failed" with `error` and `traceback`.
    """
    if run.is_done:
        return run.outcome
    try:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trained_here = train_run(run, settings, watch)
        # On a CPU, memory of earlier runs would count: there a process of its own measures it
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() and trained_here else None
        outcome = {"state": "done", "MiB": peak or None, **validate_run(run, settings)}
    except Exception as e:
        outcome = {"state": "failed", "error": summarise_error(e), "traceback": traceback.format_exc()}
    run.conclude({**outcome, "taken": run.source(), "versions": collect_versions()})
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return run.outcome


def summarise_error(error: Exception) -> str:
    """Format an error in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def train_run(run: Run, settings: dict, watch: Callable | None = None) -> bool:
    """Train, or resume a training; return whether this process has trained.

    With several GPUs, upstream trains in other processes, which do not call `watch`.
    """
    if run.taken:
        return False
    if run.last.is_file():
        if read_checkpoint(run.last).get("optimizer") is None:  # final checkpoints have none
            return False
        here = {key: value for key, value in settings["arguments"].items() if key in IRRELEVANT_ARGUMENTS - {"verbose"}}
        model, arguments = YOLO(run.last), {"resume": True, **here}
    else:
        model, arguments = YOLO(run.model), run.arguments(settings)
    if watch:
        model.add_callback("on_train_epoch_end", watch)
    model.train(**arguments)
    return getattr(model.trainer, "world_size", 1) < 2


def validate_run(run: Run, settings: dict) -> dict:
    """Validate the best weights, and return the run's result."""
    arguments = training_arguments(run.best)
    device = choose_device(arguments, settings)
    # The trainer may have chosen size and batch; the study's arguments apply to existing runs, too
    said = {**arguments, **settings["arguments"]} if run.taken else arguments
    kept = {key: said[key] for key in VALIDATION_ARGUMENTS if key in said}
    found, figures = validate_checkpoint(run.best, run.folder / "val", data=settings["data"], device=device, **kept)
    found.save(run.folder / FOUND)
    curve = read_epochs(run.trained)
    return {
        "figures": figures,
        "epochs": len(curve),
        "of": arguments["epochs"],
        "is over": read_checkpoint(run.best).get("optimizer") is None,
        "seconds": curve[-1]["time"] if curve else None,
        "imgsz": check_imgsz(said["imgsz"], stride=STRIDE, max_dim=1),
        "split": kept.get("split", "val"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def choose_device(arguments: dict, settings: dict) -> str:
    """Return the study's device, else that of the run's training if it exists here."""
    given = settings["arguments"].get("device")
    if given is not None:
        return given
    try:
        select_device(arguments.get("device"), verbose=False)
    except ValueError:
        return ""
    return arguments.get("device") or ""


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """Read upstream's results of each epoch."""
    file = folder / "results.csv"
    if not file.is_file():
        return []
    with open(file, encoding="utf-8", newline="") as f:
        rows = [{(key or "").strip(): value for key, value in row.items()} for row in csv.DictReader(f)]
    found = []
    for row in rows:
        with contextlib.suppress(TypeError, ValueError):  # a line that a kill has cut; a resumed run writes it again
            found.append({key: float(value) for key, value in row.items()})
    return found
