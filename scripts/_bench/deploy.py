"""Measure each exported model in each runtime: latency of one image, and size of the file."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from _bench.cases import BASELINE, LARGER, PUBLISHED
from _shared.progress import Progress
from _shared.timing import time_in_turn
from ultralytics import RTDETR
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import LOGGER

TINY = ["rtdetr-tiny", "rtdetr-tiny-FLA", "rtdetr-tiny-Biformer", "rtdetr-tiny-EMO", "rtdetr-tiny-MQA"]
NAMES = [*TINY, BASELINE, *PUBLISHED, *LARGER]
SIZES = {True: 160, False: 640}  # of tiny models and of the others
PYTORCH = "PyTorch"
FORMATS = {
    "TorchScript": {"format": "torchscript"},
    "ONNX Runtime": {"format": "onnx"},
    "OpenVINO": {"format": "openvino"},
    "OpenVINO fp16": {"format": "openvino", "quantize": 16},
    "OpenVINO INT8": {"format": "openvino", "quantize": 8},
    "MNN": {"format": "mnn"},
}
INT8 = "OpenVINO INT8"


def measure_runtimes(names: list[str], data: str, rounds: int, seconds: float) -> list[dict]:
    """Export models with untrained weights, and time what `yolo predict` would run.

    Each fp32 file is first verified against the model. Lower precisions may choose other queries among the equal scores
    of untrained weights. Large models are not exported to INT8, as the calibration takes minutes.

    Args:
        names: Of models.
        data: The data set that INT8 is calibrated on.
        rounds: Samples of each side.
        seconds: For all samples of a model together.

    Returns:
        A row a model and runtime; the runtimes of a model are timed in turn.
    """
    rows = []
    with Progress("deploy", len(names)) as progress:
        for name in names:
            rows += measure_model(name, data, rounds, seconds)
            progress.step(name)
    return rows


def measure_model(name: str, data: str, rounds: int, seconds: float) -> list[dict]:
    """Measure one model."""
    is_tiny = name in TINY
    size, device = SIZES[is_tiny], torch.device("cpu")
    forms = {form: options for form, options in FORMATS.items() if is_tiny or form != INT8}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model, files = RTDETR(f"{name}.yaml"), {}
        with silence_output():
            for form in [PYTORCH, *forms]:  # a folder each, as fp32 and fp16 would have the same name
                files[form] = Path(folder, form, f"{name}.pt")
                files[form].parent.mkdir()
                model.save(files[form])
            for form, options in forms.items():
                given = {**options, "imgsz": size, "verify": "quantize" not in options}
                given |= {"data": data} if form == INT8 else {}
                files[form] = Path(RTDETR(files[form]).export(**given))
            backends = {form: AutoBackend(str(path), device=device, verbose=False) for form, path in files.items()}
        x = torch.rand(1, 3, size, size)

        def call(backend: AutoBackend) -> object:
            with torch.inference_mode():
                return backend(x)

        sides = {form: lambda backend=backend: call(backend) for form, backend in backends.items()}
        times = time_in_turn(sides, device, rounds, seconds)
        return [
            {
                "model": name,
                "imgsz": size,
                "runtime": form,
                "MiB": file_size(path) / 2**20,
                "ms": 1e3 * times[form].median,
                "spread": times[form].spread,
                "over_pytorch": times[form].over(times[PYTORCH]),
            }
            for form, path in files.items()
        ]


@contextmanager
def silence_output() -> Iterator[None]:
    """Hide what an export prints, a page a model; some converters write to the terminal without Python."""
    level, streams = LOGGER.level, [(stream, os.dup(stream)) for stream in (1, 2)]
    LOGGER.setLevel(logging.ERROR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream, _ in streams:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, before in streams:
            os.dup2(before, stream)
            os.close(before)
        os.close(nowhere)
        LOGGER.setLevel(level)


def file_size(path: Path) -> int:
    """Return the size of a file, or of the files of a folder."""
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size
