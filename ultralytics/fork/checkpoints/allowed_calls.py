"""The functions that a checkpoint may call: each is one of ours that checks its arguments."""

from __future__ import annotations

import math
import pathlib
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ultralytics.fork.checkpoints.allowed_names import ACTIVATIONS, Reference, describe
from ultralytics.fork.checkpoints.refusal import Violation
from ultralytics.fork.checkpoints.state_checks import KEY_TYPES, check_keys, refuse_tuples, require_type


def call_function(function: Any, args: Any) -> Any:
    """Call a function that a checkpoint may call, or make an empty object of a class."""
    if not isinstance(function, Reference) or type(args) is not tuple:
        raise Violation(f"calls {describe(function)}")
    if isinstance(function.target, type):
        if args or issubclass(function.target, nn.Module):
            raise Violation(f"calls {function.path}")
        return make_empty_object(function.target)
    try:
        return function.target(*args)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as e:
        why = " ".join(str(e).split())[:100]
        raise Violation(f"calls {function.path} with arguments that it does not take ({why})") from None


def make_empty_object(cls: Any) -> Any:
    """Make an object of a class without its constructor."""
    return cls.__new__(cls)


def make_object(cls: Any, args: Any) -> Any:
    """Make an empty object of a class that a checkpoint may name; the constructor is not called."""
    if isinstance(cls, Reference) and isinstance(cls.target, type) and args == ():
        return make_empty_object(cls.target)
    raise Violation(f"makes an object of {describe(cls)} with arguments")


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
    """Stand for `getattr`: of a layer or its class a forward method, of torch an activation, of an enum a member."""
    if isinstance(obj, nn.Module) and name in {"forward", "forward_fuse"}:
        return types.MethodType(get_method(type(obj), name), obj)
    if isinstance(obj, Reference) and isinstance(obj.target, type) and type(name) is str and name.startswith("forward"):
        return get_method(obj.target, name)
    if isinstance(obj, Reference) and obj.target is object and name == "__new__":
        return Reference("builtins.object.__new__", lambda cls: make_object(cls, ()))
    if isinstance(obj, Reference) and obj.target is make_interpolation_mode:
        return make_interpolation_mode(name.lower())
    if isinstance(obj, Reference) and obj.target is torch_functions and name in ACTIVATIONS and hasattr(torch, name):
        return getattr(torch, name)
    raise Violation(f"takes {str(name)[:80]!r} of {describe(obj)}")


def get_method(cls: type, name: str) -> Callable:
    """Get a method of a layer's class."""
    function = getattr(cls, name)
    if not issubclass(cls, nn.Module) or not isinstance(function, types.FunctionType):
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
    "numpy.core.multiarray.scalar": make_scalar,
    "numpy.dtype": make_dtype,
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
