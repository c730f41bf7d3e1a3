"""Model files that cannot be used: one line says which and why, before a runtime does what it likes with them.

A runtime reads weights as they come: a model with a few changed bytes runs and finds nothing. Checkpoints and
TorchScript files have a checksum of each record, other exports the seal of `metadata`.
"""

from __future__ import annotations

import functools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import nn

from ultralytics import utils  # not YAML from it: releases that only build models have none
from ultralytics.nn.AddModules import restricted
from ultralytics.nn.AddModules.decoder import head_of
from ultralytics.nn.AddModules.errors import Refused, plain, quoted
from ultralytics.nn.AddModules.metadata import FOLDER, HEAD, WRITERS, broken_file, broken_folder, read_mnn
from ultralytics.nn.AddModules.restricted import OPT_OUT, Violation, is_restricted, records
from ultralytics.utils import LOGGER
from ultralytics.utils.downloads import is_url

__all__ = ()

ARCHIVES = ".pt", ".torchscript"  # zip archives, as torch writes them
LARGEST = 8192  # side of an image that a checkpoint can ask for, and stride
KINDS = {"task": (str, type(None)), "yaml": dict, "stride": torch.Tensor, "save": (list, tuple)}  # of a model's parts
COMPRESSED = 2**26  # bytes of all records: what torch compresses is the code of TorchScript
PICKLE = b"\x80"  # with which checkpoints of torch before 1.6 begin
NOT_A_MODEL = {
    b"version https://git-lfs": "is a pointer of Git LFS; `git lfs pull` fetches the file",
    b"<!doctype html": "is a web page",
    b"<html": "is a web page",
}
NO_FORMAT = "is not a supported model format"  # in upstream's words


def opened(init: Callable) -> Callable:
    """Wrap `AutoBackend.__init__`: what cannot be opened is one line that names the file."""

    @functools.wraps(init)
    def open_model(self: Any, model: Any = "yolo26n.pt", *args: Any, **kwargs: Any) -> None:
        if not isinstance(model, (str, Path)) or is_url(model, check=False) or not Path(model).exists():
            return init(self, model, *args, **kwargs)
        file = Path(model)
        if file.suffix == ".pt":  # `load_checkpoint` checks it
            return init(self, model, *args, **kwargs)
        check(file)
        try:
            init(self, model, *args, **kwargs)
            settle(self)
        except Exception as e:
            if getattr(e, "plain", False):
                raise
            raise told(file, e) from e
        if file.is_dir() and not self.metadata:
            raise Refused(
                f"{file} has no {FOLDER}, which names its head and its classes: without it what comes out means "
                "nothing. Copy it from where the other files came from"
            )
        size = self.metadata.get("imgsz") if self.metadata else None
        if size and not self.dynamic and kwargs.get("verbose", True):
            LOGGER.info(f"{file} takes images of {'x'.join(map(str, size))} only, whatever imgsz= says")

    return open_model


def settle(backend: Any) -> None:
    """Run a dynamic OpenVINO model once: after a first image of 32x32, 2026.4 gives others wrong detections."""
    if backend.format == "openvino" and backend.dynamic and backend.metadata.get("head") == HEAD:
        backend.backend.forward(torch.zeros(1, backend.channels, 64, 64))


def intact(load_checkpoint: Callable) -> Callable:
    """Wrap upstream's `load_checkpoint`: a file that is not as it was written is one line.

    RT-DETR's anchors, which a checkpoint holds for its last size, rounded to half precision, are made again: a score
    would be off by 1e-3, at that size only. What else it says is taken only as far as upstream can use it.
    """

    @functools.wraps(load_checkpoint)
    def load(weight: Any, *args: Any, **kwargs: Any) -> tuple:
        if isinstance(weight, (str, Path)) and Path(weight).suffix == ".pt" and Path(weight).is_file():
            check(Path(weight))
        try:
            model, *others = load_checkpoint(weight, *args, **kwargs)
            found = head_of(model)
            if found:
                found[1].shapes = []
            said = {}  # both have the same
            for arguments in (getattr(model, "args", None), (others[0] or {}).get("train_args")):
                said |= dict.fromkeys(forget(arguments) if isinstance(arguments, dict) else ())
            for line in said:
                LOGGER.warning(f"{weight} names {line}")
            keep_inside(model)
            check_kinds(model)
        except Exception as e:
            if getattr(e, "plain", False) or isinstance(e, OSError):
                raise
            why = "it is a state dict, weights without layers" if is_state_dict(weight) else str(e)
            why = quoted(why.replace("ERROR ❌️ ", ""), 200)
            raise plain(TypeError(f"{weight} holds no model that can be used ({why}). {again(weight)}")) from e
        return model, *others

    return load


def is_state_dict(weight: Any) -> bool:
    """Whether a file holds tensors by their names, and nothing else."""
    try:
        found = restricted.load(weight, map_location="cpu", mmap=True)
    except Exception:  # whatever it is, then
        return False
    return isinstance(found, dict) and bool(found) and all(isinstance(x, torch.Tensor) for x in found.values())


def forget(args: dict) -> Iterator[str]:
    """Take from a checkpoint's arguments a data set elsewhere, which would be fetched, and a size that no image has.

    Yields:
        What it named.
    """
    data, size = args.get("data"), args.get("imgsz")
    if data is not None and (not isinstance(data, (str, Path)) or "://" in str(data)):
        named = quoted(data, 200) if isinstance(data, str) else f"a {type(data).__name__}"
        yield f"{named} as its data set, which is not fetched: name it by data="
        args["data"] = None
    sides = size if isinstance(size, (list, tuple)) else [size]
    if size is not None and not all(isinstance(x, int) and 0 < x <= LARGEST for x in sides):
        yield f"{quoted(size, 80)} as its image size, which is none: name it by imgsz="
        del args["imgsz"]


def keep_inside(model: Any) -> None:
    """Take from class names what would lead out of the folder in which `save_crop` makes one for each class."""
    names = getattr(model, "names", None)
    if names is None:
        return
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    model.names = {int(key): inside(str(name)) for key, name in pairs}
    if sorted(model.names) != list(range(len(model.names))):
        raise ValueError("its classes are not numbered from 0")


def inside(name: str) -> str:
    """Give a class name that is no path to elsewhere, on any system."""
    path = PureWindowsPath(name)  # which takes both slashes
    if not (path.drive or path.root or {".", ".."} & {name, *path.parts} or "\0" in name):
        return name
    return re.sub(r"[/\\:\0]|^\.+$", "_", name)


def check_kinds(model: Any) -> None:
    """Raise a `ValueError` for a model whose attributes are not of the kinds that upstream computes with."""
    layers = model.model if isinstance(getattr(model, "model", None), nn.Sequential) else ()
    layers = [m for m in layers if hasattr(m, "f") and hasattr(m, "i")]
    froms = [x for m in layers for x in (m.f if isinstance(m.f, (list, tuple)) else [m.f])]
    stride = getattr(model, "stride", None)
    wrong = [key for key, kind in KINDS.items() if hasattr(model, key) and not isinstance(getattr(model, key), kind)]
    if wrong:
        raise ValueError(f"its {wrong[0]} is a {type(getattr(model, wrong[0])).__name__}")
    if isinstance(stride, torch.Tensor) and not (stride.numel() and ((stride >= 1) & (stride <= LARGEST)).all()):
        raise ValueError(f"its stride is {quoted(stride.tolist(), 80)}")
    if not all(isinstance(x, int) for x in [*froms, *(m.i for m in layers), *(getattr(model, "save", None) or ())]):
        raise ValueError("its layers come from no layers")


def reading(read_metadata: Callable) -> Callable:
    """Wrap `BaseBackend.read_metadata`: it reads that of MNN files too, without MNN, and none of a damaged file."""

    @functools.wraps(read_metadata)
    def read(path: str | Path) -> dict:
        file = Path(path)
        if file.exists() and (file.is_dir() or file.suffix in WRITERS):
            check(file)
        if file.suffix != ".mnn":
            return read_metadata(path)
        try:
            return read_mnn(file)
        except (OSError, ValueError):  # as upstream's does for what it cannot read
            return {}

    return read


def told(file: Path, error: Exception) -> Exception:
    """Give the error to raise for one that a runtime has raised; the type says whether the runtime is there at all."""
    if isinstance(error, ModuleNotFoundError):
        return plain(ImportError(f"{file} needs the package {error.name}, which is not installed"))
    if isinstance(error, StopIteration):
        return Refused(f"{file} has not the files of a model of its kind. {again(file)}")
    if NO_FORMAT in str(error):
        ends = "_openvino_model" if file.is_dir() else ".pt, .onnx, .torchscript, .mnn or as the format has it"
        return Refused(f"{file} has a name that tells no format: rename it, so that it ends in {ends}")
    first = error.__cause__ or error  # upstream's own errors are of several lines
    line = f"{file} cannot be opened ({type(first).__name__}: {' '.join(str(first).split())[:200]}). {again(file)}"
    return plain(ImportError(line)) if isinstance(error, ImportError) else Refused(line)


def again(file: Any) -> str:
    """Say what to do about a file that is not as it was written."""
    more = "" if Path(file).suffix == ".pt" else ", or export it again from the checkpoint"
    return f"Copy or download it again{more}"


def check(file: Path) -> None:
    """Raise a `ValueError` for a file or folder that is plainly no whole model."""
    try:
        problem = damage(file)
    except Violation as e:
        raise Refused(f"{file} {quoted(e)}. {OPT_OUT if is_restricted() else again(file)}") from None
    if problem:
        raise Refused(f"{file} {problem}. {again(file)}")


def damage(file: Path) -> str | None:
    """Tell what is wrong with a model file or folder; None where nothing is seen."""
    if file.is_dir():
        try:
            metadata = utils.YAML.load(file / FOLDER) if (file / FOLDER).is_file() else {}
        except Exception:  # of YAML, of its encoding
            metadata = None
        if not isinstance(metadata, dict) or not metadata and (file / FOLDER).is_file():
            return f"is damaged: {FOLDER} is not readable"
        found = broken_folder(file, metadata)
        return f"is damaged: {found}" if found else None
    with open(file, "rb") as f:
        begin = f.read(64)
    if not begin:
        return "is empty"
    found = next((what for text, what in NOT_A_MODEL.items() if begin.lstrip().lower().startswith(text)), None)
    if found:
        return found
    if file.suffix in ARCHIVES and not (file.suffix == ".pt" and begin.startswith(PICKLE)):
        return archive_damage(file)
    found = broken_file(file)
    return f"is damaged: {found}" if found else None


def archive_damage(file: Path) -> str | None:
    """Tell what is wrong with an archive that torch has written."""
    try:
        with open(file, "rb") as f:
            found = records(f, file.stat().st_size)
        code = sum(record.file_size for record in found if record.compress_type != zipfile.ZIP_STORED)
        if code > COMPRESSED:
            return f"has records that unpack to {code / 2**20:.0f} MiB, which torch does not write"
        with zipfile.ZipFile(file) as archive:
            for record in found:
                if record.CRC:  # torch can be told to record none
                    with archive.open(record) as f:  # its end is where the checksum is compared
                        while f.read(2**20):
                            pass
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, zlib.error) as e:
        return f"is damaged or truncated: it is no whole archive of torch ({e})"
    return None
