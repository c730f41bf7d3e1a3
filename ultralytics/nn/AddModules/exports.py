"""Exports that are proven: each runs in its own runtime and finds what the PyTorch model finds, or is removed."""

from __future__ import annotations

import copy
import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ultralytics.nn.AddModules.compatibility import one_size
from ultralytics.nn.AddModules.decoder import head_of, shorten
from ultralytics.nn.AddModules.errors import Refused, plain
from ultralytics.nn.AddModules.metadata import write_metadata
from ultralytics.nn.AddModules.parity import BOUNDS, PHOTOGRAPHS, Bounds, compare, inputs, ties
from ultralytics.utils import LOGGER, MACOS

__all__ = ()

# What upstream exports to, and RT-DETR does not run in
CANNOT = {"ncnn": "NCNN has no top-k, with which RT-DETR chooses its queries; format=mnn is for the same devices"}
ALIASES = {"mlmodel": "coreml"}
ENGINE = "engine", "tensorrt", "trt"
NO_GPU = (
    "TensorRT builds its file on the NVIDIA GPU that will run it, and torch sees none here. format=onnx gives what it "
    "is built from: `trtexec --onnx=FILE` there, or this command"
)
ELSEWHERE = "The README says which formats are proven, and how each is installed"
BITS = {16: 16, 8: 8, "w8a16": 8, "w8a32": 8}  # by `quantize=`


def remembered(call: Callable) -> Callable:
    """Wrap the exporter's `__call__`: what is to be exported is checked, and kept, for the export changes a copy."""

    @functools.wraps(call)
    def export(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.args.verify, bool):
            raise Refused(f"verify={self.args.verify!r}: expected True or False")
        if self.args.format.lower() in ENGINE and not torch.cuda.is_available():
            raise Refused(f"format={self.args.format}: {NO_GPU}")
        self.original = model
        with nullcontext() if self.args.dynamic else one_size():
            return call(self, model, *args, **kwargs)

    return export


def verified(export: Callable, form: str) -> Callable:
    """Wrap an exporter's method; where another format goes on from its file, nothing is verified here."""

    @functools.wraps(export)
    def to_file(self: Any, *args: Any, **kwargs: Any) -> Any:
        if form == "mnn":  # or MNN's tools would send what they do to their makers, and install what they need for it
            sys.modules.setdefault("MNN.tools.utils.log", None)
        if ALIASES.get(self.args.format, self.args.format) != form or head_of(self.model) is None:
            return export(self, *args, **kwargs)
        if form in CANNOT and self.args.verify:
            raise Refused(f"format={form}: {CANNOT[form]}. verify=False exports it all the same")
        try:
            with nullcontext() if form == "onnx" else kept(self.file.with_suffix(".onnx")):
                found = export(self, *args, **kwargs)
        except ModuleNotFoundError as e:
            line = f"format={form} needs the package {e.name}, which is not installed. {ELSEWHERE}"
            raise plain(ImportError(line)) from None
        file = Path(found[0] if isinstance(found, tuple) else found)  # SavedModel's comes with Keras' model
        if self.args.verify:
            verify(self, file)
        write_metadata(file, self.metadata)
        return found

    return to_file


@contextmanager
def kept(file: Path) -> Iterator[None]:
    """Keep a file that is there: that on the way to another format has its name."""
    aside = file.with_name(f".{file.name}.kept")
    there = file.is_file()
    if there:
        file.replace(aside)
    try:
        yield
    finally:
        if there:
            aside.replace(file)


def verify(exporter: Any, file: Path) -> None:
    """Run an export in its own runtime, compare what it finds with the PyTorch model, and say so in its metadata.

    Args:
        exporter: Upstream's, with the model that it has exported.
        file: The file or folder.

    Raises:
        Refused: If it does not run, or finds something else. It is removed.
    """
    bounds = BOUNDS[BITS.get(exporter.args.quantize, 32)]
    model, most, found = whole_model(exporter), head_of(exporter.model)[1].max_det, []
    try:
        backend = load(file, exporter)
        for name, x in tried(exporter).items():
            expected, tied = reference(model, x.to(exporter.device), bounds)
            y = backend(x.to(exporter.im.device))
            y = torch.as_tensor(y[0] if isinstance(y, (list, tuple)) else y)
            found.append(compare(name, expected[:, :most], y, tuple(x.shape[2:]), bounds, tied))
    except (ImportError, OSError) as e:
        LOGGER.warning(f"{file} is not verified: its runtime is not on this machine ({' '.join(str(e).split())[:200]})")
        return
    except Exception as e:
        remove(file)
        raise Refused(
            f"{file} does not run in its own runtime ({type(e).__name__}: {' '.join(str(e).split())[:300]}), and is "
            "removed. verify=False exports it all the same"
        ) from e
    for parity in found:
        LOGGER.info(f"{exporter.args.format} against PyTorch, {parity}")
    wrong = next((parity for parity in found if not parity.holds(bounds)), None)
    if wrong:
        remove(file)
        raise Refused(
            f"{file} does not find what the PyTorch model finds ({wrong}; expected {bounds.share:.0%} within "
            f"{bounds.pixels(exporter.imgsz):g} px and {bounds.score:g}), and is removed. "
            "verify=False exports it all the same"
        )
    exporter.metadata["parity"] = {"bounds": vars(bounds), "inputs": [parity.record() for parity in found]}


def load(file: Path, exporter: Any) -> Any:
    """Open an export as `yolo predict` does."""
    from ultralytics.nn.autobackend import AutoBackend

    if file.suffix in {".mlpackage", ".mlmodel"} and not MACOS:
        raise OSError("CoreML is a part of macOS")
    half = exporter.args.quantize == 16
    return AutoBackend(str(file), device=exporter.device, fp16=half, verbose=False)


def tried(exporter: Any) -> dict[str, torch.Tensor]:
    """Give the inputs: of the exported size, and of others and another batch where the export takes any."""
    batch, channels, *size = exporter.im.shape
    found = inputs(batch, tuple(size), channels)
    if exporter.args.dynamic:
        smaller = tuple(max(side // 64 * 32, 32) for side in size[::-1])
        queries = getattr(head_of(exporter.model)[1], "chosen_queries", 0)
        while sum((smaller[0] // s) * (smaller[1] // s) for s in (8, 16, 32)) < queries:
            smaller = tuple(side + 32 for side in smaller)
        larger = tuple(side + 32 for side in size)  # no number that divided the sides does so now
        for other, more in ((smaller, batch + 1), (larger, batch)):
            found[f"{PHOTOGRAPHS[0]} at {other[0]}x{other[1]}, batch {more}"] = inputs(more, other, channels)[
                PHOTOGRAPHS[0]
            ]
    return found


def whole_model(exporter: Any) -> torch.nn.Module:
    """Give the model as it was before the export, neither fused nor changed for it."""
    model = copy.deepcopy(getattr(exporter.original, "student_model", exporter.original))
    return shorten(model.to(exporter.device).float().eval(), exporter.args)


def reference(model: torch.nn.Module, x: torch.Tensor, bounds: Bounds) -> tuple[torch.Tensor, int]:
    """Give what the PyTorch model finds, and how many of its queries rounding has chosen."""
    head, seen = head_of(model)[1], []
    hook = head.enc_score_head.register_forward_hook(lambda m, _, y: seen.append(y.max(-1).values))
    try:
        with torch.no_grad():
            y = model(x)
    finally:
        hook.remove()
    return y[0] if isinstance(y, (list, tuple)) else y, ties(seen[-1], head.num_queries, bounds)


def remove(file: Path) -> None:
    """Remove an export."""
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
