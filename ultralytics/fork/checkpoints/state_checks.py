"""Fill objects with the state that a checkpoint gives them, and refuse a state that runs, hangs or grows."""

from __future__ import annotations

import enum
import functools
import math
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ultralytics.fork.added_modules import is_added
from ultralytics.fork.checkpoints.allowed_names import (
    DATA_CLASSES,
    PLAIN_MODULES,
    Reference,
    describe,
    is_owners,
    may_be_held,
)
from ultralytics.fork.checkpoints.refusal import Violation

PLACES_LIMIT = 100_000  # of layers in layers; the largest model has 1,500
HEADS_LIMIT = 2**12  # heads, and channels of a head
KEY_TYPES = str, int, float, bool, bytes, type(None)  # of dictionaries and sets: types whose hash is fast
EXACT_INTEGERS = 2**53  # up to here each number has a hash of its own; beyond, any count of numbers can share one
CONTENTS = {"_parameters": nn.Parameter, "_buffers": torch.Tensor, "_modules": nn.Module}  # of a layer
EINOPS_LAYERS = "einops.layers.torch.Rearrange", "einops.layers.torch.Reduce"
EINOPS_STATE = {"pattern", "reduction", "axes_lengths"}
FORWARD_HOOKS = "_forward_hooks", "_forward_pre_hooks"
FEATURE_HOOK = "ultralytics.nn.distill_model.FeatureHook"


# Objects --------------------------------------------------------------------------------------------------------------
def fill_object(obj: Any, state: Any, count: Callable[[int], None]) -> None:
    """Give an object its attributes.

    Args:
        obj: The object.
        state: Its attributes, as a checkpoint has them.
        count: Counts the items that are looked at, and raises `Violation` if they are too many.
    """
    if isinstance(obj, np.dtype):  # its byte order
        if type(state) is tuple and state[1:2] == (">",):
            raise Violation("has a big-endian array")
        if not (type(state) is tuple and len(state) > 5 and state[2:5] == (None, None, None)):
            raise Violation("has an array of records")
        return
    if type(obj) is np.ndarray:
        fill_array(obj, state)
        return
    if type(obj) is functools.partial:
        fill_partial(obj, state, count)
        return
    cls, slots = type(obj), {}
    if type(state) is tuple and len(state) == 2:  # attributes, and those in slots
        state, slots = state[0] or {}, state[1] or {}
    if type(state) is list and len(state) == len(getattr(cls, "__dataclass_fields__", ())):  # frozen, with slots
        state, slots = {}, dict(zip(cls.__dataclass_fields__, state))
    if not all(type(x) is dict and all(type(key) is str for key in x) for x in (state, slots)):
        raise Violation(f"gives {describe(obj)} attributes that are not a dictionary")
    state, slots = ({key: hold(value, count) for key, value in x.items()} for x in (state, slots))
    if slots and not is_owners(cls, cls.__module__):
        raise Violation(f"gives {describe(obj)} attributes in slots")
    if cls is OrderedDict:  # a state dict, with the versions of its modules
        if set(state) - {"_metadata"}:
            raise Violation("gives an OrderedDict attributes")
        vars(obj).update(state)
    elif f"{cls.__module__}.{cls.__name__}" in EINOPS_LAYERS:
        fill_einops_layer(obj, state)
    elif isinstance(obj, nn.Module):
        fill_layer(obj, state)
    elif isinstance(obj, enum.Enum):
        raise Violation(f"changes {describe(obj)}")
    elif (
        cls.__module__ in PLAIN_MODULES
        or f"{cls.__module__}.{cls.__name__}" in DATA_CLASSES
        or is_owners(cls, cls.__module__)
    ):
        check_attributes(obj, {**state, **slots})
        check_plain_object(obj, {**state, **slots})
        vars(obj).update(state) if state else None
        for key, value in slots.items():
            if not isinstance(getattr(cls, key, None), types.MemberDescriptorType):
                raise Violation(f"gives {describe(obj)} the attribute {key[:40]}, which it has no slot for")
            object.__setattr__(obj, key, value)
    else:
        raise Violation(f"gives {describe(obj)} attributes")


def check_plain_object(obj: Any, state: dict) -> None:
    """Refuse an object that is no layer and would be called, or whose class wants to fill it itself.

    Upstream calls methods such as `keys` of what it takes for a dictionary.
    """
    cls = type(obj)
    if is_owners(cls, cls.__module__):
        if "__setstate__" in dir(cls) and not hasattr(cls, "__dataclass_fields__"):
            raise Violation(f"has a {describe(obj)}, whose class has a `__setstate__`")
        return
    for key, value in state.items():
        if callable(value) and not isinstance(value, nn.Module):
            raise Violation(f"has a {describe(obj)} whose {key[:40]} can be called")


def hold(value: Any, count: Callable[[int], None]) -> Any:
    """Give what an object, a list or a dictionary may hold: of the classes those of layers, and the owner's own."""
    if type(value) is tuple:
        count(len(value))  # tuples of the same tuples are looked at again and again
        inner = any(isinstance(x, (Reference, tuple)) for x in value)
        return tuple(hold(x, count) for x in value) if inner else value
    if not isinstance(value, Reference):
        return value
    if may_be_held(value.target):
        return value.target
    raise Violation(f"holds {value.path[:200]}")


def fill_array(array: np.ndarray, state: Any) -> None:
    """Fill an array with its numbers, which the checkpoint has as bytes."""
    values: Any = state if type(state) is tuple and len(state) == 5 else (None,) * 5
    version, shape, dtype, fortran, data = values
    is_array = version == 1 and type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
    if not (is_array and len(shape) <= 32 and isinstance(dtype, np.dtype) and type(data) is bytes):
        raise Violation("has an array that is none")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise Violation(f"declares an array of {math.prod(shape)} numbers, for {len(data)} bytes")
    state = (1, shape, dtype, bool(fortran), data)
    array.__setstate__(state)


def fill_partial(partial: functools.partial, state: Any, count: Callable[[int], None]) -> None:
    """Give a partial its arguments; it is not called."""
    _, args, keywords, attributes = state if type(state) is tuple and len(state) == 4 else (None,) * 4
    is_right = type(args) is tuple and type(keywords) in (dict, type(None)) and not attributes
    if not (is_right and all(type(key) is str for key in keywords or {})):
        raise Violation("has a partial that is none")
    partial.__setstate__(
        (partial.func, hold(args, count), {k: hold(v, count) for k, v in (keywords or {}).items()}, {})
    )


def fill_einops_layer(layer: nn.Module, state: dict) -> None:
    """Let a layer of einops read its short pattern again, which is all that it keeps."""
    sizes = state.get("axes_lengths")
    texts = [state[key] for key in state if key != "axes_lengths"]
    is_right = type(sizes) is dict and all(type(x) is int and 0 < x < 2**24 for x in sizes.values())
    if not (is_right and set(state) <= EINOPS_STATE and all(type(x) is str and len(x) <= 200 for x in texts)):
        raise Violation(f"has a {describe(layer)} whose pattern is none")
    try:
        layer.__setstate__(state)
    except Exception as e:
        raise Violation(f"has a {describe(layer)} with a wrong pattern ({' '.join(str(e).split())[:100]})") from None


def fill_layer(layer: nn.Module, state: dict) -> None:
    """Give a layer its parameters, buffers, layers and data, and nothing that runs."""
    for kind, content in CONTENTS.items():
        held: Any = state.get(kind)
        if type(held) not in (dict, OrderedDict) or not all(
            type(key) is str and not key.startswith("__") and (value is None or isinstance(value, content))
            for key, value in held.items()
        ):
            raise Violation(f"has a {describe(layer)} with wrong {kind}")
    for key in state:
        is_own = key in FORWARD_HOOKS and has_only_own_hooks(state[key])
        if "_hooks" in key and not (is_own or has_only_distillation_hooks(state[key])):
            raise Violation(f"has a {describe(layer)} with {key}, which run")
    check_attributes(layer, state)
    for key in ("head_dim", "num_heads"):  # upstream's AAttn computes with them in `__setstate__`
        if type(state.get(key, 0)) is not int or state.get(key, 0) > HEADS_LIMIT:
            raise Violation(f"has a {describe(layer)} whose {key} is not a number up to {HEADS_LIMIT}")
    if isinstance(layer, nn.RNNBase):
        check_recurrent_weights(layer, state)
    layer.__setstate__(state)


def check_recurrent_weights(layer: nn.RNNBase, state: dict) -> None:
    """Refuse a recurrent layer whose list of weights is wrong: torch would make the list, however long, in loops."""
    names: Any = state.get("_flat_weights_names")
    parameters = state["_parameters"]
    try:
        all_weights, flat = state["_all_weights"], state["_flat_weights"]
        is_right = [*parameters] == names == [name for weights in all_weights for name in weights]
        is_right &= len(all_weights) == state["num_layers"] * (1 + state["bidirectional"])
        is_right &= all(weight is parameters[name] for weight, name in zip(flat, names, strict=True))
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise Violation(f"has a {describe(layer)} whose list of weights is not that of its parameters")


def has_only_distillation_hooks(hooks: Any) -> bool:
    """Whether a layer's hooks are upstream's, which keep the layer's output for a distillation."""
    kinds = {f"{type(hook).__module__}.{type(hook).__name__}" for hook in (hooks.values() if hooks else ())}
    return kinds <= {FEATURE_HOOK, "builtins.bool"}


def has_only_own_hooks(hooks: Any) -> bool:
    """Whether a layer's hooks are methods of layers of the owner's own."""
    values = list(hooks.values()) if isinstance(hooks, dict) else [None]
    return all(type(x) is types.MethodType and is_added(type(x.__self__).__module__) for x in values)


def check_attributes(obj: Any, state: dict) -> None:
    """Refuse an attribute that would run in place of a method of the object's class."""
    for key, value in state.items():
        if key.startswith("__"):
            raise Violation(f"has a {describe(obj)} with an attribute {key[:40]}")
        of_class = getattr(type(obj), key, None)
        # Upstream calls a layer's class its `type`, which hides a method of torch's
        is_method = callable(of_class) and not isinstance(of_class, (type, nn.Module))
        hides = is_method and (callable(value) or of_class is not getattr(nn.Module, key, None))
        # A fused layer, or one with a switch, holds one of its own methods as `forward`
        is_bound = isinstance(value, types.MethodType) and value.__self__ is obj
        if hides and not (key.startswith("forward") and (is_bound or is_own_forward(type(obj), value))):
            raise Violation(f"has a {describe(obj)} whose method {key} is replaced")


def is_own_forward(cls: type, value: Any) -> bool:
    """Whether a function is a forward method of a layer's own class."""
    name = getattr(value, "__name__", "")
    return name.startswith("forward") and getattr(cls, name, None) is value


# Containers -----------------------------------------------------------------------------------------------------------
def set_items(target: Any, items: list, count: Callable[[int], None]) -> None:
    """Put keys and values, which alternate, into a dictionary."""
    if type(target) not in (dict, OrderedDict):
        raise Violation(f"sets items of {describe(target)}")
    if len(items) % 2:
        raise Violation("has a key without a value")
    target.update(zip(check_keys(items[::2]), (hold(x, count) for x in items[1::2])))


def check_keys(keys: list) -> list:
    """Return the keys; refuse nested tuples, whose hash may take for ever, and numbers that can be made to collide."""
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        if not all(type(part) in KEY_TYPES or isinstance(part, enum.Enum) for part in parts):
            raise Violation(f"has {describe(key)} as a key")
        if any(type(part) in (int, float) and abs(part) > EXACT_INTEGERS for part in parts):
            raise Violation("has a number of many digits as a key")
    return keys


def refuse_tuples(keys: list) -> list:
    """Return the keys; refuse tuples where the unpickler does not count them."""
    if any(type(key) is tuple for key in keys):
        raise Violation("has a tuple as a key")
    return keys


def require_type(obj: Any, kind: type) -> Any:
    """Return an object of exactly the type that an opcode works on."""
    if type(obj) is not kind:
        raise Violation(f"adds to {describe(obj)}")
    return obj


# Sizes ----------------------------------------------------------------------------------------------------------------
def check_storage(pid: Any, sizes: dict[str, int] | int) -> int:
    """Check that a storage is as large as it declares.

    Args:
        pid: The reference to it.
        sizes: As `archive.read_storage_sizes` gives them.

    Returns:
        Its bytes.
    """
    is_archive = isinstance(sizes, dict)
    if not (type(pid) is tuple and len(pid) == (5 if is_archive else 6) and pid[0] == "storage"):
        raise Violation("has a reference that is not a storage's")
    _, kind, key, location, numel = pid[:5]
    dtype = kind.dtype if isinstance(kind, torch.serialization.StorageType) else None
    if dtype is None or not all(type(x) is str for x in (key, location)) or type(numel) is not int or numel < 0:
        raise Violation("has a reference that is not a storage's")
    nbytes = numel * torch.empty((), dtype=dtype).element_size()
    if is_archive and sizes.get(key) != nbytes:
        raise Violation(f"declares {nbytes} bytes for the storage {key[:40]}, which has {sizes.get(key, 'none')}")
    if not is_archive and (pid[5] is not None or nbytes > sizes):
        raise Violation(f"declares {nbytes} bytes for the storage {key[:40]}, more than the file has")
    return nbytes


def check_model_size(model: nn.Module, declared: int) -> None:
    """Refuse a model that grows when it is walked or converted.

    Args:
        model: The loaded model.
        declared: Bytes of all storages of the file.
    """
    count_places(model, {})
    check_element_count(sum(map(count_elements, model.modules())), declared)


def count_places(layer: nn.Module, known: dict[int, int | None]) -> int:
    """Count the places in which layers stand, each of which a walk through the model visits.

    Raises:
        Violation: If there are more than a model has: layers in themselves, or twice in twice in twice.
    """
    if id(layer) not in known:
        known[id(layer)] = None
        known[id(layer)] = 1 + sum(count_places(x, known) for x in layer._modules.values() if x is not None)
    places = known[id(layer)]
    if places is None:
        raise Violation("has a layer in itself")
    if places > PLACES_LIMIT:
        raise Violation(f"has layers in more than {PLACES_LIMIT} places")
    return places


def count_elements(layer: nn.Module) -> int:
    """Count the elements of a layer's tensors; a tensor of two names counts twice, as `.float()` copies it twice."""
    return sum(x.numel() for held in (layer._parameters, layer._buffers) for x in held.values() if x is not None)


def check_element_count(count: int, declared: int) -> None:
    """Refuse tensors of more elements than the bytes that a file declares can be meant for."""
    if count > 2**24 + 4 * declared:
        raise Violation(f"declares tensors of {count} elements, more than the file holds")
