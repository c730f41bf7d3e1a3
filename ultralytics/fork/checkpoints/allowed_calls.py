"""The functions that a checkpoint may call: each is one of ours that checks its arguments."""

from __future__ import annotations

import enum
import functools
import math
import operator
import pathlib
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ultralytics.fork.checkpoints.allowed_names import TORCH_FUNCTIONS, Reference, describe, is_owners
from ultralytics.fork.checkpoints.refusal import Violation
from ultralytics.fork.checkpoints.state_checks import KEY_TYPES, check_keys, hold, refuse_tuples, require_type


def call_function(function: Any, args: Any) -> Any:
    """Call a function that a checkpoint may call, or make an empty object of a class."""
    if not isinstance(function, Reference) or type(args) is not tuple:
        raise Violation(f"calls {describe(function)}")
    if isinstance(function.target, type):
        if issubclass(function.target, enum.Enum):
            return find_member(function, args)
        if args or issubclass(function.target, nn.Module):
            raise Violation(f"calls {function.path}")
        return make_empty_object(function.target)
    try:
        return function.target(*args)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as e:
        why = " ".join(str(e).split())[:100]
        raise Violation(f"calls {function.path} with arguments that it does not take ({why})") from None


def make_empty_object(cls: Any) -> Any:
    """Make an object of a class; neither its constructor nor a `__new__` of the owner's is called."""
    if hasattr(cls, "__del__"):
        raise Violation(f"has a {cls.__module__}.{cls.__qualname__}, whose class has a `__del__`")
    base = next(base for base in cls.__mro__ if not is_owners(base, base.__module__))
    return base.__new__(cls)


def make_object(cls: Any, args: Any, count: Callable[[int], None]) -> Any:
    """Make an empty object of a class that a checkpoint may name; the constructor is not called.

    Args:
        cls: The class, as a `Reference`.
        args: Nothing, or the fields of a named tuple.
        count: Counts the items that are looked at.
    """
    if isinstance(cls, Reference) and isinstance(cls.target, type) and not issubclass(cls.target, enum.Enum):
        if args == ():
            return make_empty_object(cls.target)
        if (
            issubclass(cls.target, tuple)
            and type(args) is tuple
            and len(args) == len(getattr(cls.target, "_fields", ()))
        ):
            return tuple.__new__(cls.target, [hold(x, count) for x in args])
    raise Violation(f"makes an object of {describe(cls)} with arguments")


def find_member(cls: Reference, args: tuple) -> enum.Enum:
    """Find a member of an enum by its value."""
    (value,) = args if len(args) == 1 else (None,)
    members = list(cls.target.__members__.values())
    for member in members:
        if type(member._value_) is type(value) and member._value_ == value:
            return member
    if issubclass(cls.target, enum.Flag) and type(value) is int and 0 <= value < 2 ** len(members):
        flags = [member for member in members if member._value_ & value == member._value_]
        if flags and functools.reduce(operator.or_, (member._value_ for member in flags)) == value:
            return functools.reduce(operator.or_, flags)
    raise Violation(f"names a member of {cls.path} that it does not have")


def make_partial(function: Any) -> functools.partial:
    """Make a partial of a class of layers, or of a function that a layer may hold; it is not called."""
    function = hold(function, lambda _: None)
    if type(function) is tuple or not isinstance(function, (type, types.FunctionType, types.BuiltinFunctionType)):
        raise ValueError("it is neither a class nor a function")
    return functools.partial(function)


def make_array(cls: Any, shape: tuple, kind: bytes) -> np.ndarray:
    """Make an empty array of numpy's, which its state fills."""
    if not (isinstance(cls, Reference) and cls.target is refuse_call and shape == (0,) and kind == b"b"):
        raise ValueError("not an array")
    return np.ndarray((0,), "b")


def refuse_call(*_: Any) -> None:
    """Stand for a class that a checkpoint names and may not call."""
    raise ValueError("it is not to be called")


# Tensors --------------------------------------------------------------------------------------------------------------
def rebuild_tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, requires_grad: bool = False, hooks: Any = None, *_: Any
) -> torch.Tensor:
    """Make a tensor that lies within its storage."""
    numbers = [offset, *size, *stride]
    if not all(type(x) is int and x >= 0 for x in numbers) or len(size) != len(stride) or len(size) > 64 or hooks:
        raise ValueError("not a size")
    numel = storage._size()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if all(size) else -1
    if last >= numel or math.prod(size) > 2**31:
        raise ValueError(f"a size of {size} for {numel} elements")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, bool(requires_grad), OrderedDict())


def rebuild_parameter(data: torch.Tensor, requires_grad: bool, hooks: Any, marks: Any = None) -> nn.Parameter:
    """Make a parameter of a tensor, with its attributes, such as a mark that weight decay skips it."""
    if not isinstance(data, torch.Tensor) or hooks:
        raise ValueError("not a tensor")
    parameter = nn.Parameter(data, requires_grad=bool(requires_grad))
    for key, value in (require_type(marks, dict) if marks else {}).items():
        if type(key) is not str or type(value) not in KEY_TYPES or hasattr(parameter, key):
            raise ValueError(f"an attribute {key!r}")
        vars(parameter)[key] = value
    return parameter


# Attributes -----------------------------------------------------------------------------------------------------------
def get_attribute(obj: Any, name: str) -> Any:
    """Stand for `getattr`: of a layer or its class a method, of torch a function, of an owner's class one inside it."""
    target = obj.target if isinstance(obj, Reference) else None
    if type(name) is not str or (name.startswith("__") and target is not object):
        raise Violation(f"takes {str(name)[:80]!r} of {describe(obj)}")
    if isinstance(obj, nn.Module):
        return types.MethodType(get_method(type(obj), name), obj)
    if target is object and name == "__new__":
        return Reference("builtins.object.__new__", lambda cls: make_object(cls, (), lambda _: None))
    if target is make_interpolation_mode:
        return make_interpolation_mode(name.lower())
    if target is torch_functions and name in TORCH_FUNCTIONS:
        return getattr(torch, name)
    if isinstance(target, type):
        held = vars(target).get(name)
        if isinstance(held, type) and is_owners(target, target.__module__) and held.__module__ == target.__module__:
            return Reference(f"{obj.path}.{name}", held)
        return get_method(target, name)
    raise Violation(f"takes {str(name)[:80]!r} of {describe(obj)}")


def get_method(cls: type, name: str) -> Callable:
    """Get a method of a class, which is not called: of a layer's a forward method, of the owner's own any."""
    home = next((base for base in cls.__mro__ if name in vars(base)), object)
    is_forward = name.startswith("forward") and issubclass(cls, nn.Module)
    function = getattr(home, name, None)
    if not isinstance(function, types.FunctionType) or not (is_forward or is_owners(home, home.__module__)):
        raise ValueError(f"{name} is not a method")
    return function


def make_interpolation_mode(value: str) -> Any:
    """Give a member of torchvision's enum by its value."""
    from torchvision.transforms.functional import InterpolationMode

    return InterpolationMode(value)


def torch_functions(*_: Any) -> None:
    """Stand for the class whose methods torch's functions are; a checkpoint can only take activations of it."""
    raise ValueError("it is not a function")


# Data -----------------------------------------------------------------------------------------------------------------
def make_ordered_dict(items: list | tuple[()] = ()) -> OrderedDict:
    """Make a dictionary of pairs."""
    pairs = [require_type(pair, type(pair) if type(pair) in (tuple, list) else tuple) for pair in items]
    check_keys(refuse_tuples([key for key, _ in pairs]))
    return OrderedDict(pairs)


def make_set(items: list | tuple[()] = ()) -> set:
    """Make a set of a list."""
    return set(check_keys(refuse_tuples(require_type(items, list) if items != () else [])))


def make_frozenset(items: list | tuple[()] = ()) -> frozenset:
    """Make a frozenset of a list."""
    return frozenset(make_set(items))


def make_dtype(code: str, *_: Any) -> np.dtype:
    """Make numpy's type of a number."""
    dtype = np.dtype(code if type(code) is str else "")
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {code!r}")
    return dtype


def make_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    """Make a number of numpy's."""
    if not isinstance(dtype, np.dtype) or type(data) is not bytes:
        raise ValueError("not a number")
    return np.frombuffer(data, dtype, 1)[0]


def encode(text: str, encoding: str) -> bytes:
    """Make the bytes that protocol 2 writes as text."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


def make_path(*parts: str) -> Path:
    """Make a path of this system from one of any system."""
    if not all(type(part) is str for part in parts):
        raise ValueError("not a path")
    return Path(*parts)


def accept_plain_values(function: Callable) -> Callable:
    """Let a function take numbers and texts only, or one tuple of them."""

    def checked(*args: Any) -> Any:
        values = args[0] if len(args) == 1 and type(args[0]) is tuple else args
        if not all(x is None or type(x) in (int, float, str) for x in values):
            raise ValueError("not numbers")
        return function(*args)

    return checked


FUNCTIONS: dict[str, Callable] = {
    "_codecs.encode": encode,
    "builtins.complex": accept_plain_values(complex),
    "builtins.frozenset": make_frozenset,
    "builtins.getattr": get_attribute,
    "builtins.set": make_set,
    "builtins.slice": accept_plain_values(slice),
    "collections.OrderedDict": make_ordered_dict,
    "functools.partial": make_partial,
    "numpy.core.multiarray._reconstruct": make_array,
    "numpy.core.multiarray.scalar": make_scalar,
    "numpy.dtype": make_dtype,
    "numpy.ndarray": refuse_call,
    **{f"pathlib.{cls.__name__}": make_path for cls in (pathlib.PosixPath, pathlib.WindowsPath)},
    "torch.Size": accept_plain_values(torch.Size),
    "torch._C._VariableFunctionsClass": torch_functions,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch.device": accept_plain_values(torch.device),
    "torchvision.transforms.functional.InterpolationMode": make_interpolation_mode,
}
