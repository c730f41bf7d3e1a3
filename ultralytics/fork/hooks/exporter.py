"""What this fork does to upstream's engine/exporter.py.

An exported RT-DETR is run in its own runtime and kept only if it finds what PyTorch finds; it has the decoder layers
and queries that are chosen; INT8 is calibrated on the data set of the training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ultralytics.fork.decoder_size import decoder_metadata, shorten
from ultralytics.fork.export import safetensors_folder, verification
from ultralytics.fork.hooks import override as overrides
from ultralytics.fork.hooks.override import MissingTarget, override

__all__ = "decoder_metadata", "install", "shorten"

EXPORT_METHOD = "export_"  # begins the name of a method that writes one format


def install(cls: type) -> type:
    """Put the override of `Exporter` in place, as a decorator of it, and verify what each `export_` method writes.

    Raises:
        MissingTarget: If `Exporter` has no such method.
    """
    overrides.install(cls)
    names = [name for name in vars(cls) if name.startswith(EXPORT_METHOD)]
    if not names:
        raise MissingTarget(
            f"upstream {overrides.upstream_release()} has no {cls.__module__}.{cls.__qualname__}.{EXPORT_METHOD}…; "
            f"adapt {__name__}"
        )
    for name in names:
        setattr(cls, name, verify_what_it_writes(getattr(cls, name), name.removeprefix(EXPORT_METHOD)))
    return cls


def verify_what_it_writes(export: Callable, form: str) -> Callable:
    """Wrap a method of the exporter that writes one format."""

    @functools.wraps(export)
    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        return verification.export_and_verify(export, form, self, *args, **kwargs)

    return replacement


@override("ultralytics.engine.exporter.Exporter")
def __call__(original: Any, self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Check the arguments, keep the model to compare with, choose a calibration's data; write a folder of tensors."""
    if self.args.format == safetensors_folder.FORMAT:
        return safetensors_folder.export_folder(self, model)
    return verification.export_model(original, self, model, *args, **kwargs)
