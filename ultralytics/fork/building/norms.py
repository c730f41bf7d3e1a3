"""Set the batch norms of a model to what its YAML says: `norm_eps:` and `norm_momentum:`.

The weights of the official RT-DETR need an eps of 1e-5: with Ultralytics' 1e-3 no box of theirs comes out the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ultralytics.fork.pretrained.timm_rows import list_timm_layers


def set_norms(model: Any) -> None:
    """Set eps and momentum of all 2d batch norms, where the model's YAML names them."""
    settings = getattr(model, "yaml", None) or {}
    values = {key: settings[f"norm_{key}"] for key in ("eps", "momentum") if settings.get(f"norm_{key}") is not None}
    for m in model.modules() if values else ():
        if isinstance(m, nn.BatchNorm2d):
            vars(m).update(values)


@contextmanager
def keep_timm_layers(model: Any) -> Iterator[None]:
    """Keep eps, momentum and `inplace` of all layers within a Timm row, on which timm's weights depend."""
    layers = [m for row in list_timm_layers(model) for m in row.features.modules()]
    before = [{key: vars(m)[key] for key in ("eps", "momentum", "inplace") if key in vars(m)} for m in layers]
    try:
        yield
    finally:
        for m, values in zip(layers, before):
            vars(m).update(values)
