"""How much memory a model may take while it is built: what is larger is refused before it is taken.

A row of a few characters can ask for a terabyte, or for a million layers. So each operation of torch is seen before it
runs. Where one is large, the rows are built on the meta device first, where tensors have sizes and take nothing. Models
of a usual size never get there: the meta device loads torch's compiler, which takes seconds.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map_only

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # torch before 1.13 shows no operations; models are built there as upstream does
    TorchDispatchMode = contextlib.nullcontext

__all__ = ()

LIMIT = 2 * 2**30  # bytes of a model and of what one image of its construction needs
LARGE = 2**29  # bytes beyond which rows are rehearsed
SMALL = 2**22  # numbers that are no matter
OPERATIONS = 20_000  # of its rows; the largest published model has 7,600
ALL_OPERATIONS = 10 * OPERATIONS  # older releases copy the model twice, and run the copies, for its summary: 79,000
STEPS = 10**12  # multiplications for the first image; the same needs 3 * 10 ** 10
SECONDS = 30  # of one core, where an operation is due; the same has 3

_building: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("building", default=None)
_rehearsal: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("rehearsal", default=None)


class Large(Exception):
    """What a layer would take is much, and has not been rehearsed."""


class TooLarge(Exception):
    """What a layer would take is more than a model may."""


def is_building() -> bool:
    """Whether a model is being built."""
    return _building.get() is not None


@contextlib.contextmanager
def budget() -> Iterator[Budget]:
    """Raise `TooLarge` before an operation that, with what is held, takes more than a model may."""
    active = _building.get()
    if active is not None:  # a model's constructor, which calls `parse_model`
        yield active
        return
    active = Budget()
    token = _building.set(active)
    try:
        with active:
            yield active
    finally:
        _building.reset(token)


def build_rows(parse_model: Callable, d: dict, ch: int, verbose: bool, may_rehearse: bool = True) -> Any:
    """Call `parse_model` within the budget; if the model is large, rehearse it, and begin again.

    Raises:
        TooLarge: At the row with which the model is too large.
    """
    with budget() as active:
        again, state = copy.deepcopy(d), torch.get_rng_state()
        active.rehearsed, active.most = not may_rehearse, OPERATIONS
        try:
            built = parse_model(d, ch, verbose)
        except Large:
            built = None
        active.rehearsed = True
        if built is None:  # not in `except`, where the error holds what was built so far
            gc.collect()
            rehearse(parse_model, again, ch)
            torch.set_rng_state(state)
            built = parse_model(again, ch, verbose)
        active.most = ALL_OPERATIONS
        return built


def within_budget(init: Callable) -> Callable:
    """Wrap the constructor of a model, which runs it once to see its strides."""

    @functools.wraps(init)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        with budget():
            init(self, *args, **kwargs)

    return build


class Budget(TorchDispatchMode):
    """Counts what is held, and the operations."""

    seconds = SECONDS
    most = ALL_OPERATIONS
    rehearsed = True
    is_rehearsal = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler for each new mode, which takes seconds

    def __init__(self):
        super().__init__()
        self.operations = self.bytes = self.steps = 0
        self.begin = time.thread_time()
        self.held: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self.step()
        if is_in_place(func):
            return func(*args, **kwargs)
        size = size_of_result(func, args, kwargs)
        self.check(size)
        self.multiply(func, args, size)
        result = func(*args, **kwargs)
        self.hold(result)
        return result

    def step(self) -> None:
        """Count an operation."""
        self.operations += 1
        if self.operations > self.most or time.thread_time() - self.begin > self.seconds:
            raise TooLarge(f"more than {self.most} operations or {self.seconds} seconds are needed to build it")

    def multiply(self, func: Any, args: tuple, size: int) -> None:
        """Count the steps of a convolution or a pooling, before it takes for ever.

        Args:
            func: The operation.
            args: What it gets.
            size: The bytes that it gives.
        """
        name, kernel = func._schema.name, args[1] if len(args) > 1 else None
        if "conv" in name and isinstance(kernel, torch.Tensor):
            each = math.prod(kernel.shape[1:])
        elif "pool" in name and isinstance(kernel, (int, list, tuple)):
            each = math.prod(kernel) if isinstance(kernel, (list, tuple)) else kernel**2
        else:
            return
        self.steps += size // 4 * each
        if self.steps > STEPS:
            raise TooLarge(f"more than {STEPS:.0e} multiplications are needed for one small image")

    def hold(self, result: Any) -> None:
        """Count what an operation has given."""
        for x in flat(result if isinstance(result, (list, tuple)) else (result,)):
            if isinstance(x, torch.Tensor) and x.layout == torch.strided and x.is_meta == self.is_rehearsal:
                self.held.append((StorageWeakRef(x.untyped_storage()), x.numel() * x.element_size()))
                self.bytes += self.held[-1][1]

    def check(self, size: int = 0) -> None:
        """Raise `TooLarge` if `size` bytes more are too many."""
        if self.bytes + size > (LIMIT if self.rehearsed else LARGE):  # has some been let go?
            self.held = [(storage, n) for storage, n in self.held if not storage.expired()]
            self.bytes = sum(n for _, n in self.held)
        if self.bytes + size > LARGE and not self.rehearsed:
            raise Large
        if self.bytes + size > LIMIT:
            need, most = (self.bytes + size) / 2**30, LIMIT // 2**30
            raise TooLarge(f"{need:.1f} GiB are needed to build it, with the rows before it; at most {most} are taken")


class Rehearsal(Budget):
    """Counts what rows take on the meta device; `check` is called behind each."""

    seconds = SECONDS // 5
    most = OPERATIONS
    is_rehearsal = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.step()
        result = func(*args, **(kwargs or {}))
        if not is_in_place(func):
            self.hold(result)
        return result


def rehearse(parse_model: Callable, d: dict, ch: int) -> None:
    """Build rows without their memory.

    Raises:
        TooLarge: At the row with which the model is too large.
    """
    if not hasattr(torch.device, "__enter__"):  # torch before 2.0
        return
    with Rehearsal() as rehearsal, torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = _rehearsal.set(rehearsal)
        try:
            parse_model(copy.deepcopy(d), ch, False)
        except TooLarge:
            raise
        except Exception:  # the row is wrong, or needs numbers: what is built next says which
            pass
        finally:
            _rehearsal.reset(token)


def end_row() -> None:
    """Raise `TooLarge` if the rows that have been rehearsed are too large."""
    rehearsal = _rehearsal.get()
    if rehearsal is not None:
        rehearsal.check()


def size_of_result(func: Any, args: tuple, kwargs: dict) -> int:
    """Compute how many bytes an operation takes; 0 for a small one."""
    leaves = flat((*args, *kwargs.values()))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if any(x.is_meta for x in tensors) or str(kwargs.get("device")) == "meta":
        return 0
    if func._schema.name == "aten::convolution":
        return convolved(*args[:2], *args[3:8])
    lists = any(isinstance(x, (list, tuple)) and any(isinstance(y, torch.Tensor) for y in x) for x in args)
    most = math.prod(max(1, abs(x)) for x in leaves if isinstance(x, (int, float)) and math.isfinite(x))
    if most * math.prod(x.numel() or 1 for x in tensors) <= SMALL:
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
    parts = flat(result if isinstance(result, (list, tuple)) else (result,))
    return sum(x.numel() * x.element_size() for x in parts if isinstance(x, torch.Tensor))


def convolved(x: torch.Tensor, weight: torch.Tensor, stride: list, padding: list, dilation: list, *more: Any) -> int:
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


def flat(values: list | tuple) -> list:
    """List what an operation gets or gives; some of it is in lists."""
    return [x for value in values for x in (value if isinstance(value, (list, tuple)) else (value,))]


@functools.cache
def is_in_place(func: Any) -> bool:
    """Whether an operation writes into what it gets, or gives a view of it."""
    return func._schema.is_mutable or any(value.alias_info for value in func._schema.returns)


def to_meta(x: torch.Tensor) -> torch.Tensor:
    """Give a tensor of the same form without its numbers."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
