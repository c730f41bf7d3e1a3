"""What this fork does to upstream's nn/autobackend.py and nn/backends/.

A model file that cannot be opened is named in one line; OpenVINO reports nothing to its maker; MNN and OpenVINO keep
fp32 for an RT-DETR that was exported in fp32; an RT-DETR on a CPU does not wait for the import of torchvision.
"""

from __future__ import annotations

from typing import Any

from ultralytics.fork.export.integrity import open_backend, read_checked_metadata
from ultralytics.fork.export.metadata import RTDETR_HEAD, keeps_fp32
from ultralytics.fork.hooks import override as overrides
from ultralytics.fork.hooks.override import install_module, override
from ultralytics.fork.privacy.telemetry import disable_openvino_telemetry
from ultralytics.fork.rtdetr import find_head

__all__ = "install", "keeps_fp32"

BASE_BACKEND = "ultralytics.nn.backends.base.BaseBackend"
OPENVINO_BACKEND = "ultralytics.nn.backends.openvino.OpenVINOBackend"


def install(cls: type) -> type:
    """Put the overrides of `AutoBackend`, as a decorator of it, and of the backends that it uses in place."""
    install_module(BASE_BACKEND)
    install_module(OPENVINO_BACKEND)
    return overrides.install(cls)


@override("ultralytics.nn.autobackend.AutoBackend")
def __init__(original: Any, self: Any, model: Any = "yolo26n.pt", *args: Any, **kwargs: Any) -> None:
    """Check the file of an export before it is opened, and explain its runtime's errors in one line."""
    open_backend(original, self, model, *args, **kwargs)


@override("ultralytics.nn.autobackend.AutoBackend")
def warmup(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Leave out the warm-up of an RT-DETR on a CPU, which is only the import of torchvision: its NMS is not used."""
    if not (is_cold_on_cpu(self) and is_rtdetr(self)):
        original(self, *args, **kwargs)


def is_cold_on_cpu(backend: Any) -> bool:
    """Whether upstream runs nothing to warm up a backend."""
    runs_first = ("torchscript", "jit", "triton")  # as a format, or as a flag of earlier releases
    is_first_run = getattr(backend, "format", None) in runs_first or any(getattr(backend, x, False) for x in runs_first)
    return getattr(backend, "device", None) is not None and backend.device.type == "cpu" and not is_first_run


def is_rtdetr(backend: Any) -> bool:
    """Whether a backend runs an RT-DETR, as its model or its metadata say."""
    metadata = getattr(backend, "metadata", None) or {}
    model = getattr(getattr(backend, "backend", backend), "model", None)
    return find_head(model) is not None or metadata.get("head") == RTDETR_HEAD


@override(BASE_BACKEND, since="8.4.127")
def read_metadata(original: Any, file: Any) -> dict:
    """Read the metadata of MNN files, too, and of no damaged file."""
    return read_checked_metadata(original, file)


@override(OPENVINO_BACKEND, since="8.4.23")
def load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Disable OpenVINO's telemetry before OpenVINO is imported."""
    disable_openvino_telemetry()
    return original(self, *args, **kwargs)
