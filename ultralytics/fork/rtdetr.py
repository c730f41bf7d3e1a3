"""Find RT-DETR's head in a model, and take a model out of its wrappers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ultralytics.nn.modules.head import RTDETRDecoder


def find_head(model: Any) -> tuple[str, RTDETRDecoder] | None:
    """Find RT-DETR's head in a model: its path and itself."""
    from ultralytics.nn.modules.head import RTDETRDecoder  # not at the head: it imports nn/tasks.py, which needs this

    layers = model.named_modules() if isinstance(model, nn.Module) else ()
    return next(((path, m) for path, m in layers if isinstance(m, RTDETRDecoder)), None)


def get_head(model: Any) -> RTDETRDecoder:
    """Return RT-DETR's head of a model that has one."""
    found = find_head(model)
    assert found is not None  # the caller has seen the head
    return found[1]


def unwrap_model(model: Any) -> Any:
    """Take a model out of what compiles or distributes it."""
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = inner
    return model
