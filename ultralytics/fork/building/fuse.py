"""Fold norms for inference, in exactly those layers whose forward stays what it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ultralytics.fork.added_modules import is_added
from ultralytics.utils import LOGGER

UPSTREAM = "ultralytics.nn.modules."


def fuse_model(original: Callable, model: Any, verbose: bool, *args: Any, **kwargs: Any) -> Any:
    """Call upstream's `fuse()` for all layers but those that have a forward of their own.

    Upstream takes a class derived from `Conv` for a `Conv`.

    Args:
        original: Upstream's method.
        model: The model.
        verbose: Whether to say what was left.
    """
    layers, left = model.model, find_unfusable(model.model)
    vars(layers)["modules"] = lambda: [m for m in nn.Module.modules(layers) if m not in left]
    try:
        result = original(model, verbose, *args, **kwargs)
    finally:
        del vars(layers)["modules"]
    if left and verbose:
        what = ", ".join(f"model.{name} ({type(m).__name__})" for m, name in left.items())
        LOGGER.info(
            f"Not fused: {what}, whose forward is not that of the upstream class that they are derived from. A class "
            "with a `forward_fuse` of its own, which computes its forward without the norm, is fused"
        )
    return result


def find_unfusable(layers: nn.Module) -> dict[nn.Module, str]:
    """Find the layers whose class overrides the forward of one of upstream's, but not its `forward_fuse`; by name."""
    return {m: name for name, m in layers.named_modules() if loses_forward(type(m))}


def loses_forward(cls: type) -> bool:
    """Whether a class would compute another class's forward after upstream's `fuse()`."""
    if cls.__module__.startswith(UPSTREAM):
        return False
    homes = [next((base for base in cls.__mro__ if name in vars(base)), None) for name in ("forward", "forward_fuse")]
    forward, fused = homes
    if forward is None or fused is None:
        return False
    return cls.__mro__.index(forward) < cls.__mro__.index(fused)


def fuse_layer(m: nn.Module) -> None:
    """Fold the norms of a module in nn/AddModules for inference, where its class has a `fuse` that takes nothing."""
    fuse = getattr(m, "fuse", None)
    if not is_added(type(m).__module__) or not inspect.ismethod(fuse):
        return
    if any(p.default is p.empty and "VAR_" not in p.kind.name for p in inspect.signature(fuse).parameters.values()):
        return  # a method of the user's, for something else
    fuse()
