"""Say in one line which exported model cannot be opened and why, before a runtime computes with damaged weights.

A runtime reads weights as they come: a model with a few changed bytes runs and finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ultralytics import utils  # not YAML from it: older releases have functions in its place
from ultralytics.fork.checkpoints.file_damage import (
    ARCHIVE_SUFFIXES,
    find_archive_damage,
    refuse_damaged,
    replacement_advice,
)
from ultralytics.fork.errors import Refused, is_plain, mark_as_plain
from ultralytics.fork.export.metadata import RTDETR_HEAD, WRITERS, read_mnn_metadata
from ultralytics.fork.export.seals import METADATA_FILE, find_file_change, find_folder_change
from ultralytics.utils import LOGGER
from ultralytics.utils.downloads import is_url

NO_FORMAT = "is not a supported model format"  # in upstream's words


def open_backend(init: Callable, backend: Any, model: Any = "yolo26n.pt", *args: Any, **kwargs: Any) -> None:
    """Open a model file as `AutoBackend` does, after a check of the file.

    Args:
        init: Upstream's `AutoBackend.__init__`.
        backend: The `AutoBackend`.
        model: A model, its file or its address.

    Raises:
        Refused: With the file, if it is damaged or its runtime cannot open it.
        ImportError: If its runtime is not installed.
    """
    is_file = isinstance(model, (str, Path)) and not is_url(model, check=False) and Path(model).exists()
    if not is_file or Path(model).suffix == ".pt":  # `load_checkpoint` checks a .pt
        return init(backend, model, *args, **kwargs)
    file = Path(model)
    check_export(file)
    try:
        init(backend, model, *args, **kwargs)
        run_dynamic_openvino_once(backend)
    except Exception as e:
        if is_plain(e):
            raise
        raise explain_runtime_error(file, e) from e
    if file.is_dir() and not backend.metadata:
        raise Refused(
            f"{file} has no {METADATA_FILE}, which names its head and its classes: without it what comes out means "
            "nothing. Copy it from where the other files came from"
        )
    size = backend.metadata.get("imgsz") if backend.metadata else None
    if size and not backend.dynamic and kwargs.get("verbose", True):
        LOGGER.info(f"{file} takes images of {'x'.join(map(str, size))} only, whatever imgsz= says")


def run_dynamic_openvino_once(backend: Any) -> None:
    """Run a dynamic OpenVINO model once: after a first image of 32x32 it finds wrong detections in others."""
    if backend.format == "openvino" and backend.dynamic and backend.metadata.get("head") == RTDETR_HEAD:
        backend.backend.forward(torch.zeros(1, backend.channels, 64, 64))


def read_checked_metadata(read_metadata: Callable, path: str | Path) -> dict:
    """Read the metadata of an export: also of an MNN file, without MNN; never of a damaged file.

    Args:
        read_metadata: Upstream's `BaseBackend.read_metadata`.
        path: The export.

    Raises:
        Refused: If the export is damaged.
    """
    file = Path(path)
    if file.exists() and (file.is_dir() or file.suffix in WRITERS):
        check_export(file)
    if file.suffix != ".mnn":
        return read_metadata(path)
    try:
        return read_mnn_metadata(file)
    except (OSError, ValueError):  # as upstream's does for what it cannot read
        return {}


def explain_runtime_error(file: Path, error: Exception) -> Exception:
    """Make the error to raise for one that a runtime has raised; its type says whether the runtime is there at all."""
    if isinstance(error, ModuleNotFoundError):
        return mark_as_plain(ImportError(f"{file} needs the package {error.name}, which is not installed"))
    if isinstance(error, StopIteration):
        return Refused(f"{file} has not the files of a model of its kind. {replacement_advice(file)}")
    if NO_FORMAT in str(error):
        ending = "_openvino_model" if file.is_dir() else ".pt, .onnx, .torchscript, .mnn or as the format has it"
        return Refused(f"{file} has a name that tells no format: rename it, so that it ends in {ending}")
    first = error.__cause__ or error  # upstream's own errors are of several lines
    reason = f"{type(first).__name__}: {' '.join(str(first).split())[:200]}"
    line = f"{file} cannot be opened ({reason}). {replacement_advice(file)}"
    return mark_as_plain(ImportError(line)) if isinstance(error, ImportError) else Refused(line)


def check_export(file: Path) -> None:
    """Check that the file or folder of an export is not damaged.

    Raises:
        Refused: With the file and its damage.
    """
    refuse_damaged(file, find_damage)


def find_damage(file: Path) -> str | None:
    """Say what is wrong with a model file or folder; None where nothing is seen."""
    if file.is_dir():
        return find_folder_damage(file)
    damage = find_archive_damage(file)
    if damage or file.suffix in ARCHIVE_SUFFIXES:
        return damage
    change = find_file_change(file)
    return f"is damaged: {change}" if change else None


def find_folder_damage(folder: Path) -> str | None:
    """Say what is wrong with an export that is a folder; None where nothing is seen."""
    file = folder / METADATA_FILE
    try:
        metadata = utils.YAML.load(str(file)) if file.is_file() else {}
    except Exception:  # of YAML, of its encoding
        metadata = None
    if not isinstance(metadata, dict) or (not metadata and file.is_file()):
        return f"is damaged: {METADATA_FILE} is not readable"
    change = find_folder_change(folder, metadata)
    return f"is damaged: {change}" if change else None
