"""How much memory a model may take while it is built: what is larger is refused before it is taken.

A row of a few characters can ask for a terabyte, or for a million layers. Where a row's literals are those of a usual
row, each tensor that its layer registers is counted as it is created, and before it is filled. In all other rows each
operation of torch is counted before it runs. A model that comes to much is built on the meta device first, where
tensors have sizes and take nothing. Models of a usual size never get there: the meta device loads torch's compiler,
which takes seconds.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import gc
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ultralytics.fork.building.operation_sizes import (
    bound_forward,
    count_multiplications,
    count_parameters,
    is_in_place,
    size_of_result,
)

MAX_BYTES = 2 * 2**30  # bytes of a model and of what one image of its construction needs
REHEARSED_BYTES = 2**29  # bytes beyond which rows are rehearsed
MAX_ROW_OPERATIONS = 40_000  # of its rows; the largest published model has 7,600, one on timm's PNASNet 25,000
MAX_OPERATIONS = 200_000  # older releases copy the model twice, and run the copies, for its summary: 79,000
MAX_MULTIPLICATIONS = 10**12  # multiplications for the first image; the same needs 3 * 10 ** 10
FIRST_IMAGE_ANCHORS = 1344  # of strides 8, 16 and 32 on an image of 256 pixels, on which a new model runs first
MAX_PASSED_BYTES = 2**37  # bytes of all results together, kept or not, so that no build takes for ever

_building: contextvars.ContextVar[MemoryLimit | None] = contextvars.ContextVar("building", default=None)


class NotRehearsed(Exception):
    """What a layer would take is much, and has not been rehearsed."""


class ModelTooLarge(Exception):
    """What a layer would take is more than a model may."""


class BuildsInProgress:
    """Counts the builds of all threads in a plain number, which torch.compile can read, unlike a context variable."""

    count = 0
    lock = threading.Lock()

    @classmethod
    def add(cls, change: int) -> None:
        """Count a build that begins, or ends."""
        with cls.lock:
            cls.count += change


def is_building() -> bool:
    """Whether a model is being built."""
    return _building.get() is not None


@contextlib.contextmanager
def limit_memory() -> Iterator[MemoryLimit]:
    """Raise `ModelTooLarge` before an operation that, with what is held, takes more than a model may."""
    active = _building.get()
    if active is not None:  # a model's constructor, which calls `parse_model`
        yield active
        return
    active = MemoryLimit()
    token = _building.set(active)
    BuildsInProgress.add(1)
    active.count_operations()
    try:
        yield active
    finally:
        active.count_registered_tensors()
        BuildsInProgress.add(-1)
        _building.reset(token)


def build_within_limit(
    parse_model: Callable,
    d: dict,
    ch: int,
    verbose: bool,
    predictable_rows: dict[int, bool],
    may_rehearse: bool = True,
) -> Any:
    """Call `parse_model` within the limit; if the model is large, rehearse its rows, and begin again.

    Raises:
        ModelTooLarge: At the row with which the model is too large.
    """
    with limit_memory() as active:
        again, state = copy.deepcopy(d), torch.get_rng_state()
        active.rehearsed, active.most = not may_rehearse, MAX_ROW_OPERATIONS
        active.predictable_rows = predictable_rows
        try:
            with active.rows_counted(), torch.no_grad():  # a constructor that runs its layer keeps none of its maps
                built = parse_model(d, ch, verbose)
        except NotRehearsed:
            built = None
        except RuntimeError as e:  # of a tensor that no memory is there for, of which only torch knows the size
            if not (may_rehearse and "alloc" in str(e)):
                raise
            rehearse_rows(parse_model, again, ch)
            raise
        active.rehearsed = True
        if built is None:  # not in `except`, where the error holds what was built so far
            gc.collect()
            rehearse_rows(parse_model, again, ch)
            torch.set_rng_state(state)
            with active.rows_counted(), torch.no_grad():
                built = parse_model(again, ch, verbose)
        active.most = MAX_OPERATIONS
        return built


def construct_within_limit(init: Callable) -> Callable:
    """Wrap the constructor of a model, which runs it once to see its strides."""

    @functools.wraps(init)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        with limit_memory():
            init(self, *args, **kwargs)

    return build


def summarise_within_limit(summarise: Callable, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Summarise a model that may be under construction.

    The summary runs the model on an image of some cells, and earlier releases copy it. Where no decoder asks for more
    cells than the first image has, a model of a usual size has room for that, and nothing is counted: that would need
    several times as long.
    """
    active = _building.get() if BuildsInProgress.count else None
    is_usual = active is not None and active.registered + active.bytes <= REHEARSED_BYTES
    queries = (getattr(m, "num_queries", 0) for m in model.modules())
    if active is None or not is_usual or max(queries) > FIRST_IMAGE_ANCHORS:
        return summarise(model, *args, **kwargs)
    active.count_registered_tensors()
    try:
        return summarise(model, *args, **kwargs)
    finally:
        active.count_operations()


def run_within_limit(m: nn.Module, x: Any) -> Any:
    """Run a layer of a model that may be under construction."""
    active = _building.get() if BuildsInProgress.count else None
    return m(x) if active is None else active.run(m, x)


@contextlib.contextmanager
def count_apart() -> Iterator[None]:
    """Count what is built for a trial from nothing, and forget it: it is thrown away."""
    active = _building.get()
    if active is None:
        yield
        return
    keys = "operations", "bytes", "registered", "steps", "row_numbers", "passed"
    before, held = {key: vars(active)[key] for key in keys}, dict(active.held)
    vars(active).update(dict.fromkeys(keys, 0))
    try:
        yield
    finally:
        vars(active).update(before)
        active.held = held


def end_row(m: nn.Module) -> None:
    """Count the layer of the row that `parse_model` has just built; raise `ModelTooLarge` if it is too much."""
    active = _building.get()
    if active is not None:
        active.end_row(m)


class MemoryLimit(TorchDispatchMode):
    """Counts the bytes that are held, and the operations.

    As a dispatch mode it sees each operation. In predictable rows it is not entered: there `count_registered` sees the
    tensors that modules register.
    """

    most = MAX_OPERATIONS
    rehearsed = True
    is_rehearsal = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler for each new mode, which takes seconds

    def __init__(self):
        super().__init__()
        self.operations = self.bytes = self.registered = self.steps = self.row = self.row_numbers = self.passed = 0
        self.held: dict[StorageWeakRef, int] = {}
        self.is_entered = False
        self.predictable_rows: dict[int, bool] = {}
        self.predictable_layers: set[nn.Module] = set()
        register_hooks()
        # With deterministic algorithms, torch fills each new tensor, and the memory is taken before it is registered.
        # Upstream's trainer lets it fill none
        fills = torch.utils.deterministic.fill_uninitialized_memory
        self.may_skip = not (torch.are_deterministic_algorithms_enabled() and fills)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self.step()
        if is_in_place(func):
            return func(*args, **kwargs)
        size = size_of_result(func, args, kwargs)
        self.check(size)
        self.multiply(func, args, size)
        self.passed += size
        if self.passed > MAX_PASSED_BYTES:
            raise ModelTooLarge(f"more than {MAX_PASSED_BYTES // 2**30} GiB pass through memory while it is built")
        result = func(*args, **kwargs)
        self.hold(result)
        return result

    def count_operations(self) -> None:
        """See each operation from now on."""
        if not self.is_entered:
            self.is_entered = True
            self.__enter__()

    def count_registered_tensors(self) -> None:
        """See registered tensors only from now on."""
        if self.is_entered:
            self.is_entered = False
            self.__exit__(None, None, None)

    @contextlib.contextmanager
    def rows_counted(self) -> Iterator[None]:
        """Count rows from the first, and operations again behind the last."""
        before = self.registered, self.operations
        self.row = 0
        self.begin_row()
        try:
            yield
        except Exception:  # what was built is thrown away
            self.registered, self.operations = before
            raise
        finally:
            self.count_operations()

    def begin_row(self) -> None:
        """Choose how the row is counted that comes next."""
        self.row_numbers = 0
        if self.may_skip and self.row in self.predictable_rows:
            self.count_registered_tensors()
        else:
            self.count_operations()

    def end_row(self, m: nn.Module) -> None:
        """Count what the layer of a row has copied, and go on to the next row."""
        if not self.is_entered:
            self.registered += (count_parameters(m) - self.row_numbers) * 4  # a copy of a layer registers nothing
            self.step()
            self.check()
            if self.predictable_rows[self.row]:
                self.predictable_layers.add(m)
        self.row += 1
        self.begin_row()

    def run(self, m: nn.Module, x: Any) -> Any:
        """Run a layer on the first image; count operations unless it is predictable that all fits.

        No gradients are needed, and without them a layer holds nothing but its outputs.
        """
        size, steps = bound_forward(m, x) if self.is_entered and m in self.predictable_layers else (math.inf, 0)
        with torch.no_grad():
            if self.registered + self.bytes + size > MAX_BYTES or self.steps + steps > MAX_MULTIPLICATIONS:
                return m(x)
            self.count_registered_tensors()
            try:
                result = m(x)
            finally:
                self.count_operations()
        self.steps += steps
        self.step()
        self.hold(result)
        self.check()
        return result

    def step(self, count: int = 1) -> None:
        """Count operations."""
        self.operations += count
        if self.operations > self.most:
            raise ModelTooLarge(f"more than {self.most} operations are needed to build it")

    def multiply(self, func: Any, args: tuple, size: int) -> None:
        """Count the multiplications of an operation, before it takes for ever."""
        self.steps += count_multiplications(func, args, size)
        if self.steps > MAX_MULTIPLICATIONS:
            raise ModelTooLarge(f"more than {MAX_MULTIPLICATIONS:.0e} multiplications are needed for one small image")

    def hold(self, result: Any) -> None:
        """Count the tensors of a result, each of them once."""
        for x in [result] if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.layout == torch.strided and x.is_meta == self.is_rehearsal:
                storage, size = StorageWeakRef(x.untyped_storage()), x.numel() * x.element_size()
                self.bytes += size - self.held.get(storage, 0)
                self.held[storage] = size

    def check(self, size: int = 0) -> None:
        """Raise `ModelTooLarge` if `size` bytes more are too many."""
        size += self.registered
        if self.bytes + size > (MAX_BYTES if self.rehearsed else REHEARSED_BYTES):  # has some been let go?
            self.held = {storage: n for storage, n in self.held.items() if not storage.expired()}
            self.bytes = sum(self.held.values())
        if self.bytes + size > REHEARSED_BYTES and not self.rehearsed:
            raise NotRehearsed
        if self.bytes + size > MAX_BYTES:
            need, most = (self.bytes + size) / 2**30, MAX_BYTES // 2**30
            raise ModelTooLarge(
                f"{need:.1f} GiB are needed to build it, with the rows before it; at most {most} are taken"
            )


class Rehearsal(MemoryLimit):
    """Counts what rows take on the meta device, behind each row."""

    most = MAX_ROW_OPERATIONS
    is_rehearsal = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.step()
        result = func(*args, **(kwargs or {}))
        if not is_in_place(func):
            self.hold(result)
        return result

    def end_row(self, m: nn.Module) -> None:
        """Raise `ModelTooLarge` if the rows so far are too large."""
        self.check()


def rehearse_rows(parse_model: Callable, d: dict, ch: int) -> None:
    """Build rows without their memory.

    Raises:
        ModelTooLarge: At the row with which the model is too large.
    """
    rehearsal = Rehearsal()
    token = _building.set(rehearsal)
    try:
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rehearsal.count_operations()
            parse_model(copy.deepcopy(d), ch, False)
    except ModelTooLarge:
        raise
    except Exception:  # the row is wrong, or needs numbers: what is built next says which
        pass
    finally:
        rehearsal.count_registered_tensors()
        _building.reset(token)


@functools.cache
def register_hooks() -> None:
    """Let torch call `count_registered` for each tensor that a module registers, from the first build on."""
    nn_module.register_module_parameter_registration_hook(count_registered)
    nn_module.register_module_buffer_registration_hook(count_registered)


def count_registered(module: nn.Module, name: str, x: torch.Tensor | None) -> None:
    """Count a tensor that a module of a predictable row registers, before it is filled."""
    active, kind = _building.get(), type(x)
    if active is None or active.is_entered or x is None:
        return
    if kind is nn.Parameter:
        active.row_numbers += x.numel()
    elif kind is not torch.Tensor and nn.parameter.is_lazy(x):
        return
    active.operations += 2  # it is created, and filled
    active.registered += x.nbytes
    if active.registered + active.bytes > REHEARSED_BYTES:
        active.check()
