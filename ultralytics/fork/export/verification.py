"""Verify an export: run it in its own runtime, and keep it only if it finds what the PyTorch model finds."""

from __future__ import annotations

import copy
import dataclasses
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

from ultralytics.fork.arguments import say_what_is_ignored
from ultralytics.fork.decoder_size import keep_all_queries, shorten
from ultralytics.fork.errors import Refused, mark_as_plain
from ultralytics.fork.export.compare_detections import (
    BOUNDS,
    PHOTOGRAPHS,
    Bounds,
    compare_detections,
    count_tied_queries,
    make_inputs,
)
from ultralytics.fork.export.metadata import RTDETR_HEAD, write_metadata
from ultralytics.fork.pretrained.timm_rows import list_timm_layers
from ultralytics.fork.privacy.downloads import require_local_data
from ultralytics.fork.privacy.telemetry import disable_openvino_telemetry
from ultralytics.fork.rtdetr import find_head, get_head
from ultralytics.nn.AddModules.layers.execution_mode import one_size
from ultralytics.utils import DEFAULT_CFG, LOGGER, MACOS
from ultralytics.utils.checks import check_file

# Formats of upstream's in which RT-DETR does not run
UNSUPPORTED = {"ncnn": "NCNN has no top-k, with which RT-DETR chooses its queries; format=mnn is for the same devices"}
ALIASES = {"mlmodel": "coreml"}
TENSORRT = "engine", "tensorrt", "trt"
NO_GPU = (
    "TensorRT builds its file on the NVIDIA GPU that will run it, and torch sees none here. format=onnx gives what it "
    "is built from: `trtexec --onnx=FILE` there, or this command"
)
SKIP_ADVICE = "verify=False exports it all the same"
FORMATS_ADVICE = "docs/deploying.md says which formats are proven, and how each is installed"
CALIBRATION_BATCHES = 8  # batches of the calibration's images that INT8 is compared on
BITS = {16: 16, 8: 8, "w8a16": 8, "w8a32": 8}  # by `quantize=`


def export_model(call: Callable, exporter: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Check the arguments of an export, keep the model to compare with, and export.

    Args:
        call: The exporter's `__call__`, which changes a copy of the model.
        exporter: Upstream's exporter.
        model: The model to export.

    Raises:
        Refused: For arguments that cannot be used, or an export that is not what PyTorch finds.
    """
    check_arguments(exporter.args)
    exporter.fork_original_model = model
    choose_calibration_data(exporter, model)
    if found := find_head(model):
        say_what_is_ignored("export", exporter.args)
        keep_all_queries(exporter.args, found[1])
    exporter.callbacks["on_export_start"] += [name_head, fix_image_size]
    with nullcontext() if exporter.args.dynamic else one_size():
        return call(exporter, model, *args, **kwargs)


def name_head(exporter: Any) -> None:
    """Call a head that is derived from RT-DETR's by the name that upstream knows."""
    if find_head(exporter.fork_original_model):
        exporter.metadata["head"] = RTDETR_HEAD


def fix_image_size(exporter: Any) -> None:
    """Prepare a backbone of timm for the size of the export, if it is of one size."""
    if not exporter.args.dynamic:
        for m in list_timm_layers(exporter.model):
            m.set_image_size(*exporter.imgsz)


def check_arguments(args: Any) -> None:
    """Check the arguments of an export.

    Raises:
        Refused: With the argument and what is expected.
    """
    if not isinstance(args.verify, bool):
        raise Refused(f"verify={args.verify!r}: expected True or False")
    if args.format.lower() in TENSORRT and not torch.cuda.is_available():
        raise Refused(f"format={args.format}: {NO_GPU}")
    sides = args.imgsz if isinstance(args.imgsz, (list, tuple)) else [args.imgsz]
    for name, least in (("batch", args.batch), ("imgsz", min(sides, default=1))):
        if least < 1:
            raise Refused(f"{name}={getattr(args, name)}: expected at least 1")


def choose_calibration_data(exporter: Any, model: torch.nn.Module) -> None:
    """Calibrate INT8 on the data set that the model was trained on, where none is named.

    Raises:
        Refused: If that data set is not known, or not there: upstream would take images of other things.
    """
    from ultralytics.cfg import TASK2DATA
    from ultralytics.engine.exporter import export_formats

    args, formats = exporter.args, export_formats()
    accepted = dict(zip(formats["Argument"], formats["Arguments"])).get(args.format, ())
    if args.quantize not in (8, "w8a16") or args.data or "data" not in accepted:
        return
    if find_head(model) is None:
        require_local_data(DEFAULT_CFG.data or TASK2DATA.get(getattr(model, "task", "detect"), TASK2DATA["detect"]))
        return
    trained = getattr(model, "args", {})
    data = trained.get("data") if isinstance(trained, dict) else getattr(trained, "data", None)
    try:
        args.data = check_file(data or "")
    except FileNotFoundError:
        args.data = None
    if not args.data:
        reason = "the model does not say on what it was trained"
        reason = f"{data}, on which it was trained, is not there" if data else reason
        raise Refused(f"quantize={args.quantize} needs data=…, images to calibrate on: {reason}")
    LOGGER.info(f"INT8 is calibrated on {args.data}, on which the model was trained")


def export_and_verify(export: Callable, form: str, exporter: Any, *args: Any, **kwargs: Any) -> Any:
    """Export to one format, verify the file, and put it in place.

    Where another format goes on from the file, nothing is verified here.

    Args:
        export: The exporter's method.
        form: Format that the method writes, as it is named in the method.
        exporter: Upstream's exporter.
    """
    if form == "mnn":  # or MNN's tools would send what they do to their makers, and install what they need for it
        modules: dict[str, Any] = sys.modules  # None makes an import fail
        modules.setdefault("MNN.tools.utils.log", None)
    elif form == "openvino":
        disable_openvino_telemetry()
    chosen = ALIASES.get(exporter.args.format, exporter.args.format)
    if find_head(getattr(exporter, "model", None)) is None or chosen != form:
        return export(exporter, *args, **kwargs)
    if form in UNSUPPORTED and exporter.args.verify:
        raise Refused(f"format={form}: {UNSUPPORTED[form]}")
    with export_to_scratch_folder(exporter) as folder:
        try:
            with patch.object(F, "gelu", gelu_for_mnn) if form == "mnn" else nullcontext():
                result = export(exporter, *args, **kwargs)
        except ModuleNotFoundError as e:
            line = f"format={form} needs the package {e.name}, which is not installed. {FORMATS_ADVICE}"
            raise mark_as_plain(ImportError(line)) from None
        made = Path(result[0] if isinstance(result, tuple) else result)  # SavedModel's comes with Keras' model
        file = folder.parent / made.name
        write_metadata(made, exporter.metadata)
        if exporter.args.verify:
            verify_export(exporter, made, file)
            write_metadata(made, exporter.metadata)
        move_into_place(made, file)
    return (str(file), *result[1:]) if isinstance(result, tuple) else str(file)


def gelu_for_mnn(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Compute GELU in a form that MNN does not replace by its own GELU, which has errors of 5e-4.

    See findings/mnn-gelu-is-an-approximation.sh.
    """
    return x * (0.5 * torch.erf(x * 0.5**0.5) + 0.5)


@contextmanager
def export_to_scratch_folder(exporter: Any) -> Iterator[Path]:
    """Let an exporter write beside the model's file, so that an older export stays until the new one is verified."""
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


def move_into_place(made: Path, file: Path) -> None:
    """Move an export from the scratch folder to its place, over an older one."""
    if file.is_dir():  # no system call puts one folder over another
        file.replace(made.parent / "before")
    made.replace(file)


def verify_export(exporter: Any, made: Path, file: Path) -> None:
    """Run an export in its own runtime, compare its detections with PyTorch's, and record that in its metadata.

    Args:
        exporter: Upstream's, with the model that it has exported.
        made: The file or folder.
        file: Where it will be.

    Raises:
        Refused: If it does not run, or finds something else.
    """
    model, most, results = copy_original_model(exporter), get_head(exporter.model).max_det, []
    try:
        backend = open_export(made, exporter)
    except ImportError as e:
        LOGGER.warning(f"{file} is not verified: its runtime is not on this machine ({' '.join(str(e).split())[:200]})")
        return
    except Exception as e:
        raise runtime_error(file, e) from e
    for name, (x, bounds) in list_inputs(exporter).items():
        expected, tied = run_reference(model, x.to(exporter.device), bounds)
        try:
            y = backend(x.to(exporter.im.device))
            y = torch.as_tensor(y[0] if isinstance(y, (list, tuple)) else y)
        except Exception as e:
            raise runtime_error(file, e) from e
        size = x.shape[2], x.shape[3]
        if y.shape != expected[:, :most].shape:
            raise Refused(
                f"{file} gives an output of {tuple(y.shape)} for {name}, expected {tuple(expected[:, :most].shape)}; "
                f"it is not kept. {SKIP_ADVICE}"
            )
        parity = compare_detections(name, expected[:, :most], y, size, bounds, tied[:, :most])
        LOGGER.info(f"{exporter.args.format} against PyTorch, {parity}")
        if not parity.is_within(bounds):
            raise Refused(
                f"{file} does not find what the PyTorch model finds ({parity}; expected {bounds.share:.0%}, of these "
                f"{bounds.least:.0%} whatever is tied, within {bounds.pixels(size):g} px and {bounds.score:g}), "
                f"and is not kept. {SKIP_ADVICE}"
            )
        results.append(parity.to_metadata())
    exporter.metadata["parity"] = {"bounds": vars(BOUNDS[count_bits(exporter)]), "inputs": results}


def runtime_error(file: Path, error: Exception) -> Refused:
    """Make the error for an export that its own runtime does not run."""
    line = " ".join(str(error).split())[:300]
    return Refused(
        f"{file} does not run in its own runtime ({type(error).__name__}: {line}), and is not kept. {SKIP_ADVICE}"
    )


def open_export(file: Path, exporter: Any) -> Any:
    """Open an export as `yolo predict` does.

    Raises:
        ImportError: If its runtime is not on this machine.
    """
    from ultralytics.nn.autobackend import AutoBackend

    if file.suffix in {".mlpackage", ".mlmodel"} and not MACOS:
        raise ImportError("CoreML is a part of macOS")
    half = exporter.args.quantize == 16
    return AutoBackend(str(file), device=exporter.device, fp16=half, verbose=False)


def list_inputs(exporter: Any) -> dict[str, tuple[torch.Tensor, Bounds]]:
    """List inputs with their bounds: photographs, also of other sizes and in another batch for a dynamic export.

    An export that was calibrated on images is accurate for such images only: some of these are compared, and for a
    photograph finite numbers are enough.
    """
    batch, channels, *size = exporter.im.shape
    bounds, found = BOUNDS[count_bits(exporter)], make_inputs(batch, tuple(size), channels)
    if count_bits(exporter) == 8 and exporter.args.data:
        images = itertools.islice(exporter.get_int8_calibration_dataloader(), CALIBRATION_BATCHES)
        x = torch.cat([batch["img"].float() / 255 for batch in images])
        name = f"{len(x)} images of {Path(exporter.args.data).name}"
        finite = dataclasses.replace(bounds, share=0.0, least=0.0)
        return {PHOTOGRAPHS[0]: (found[PHOTOGRAPHS[0]], finite), name: (x, bounds)}
    if exporter.args.dynamic:
        smaller = tuple(max(side // 64 * 32, 32) for side in size[::-1])
        queries = getattr(get_head(exporter.model), "chosen_queries", 0)
        while sum((smaller[0] // s) * (smaller[1] // s) for s in (8, 16, 32)) < queries:
            smaller = tuple(side + 32 for side in smaller)
        larger = tuple(side + 32 for side in size)  # no number that divided the sides does so now
        for other, more in ((smaller, batch + 1), (larger, batch)):
            name = f"{PHOTOGRAPHS[0]} at {other[0]}x{other[1]}, batch {more}"
            found[name] = make_inputs(more, other, channels)[PHOTOGRAPHS[0]]
    return {name: (x, bounds) for name, x in found.items()}


def count_bits(exporter: Any) -> int:
    """Count the bits of an export's weights or activations."""
    return BITS.get(exporter.args.quantize, 32)


def copy_original_model(exporter: Any) -> torch.nn.Module:
    """Copy the model as it was before the export, neither fused nor changed for it."""
    model = copy.deepcopy(getattr(exporter.fork_original_model, "student_model", exporter.fork_original_model))
    return shorten(model.to(exporter.device).float().eval(), exporter.args)


def run_reference(model: torch.nn.Module, x: torch.Tensor, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the PyTorch model: its detections, (B, N, 6), and which are of a query that rounding has chosen, (B, N)."""
    head, seen, scores = get_head(model), [], []
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
    count = count_tied_queries(seen[-1], head.num_queries, bounds)
    # A query's place is its rank among the encoder's positions
    query = scores[-1].flatten(1).topk(y.shape[1]).indices.cpu() // scores[-1].shape[2]
    return y, query >= scores[-1].shape[1] - count[:, None]
