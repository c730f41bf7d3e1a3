"""How many bytes one operation of torch takes, known before it runs."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

SMALL_NUMBERS = 2**22  # numbers of a result that is too small to matter


def size_of_result(func: Any, args: tuple, kwargs: dict) -> int:
    """Compute how many bytes an operation takes; 0 for a small one."""
    leaves = flatten((*args, *kwargs.values()))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if any(x.is_meta for x in tensors) or str(kwargs.get("device")) == "meta":
        return 0
    if func._schema.name == "aten::convolution":
        return convolution_bytes(*args[:2], *args[3:8])
    lists = any(isinstance(x, (list, tuple)) and any(isinstance(y, torch.Tensor) for y in x) for x in args)
    most = math.prod(max(1, abs(x)) for x in leaves if isinstance(x, (int, float)) and math.isfinite(x))
    if most * math.prod(x.numel() or 1 for x in tensors) <= SMALL_NUMBERS:
        return 0
    if not tensors and args and isinstance(args[0], (list, tuple)):
        return math.prod(args[0]) * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
    places = any(argument.name == "device" for argument in func._schema.arguments)
    if not tensors and not places:
        return 0
    # Of the size of what is there already, or as one is spread over another
    if tensors and not lists and not any(type(x) is int for x in leaves):
        with contextlib.suppress(RuntimeError):
            shapes = [x.shape for x in (tensors[:1] if "norm" in func._schema.name else tensors)]
            return math.prod(torch.broadcast_shapes(*shapes)) * max(x.element_size() for x in tensors)
    try:
        args, kwargs = tree_map_only(torch.Tensor, to_meta, (args, kwargs))
        result = func(*args, **{**kwargs, "device": "meta"} if places else kwargs)
    except Exception:  # it has no such form, or fails: then it fails as it does
        return 0
    parts = flatten(result if isinstance(result, (list, tuple)) else (result,))
    return sum(x.numel() * x.element_size() for x in parts if isinstance(x, torch.Tensor))


def convolution_bytes(
    x: torch.Tensor, weight: torch.Tensor, stride: list, padding: list, dilation: list, *more: Any
) -> int:
    """Compute how many bytes a convolution takes, as torch's documentation has it, with the columns of its kernel."""
    transposed, extra = more or (False, 0)
    n, sizes = len(weight.shape) - 2, []
    each = zip(*((list(v) * n)[:n] for v in (stride, padding, dilation, extra or [0])))
    for size, k, (s, p, d, e) in zip(x.shape[-n:], weight.shape[2:], each):
        sizes.append(
            (size - 1) * s - 2 * p + d * (k - 1) + e + 1 if transposed else (size + 2 * p - d * (k - 1) - 1) // s + 1
        )
    channels = max(weight.shape[:2]) if transposed else weight.shape[0]
    columns = math.prod(weight.shape[1:]) * math.prod(x.shape[-n:] if transposed else sizes)  # of one image
    return max(0, (x.shape[0] * channels * math.prod(sizes) + columns) * x.element_size())


def flatten(values: list | tuple) -> list:
    """List what an operation gets or gives; some of it is in lists."""
    return [x for value in values for x in (value if isinstance(value, (list, tuple)) else (value,))]


@functools.cache
def is_in_place(func: Any) -> bool:
    """Whether an operation writes into what it gets, or gives a view of it."""
    return func._schema.is_mutable or any(value.alias_info for value in func._schema.returns)


def to_meta(x: torch.Tensor) -> torch.Tensor:
    """Give a tensor of the same form without its numbers."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
