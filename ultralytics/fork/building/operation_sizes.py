"""How many bytes an operation of torch, or a layer, takes; known before it runs."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

SMALL_NUMBERS = 2**22  # numbers of a result that is too small to matter


def size_of_result(func: Any, args: tuple, kwargs: dict) -> int:
    """Compute how many bytes an operation takes; 0 for a small one."""
    leaves = flatten((*args, *kwargs.values()))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if any(x.is_meta for x in tensors) or str(kwargs.get("device")) == "meta":
        return 0
    if func._schema.name == "aten::convolution":
        outputs, columns = convolution_numbers(*args[:2], *args[3:8])
        return (2 * outputs + args[1].numel() + columns) * args[0].element_size()  # oneDNN reorders output and weight
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


def count_multiplications(func: Any, args: tuple, size: int) -> int:
    """Count the multiplications of a convolution, or the comparisons of a pooling.

    Args:
        func: The operation.
        args: What it gets.
        size: The bytes that it takes.
    """
    name, kernel = func._schema.name, args[1] if len(args) > 1 else None
    if name == "aten::convolution":
        outputs, _ = convolution_numbers(*args[:2], *args[3:8])
        return (args[0].numel() if args[6] else outputs) * math.prod(kernel.shape[1:])
    if "pool" in name and isinstance(kernel, (int, list, tuple)):
        return size // 4 * (math.prod(kernel) if isinstance(kernel, (list, tuple)) else kernel**2)
    return 0


def convolution_numbers(
    x: torch.Tensor, weight: torch.Tensor, stride: list, padding: list, dilation: list, *more: Any
) -> tuple[int, int]:
    """Count the numbers of a convolution's output, by torch's documentation, and of the columns of its kernel."""
    transposed, extra = more or (False, 0)
    n, sizes = len(weight.shape) - 2, []
    each = zip(*((list(v) * n)[:n] for v in (stride, padding, dilation, extra or [0])))
    for size, k, (s, p, d, e) in zip(x.shape[-n:], weight.shape[2:], each):
        sizes.append(
            (size - 1) * s - 2 * p + d * (k - 1) + e + 1 if transposed else (size + 2 * p - d * (k - 1) - 1) // s + 1
        )
    channels = max(weight.shape[:2]) if transposed else weight.shape[0]
    columns = math.prod(weight.shape[1:]) * math.prod(x.shape[-n:] if transposed else sizes)  # of one image
    return max(0, x.shape[0] * channels * math.prod(sizes)), max(0, columns)


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


def bound_forward(m: nn.Module, x: Any) -> tuple[float, float]:
    """Bound what a layer of a predictable row takes in its forward, without gradients.

    Args:
        m: The layer.
        x: Its input, a map or a list of maps `(B, C, H, W)`.

    Returns:
        Bytes, infinite for another input, and multiplications.
    """
    maps = x if isinstance(x, list) else [x]
    if not all(isinstance(each, torch.Tensor) and each.dim() == 4 for each in maps):
        return math.inf, math.inf
    height, width = (max(each.shape[side] for each in maps) for side in (2, 3))
    weights = [p for p in m.parameters() if p.dim() > 1]
    numbers = sum(
        p.numel() // max(1, len(p)) + len(p) for p in weights
    )  # of all convolutions, at one position: kernel, output
    heads = max(256, *map(len, weights)) / 64  # of attention: at least 4, and 64 rows of a weight for each
    attention = 16 * heads * (height * width) ** 2
    return 8 * (height + 32) * (width + 32) * numbers + attention, height * width * count_parameters(m)


def count_parameters(m: nn.Module) -> int:
    """Count a layer's parameters; upstream has done so, except early releases, which note them on the class."""
    known = vars(m).get("np")
    return sum(p.numel() for p in m.parameters()) if known is None else known
