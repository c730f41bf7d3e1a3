"""How operations run: eagerly or recorded for an export, under autocast or not, for one size or any size."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ()

_one_size = contextvars.ContextVar("one_size", default=False)


def no_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Turn autocast off on the device of `x`, for what must run in fp32; the meta device has none."""
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def is_eager() -> bool:
    """Whether operations run as they are called, and are not recorded for an export or a compiler."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())


@contextlib.contextmanager
def one_size() -> Iterator[None]:
    """Let what is traced be for the size of its example, which is faster; else it is for any size."""
    token = _one_size.set(True)
    try:
        yield
    finally:
        _one_size.reset(token)


def map_size(x: torch.Tensor) -> tuple[int, int]:
    """Give height and width of (B, C, H, W); tensors where they are traced for any size."""
    H, W = x.shape[2:]
    return (int(H), int(W)) if torch.jit.is_tracing() and _one_size.get() else (H, W)


def has_hooks(*layers: nn.Module) -> bool:
    """Whether anyone asked to see what goes into or comes out of a layer."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in layers)
