"""Exports that are proven: each runs in its own runtime and finds what the PyTorch model finds, or is not kept."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from ultralytics.nn.AddModules.compatibility import one_size
from ultralytics.nn.AddModules.decoder import head_of, shorten
from ultralytics.nn.AddModules.errors import Refused, plain
from ultralytics.nn.AddModules.metadata import write_metadata
from ultralytics.nn.AddModules.parity import BOUNDS, PHOTOGRAPHS, Bounds, compare, inputs, ties
from ultralytics.nn.AddModules.quiet import at_hand, hush_openvino
from ultralytics.utils import DEFAULT_CFG, LOGGER, MACOS
from ultralytics.utils.checks import check_file

__all__ = ()

# What upstream exports to, and RT-DETR does not run in
CANNOT = {"ncnn": "NCNN has no top-k, with which RT-DETR chooses its queries; format=mnn is for the same devices"}
ALIASES = {"mlmodel": "coreml"}
ENGINE = "engine", "tensorrt", "trt"
NO_GPU = (
    "TensorRT builds its file on the NVIDIA GPU that will run it, and torch sees none here. format=onnx gives what it "
    "is built from: `trtexec --onnx=FILE` there, or this command"
)
ANYWAY = "verify=False exports it all the same"
ELSEWHERE = "The README says which formats are proven, and how each is installed"
CALIBRATED = 8  # batches of the calibration's images that INT8 is compared on
BITS = {16: 16, 8: 8, "w8a16": 8, "w8a32": 8}  # by `quantize=`


def remembered(call: Callable) -> Callable:
    """Wrap the exporter's `__call__`: what is to be exported is checked, and kept, for the export changes a copy."""

    @functools.wraps(call)
    def export(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.args.verify, bool):
            raise Refused(f"verify={self.args.verify!r}: expected True or False")
        if self.args.format.lower() in ENGINE and not torch.cuda.is_available():
            raise Refused(f"format={self.args.format}: {NO_GPU}")
        sides = self.args.imgsz if isinstance(self.args.imgsz, (list, tuple)) else [self.args.imgsz]
        for name, least in (("batch", self.args.batch), ("imgsz", min(sides, default=1))):
            if least < 1:
                raise Refused(f"{name}={getattr(self.args, name)}: expected at least 1")
        self.original = model
        calibrate(self, model)
        with nullcontext() if self.args.dynamic else one_size():
            return call(self, model, *args, **kwargs)

    return export


def calibrate(exporter: Any, model: torch.nn.Module) -> None:
    """Let INT8 be calibrated on what the model was trained on, where nothing else is named.

    Raises:
        Refused: If that is not known, or not there: upstream would take images of other things.
    """
    from ultralytics.cfg import TASK2DATA
    from ultralytics.engine.exporter import export_formats

    args, formats = exporter.args, export_formats()
    takes = dict(zip(formats["Argument"], formats["Arguments"])).get(args.format, ())
    if args.quantize not in (8, "w8a16") or args.data or "data" not in takes:
        return
    if head_of(model) is None:
        at_hand(DEFAULT_CFG.data or TASK2DATA.get(getattr(model, "task", None), TASK2DATA["detect"]))
        return
    trained = getattr(model, "args", {})
    data = trained.get("data") if isinstance(trained, dict) else getattr(trained, "data", None)
    try:
        args.data = check_file(data or "")
    except FileNotFoundError:
        args.data = None
    if not args.data:
        was = (
            f"{data}, on which it was trained, is not there"
            if data
            else "the model does not say on what it was trained"
        )
        raise Refused(f"quantize={args.quantize} needs data=…, images to calibrate on: {was}")
    LOGGER.info(f"INT8 is calibrated on {args.data}, on which the model was trained")


def verified(export: Callable, form: str) -> Callable:
    """Wrap an exporter's method; where another format goes on from its file, nothing is verified here."""

    @functools.wraps(export)
    def to_file(self: Any, *args: Any, **kwargs: Any) -> Any:
        if form == "mnn":  # or MNN's tools would send what they do to their makers, and install what they need for it
            sys.modules.setdefault("MNN.tools.utils.log", None)
        elif form == "openvino":
            hush_openvino()
        if head_of(getattr(self, "model", None)) is None or ALIASES.get(self.args.format, self.args.format) != form:
            return export(self, *args, **kwargs)
        if form in CANNOT and self.args.verify:
            raise Refused(f"format={form}: {CANNOT[form]}")
        with scratch(self) as folder:
            try:
                with patch.object(F, "gelu", plain_gelu) if form == "mnn" else nullcontext():
                    found = export(self, *args, **kwargs)
            except ModuleNotFoundError as e:
                line = f"format={form} needs the package {e.name}, which is not installed. {ELSEWHERE}"
                raise plain(ImportError(line)) from None
            made = Path(found[0] if isinstance(found, tuple) else found)  # SavedModel's comes with Keras' model
            file = folder.parent / made.name
            write_metadata(made, self.metadata)
            if self.args.verify:
                verify(self, made, file)
                write_metadata(made, self.metadata)
            replace(made, file)
        return (str(file), *found[1:]) if isinstance(found, tuple) else str(file)

    return to_file


def plain_gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Compute GELU in a form that MNN does not know: for those it knows it takes one with errors of 5e-4."""
    return x * (0.5 * torch.erf(x * 0.5**0.5) + 0.5)


@contextmanager
def scratch(exporter: Any) -> Iterator[Path]:
    """Let an exporter write into a folder beside the model's file, so that what is there stays until all is proven."""
    file = exporter.file
    try:
        made = tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent)
    except OSError as e:
        raise Refused(f"an export is put beside {file}, and nothing can be written there ({e.strerror})") from None
    with made as folder:
        exporter.file = Path(folder, file.name)
        try:
            yield exporter.file.parent
        finally:
            exporter.file = file


def replace(made: Path, file: Path) -> None:
    """Move a file or folder to where it is to be, over one that is there."""
    if file.is_dir():  # no system call puts one folder over another
        file.replace(made.parent / "before")
    made.replace(file)


def verify(exporter: Any, made: Path, file: Path) -> None:
    """Run an export in its own runtime, compare what it finds with the PyTorch model, and say so in its metadata.

    Args:
        exporter: Upstream's, with the model that it has exported.
        made: The file or folder.
        file: Where it will be.

    Raises:
        Refused: If it does not run, or finds something else.
    """
    model, most, found = whole_model(exporter), head_of(exporter.model)[1].max_det, []
    try:
        backend = load(made, exporter)
    except ImportError as e:
        LOGGER.warning(f"{file} is not verified: its runtime is not on this machine ({' '.join(str(e).split())[:200]})")
        return
    except Exception as e:
        raise failed(file, e) from e
    for name, (x, bounds) in tried(exporter).items():
        expected, tied = reference(model, x.to(exporter.device), bounds)
        try:
            y = backend(x.to(exporter.im.device))
            y = torch.as_tensor(y[0] if isinstance(y, (list, tuple)) else y)
        except Exception as e:
            raise failed(file, e) from e
        size = tuple(x.shape[2:])
        if y.shape != expected[:, :most].shape:
            raise Refused(
                f"{file} gives an output of {tuple(y.shape)} for {name}, expected {tuple(expected[:, :most].shape)}; "
                f"it is not kept. {ANYWAY}"
            )
        parity = compare(name, expected[:, :most], y, size, bounds, tied[:, :most])
        LOGGER.info(f"{exporter.args.format} against PyTorch, {parity}")
        if not parity.holds(bounds):
            raise Refused(
                f"{file} does not find what the PyTorch model finds ({parity}; expected {bounds.share:.0%}, of these "
                f"{bounds.least:.0%} whatever is tied, within {bounds.pixels(size):g} px and {bounds.score:g}), "
                f"and is not kept. {ANYWAY}"
            )
        found.append(parity.record())
    exporter.metadata["parity"] = {"bounds": vars(BOUNDS[bits_of(exporter)]), "inputs": found}


def failed(file: Path, error: Exception) -> Refused:
    """Give the error for an export that its own runtime does not run."""
    line = " ".join(str(error).split())[:300]
    return Refused(
        f"{file} does not run in its own runtime ({type(error).__name__}: {line}), and is not kept. {ANYWAY}"
    )


def load(file: Path, exporter: Any) -> Any:
    """Open an export as `yolo predict` does."""
    from ultralytics.nn.autobackend import AutoBackend

    if file.suffix in {".mlpackage", ".mlmodel"} and not MACOS:
        raise ImportError("CoreML is a part of macOS")
    half = exporter.args.quantize == 16
    return AutoBackend(str(file), device=exporter.device, fp16=half, verbose=False)


def tried(exporter: Any) -> dict[str, tuple[torch.Tensor, Bounds]]:
    """Give the inputs and their bounds: photographs, of other sizes and in another batch where the export takes any.

    What was calibrated on images is only good for such: of these some are compared, of the photograph it is enough that
    finite numbers come out.
    """
    batch, channels, *size = exporter.im.shape
    bounds, found = BOUNDS[bits_of(exporter)], inputs(batch, tuple(size), channels)
    if bits_of(exporter) == 8 and exporter.args.data:
        images = itertools.islice(exporter.get_int8_calibration_dataloader(), CALIBRATED)
        x = torch.cat([batch["img"].float() / 255 for batch in images])
        name = f"{len(x)} images of {Path(exporter.args.data).name}"
        some = dataclasses.replace(bounds, share=0.0, least=0.0)
        return {PHOTOGRAPHS[0]: (found[PHOTOGRAPHS[0]], some), name: (x, bounds)}
    if exporter.args.dynamic:
        smaller = tuple(max(side // 64 * 32, 32) for side in size[::-1])
        queries = getattr(head_of(exporter.model)[1], "chosen_queries", 0)
        while sum((smaller[0] // s) * (smaller[1] // s) for s in (8, 16, 32)) < queries:
            smaller = tuple(side + 32 for side in smaller)
        larger = tuple(side + 32 for side in size)  # no number that divided the sides does so now
        for other, more in ((smaller, batch + 1), (larger, batch)):
            name = f"{PHOTOGRAPHS[0]} at {other[0]}x{other[1]}, batch {more}"
            found[name] = inputs(more, other, channels)[PHOTOGRAPHS[0]]
    return {name: (x, bounds) for name, x in found.items()}


def bits_of(exporter: Any) -> int:
    """Give the bits of weights or activations."""
    return BITS.get(exporter.args.quantize, 32)


def whole_model(exporter: Any) -> torch.nn.Module:
    """Give the model as it was before the export, neither fused nor changed for it."""
    model = copy.deepcopy(getattr(exporter.original, "student_model", exporter.original))
    return shorten(model.to(exporter.device).float().eval(), exporter.args)


def reference(model: torch.nn.Module, x: torch.Tensor, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
    """Give what the PyTorch model finds, (B, N, 6), and which of it is of a query that rounding has chosen, (B, N)."""
    head, seen, scores = head_of(model)[1], [], []
    hook = head.enc_score_head.register_forward_hook(lambda m, _, y: seen.append(y.max(-1).values))
    postprocess = head.postprocess
    head.postprocess = lambda boxes, found: scores.append(found) or postprocess(boxes, found)
    try:
        with torch.no_grad():
            y = model(x)
    finally:
        hook.remove()
        del head.postprocess
    y = y[0] if isinstance(y, (list, tuple)) else y
    count = ties(seen[-1], head.num_queries, bounds)
    # A query's place is its rank among the encoder's positions
    query = scores[-1].flatten(1).topk(y.shape[1]).indices.cpu() // scores[-1].shape[2]
    return y, query >= scores[-1].shape[1] - count[:, None]
