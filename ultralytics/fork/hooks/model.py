"""What this fork does to upstream's engine/model.py.

A YAML with RT-DETR's head becomes an `RTDETR`; `embed` finds the layer before the head behind a multi-output backbone;
`save` says what a file will not keep; `benchmark` refuses decoder arguments; `val` fetches no data set that nobody
named; `resume` refuses a run that is over.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ultralytics.fork.building.model_class import route_by_head
from ultralytics.fork.checkpoints.model_to_save import check_model_to_save
from ultralytics.fork.decoder_size import refuse_in_mode
from ultralytics.fork.hooks.override import install, override
from ultralytics.fork.privacy.downloads import require_local_data
from ultralytics.fork.training.resume import refuse_finished_run

__all__ = "install", "refuse_finished_run", "refuse_in_mode", "require_local_data", "route_by_head"

MODEL = "ultralytics.engine.model.Model"


@override(MODEL)
def embed(original: Any, self: Any, source: Any = None, stream: bool = False, **kwargs: Any) -> Any:
    """Take the layer before the head by its index, which is not its place behind a multi-output backbone."""
    layers = getattr(getattr(self.model, "module", self.model), "model", None)
    if not kwargs.get("embed") and isinstance(layers, nn.Sequential) and hasattr(layers[-2], "i"):
        kwargs["embed"] = [layers[-2].i]
    return original(self, source, stream, **kwargs)


@override(MODEL)
def save(original: Any, self: Any, filename: Any = "saved_model.pt", *args: Any) -> None:
    """Say what of the model a file cannot keep, or what another process would refuse."""
    if isinstance(self.model, nn.Module):
        check_model_to_save(self.model, str(filename))
    original(self, filename, *args)
