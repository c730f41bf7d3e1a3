"""What this fork does to upstream's engine/model.py.

A YAML with RT-DETR's head becomes an `RTDETR`; `embed` finds the layer before the head behind a multi-output backbone;
`benchmark` refuses decoder arguments; `val` fetches no data set that nobody named; `resume` refuses a run that is over.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ultralytics.fork import decoder_size
from ultralytics.fork.building.model_class import route_by_head
from ultralytics.fork.hooks.override import install, override
from ultralytics.fork.privacy.downloads import require_local_data
from ultralytics.fork.training.resume import refuse_finished_run

__all__ = "install", "refuse_finished_run", "route_by_head"

MODEL = "ultralytics.engine.model.Model"


@override(MODEL)
def embed(original: Any, self: Any, source: Any = None, stream: bool = False, **kwargs: Any) -> Any:
    """Take the layer before the head by its index, which is not its place behind a multi-output backbone."""
    layers = getattr(getattr(self.model, "module", self.model), "model", None)
    if not kwargs.get("embed") and isinstance(layers, nn.Sequential) and hasattr(layers[-2], "i"):
        kwargs["embed"] = [layers[-2].i]
    return original(self, source, stream, **kwargs)


@override(MODEL)
def benchmark(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse `decoder_layers` and `num_queries`, which it would not pass on."""
    decoder_size.refuse_in_mode("benchmark", kwargs)
    return original(self, *args, **kwargs)


@override(MODEL, since="8.4.160")
def _val_data(original: Any, self: Any) -> Any:
    """Refuse to validate on a data set that nobody named and that would be fetched."""
    return require_local_data(original(self))
