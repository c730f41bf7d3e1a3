"""What this fork does to upstream's nn/autobackend.py and nn/backends/.

A model file that cannot be opened is named in one line; OpenVINO reports nothing to its maker; MNN and OpenVINO keep
fp32 for an RT-DETR that was exported in fp32.
"""

from __future__ import annotations

from typing import Any

from ultralytics.fork.export.integrity import open_backend, read_checked_metadata
from ultralytics.fork.export.metadata import keeps_fp32
from ultralytics.fork.hooks import override as overrides
from ultralytics.fork.hooks.override import install_module, override
from ultralytics.fork.privacy.telemetry import disable_openvino_telemetry

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


@override(BASE_BACKEND, since="8.4.127")
def read_metadata(original: Any, file: Any) -> dict:
    """Read the metadata of MNN files, too, and of no damaged file."""
    return read_checked_metadata(original, file)


@override(OPENVINO_BACKEND, since="8.4.23")
def load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Disable OpenVINO's telemetry before OpenVINO is imported."""
    disable_openvino_telemetry()
    return original(self, *args, **kwargs)
