"""Fill objects with the state that a checkpoint gives them, and refuse a state that runs, hangs or grows."""

from __future__ import annotations

import types
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn

from ultralytics.fork.checkpoints.allowed_names import DATA_CLASSES, PLAIN_MODULES, Reference, describe
from ultralytics.fork.checkpoints.refusal import Violation

PLACES_LIMIT = 100_000  # of layers in layers; the largest model has 1,500
HEADS_LIMIT = 2**12  # heads, and channels of a head
KEY_TYPES = str, int, float, bool, bytes, type(None)  # of dictionaries and sets: types whose hash is fast
EXACT_INTEGERS = 2**53  # up to here each number has a hash of its own; beyond, any count of numbers can share one
CONTENTS = {"_parameters": nn.Parameter, "_buffers": torch.Tensor, "_modules": nn.Module}  # of a layer
FEATURE_HOOK = "ultralytics.nn.distill_model.FeatureHook"


# Objects --------------------------------------------------------------------------------------------------------------
def fill_object(obj: Any, state: Any) -> None:
    """Give an object its attributes."""
    if isinstance(obj, np.dtype):  # its byte order
        if not (type(state) is tuple and len(state) > 5 and state[2:5] == (None, None, None)):
            raise Violation("has an array of records")
        return
    if type(state) is tuple and len(state) == 2 and state[1] is None:
        state = state[0]
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise Violation(f"gives {describe(obj)} attributes that are not a dictionary")
    if type(obj) is OrderedDict:  # a state dict, with the versions of its modules
        if set(state) - {"_metadata"}:
            raise Violation("gives an OrderedDict attributes")
        vars(obj).update(state)
    elif isinstance(obj, nn.Module):
        fill_layer(obj, state)
    elif type(obj).__module__ in PLAIN_MODULES or f"{type(obj).__module__}.{type(obj).__name__}" in DATA_CLASSES:
        check_attributes(obj, state)
        vars(obj).update(state)
    else:
        raise Violation(f"gives {describe(obj)} attributes")


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
        if "_hooks" in key and not has_only_distillation_hooks(state[key]):
            raise Violation(f"has a {describe(layer)} with {key}, which run")
        if isinstance(state[key], Reference) and state[key].path.startswith("torch.nn.modules."):
            state[key] = state[key].target  # torchvision's layers keep the class of their norms
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


def check_attributes(obj: Any, state: dict) -> None:
    """Refuse an attribute that would run in place of a method of the object's class."""
    for key, value in state.items():
        if key.startswith("__"):
            raise Violation(f"has a {describe(obj)} with an attribute {key[:40]}")
        if isinstance(value, Reference):
            raise Violation(f"has a {describe(obj)} whose {key} is {value.path}")
        of_class = getattr(type(obj), key, None)
        # Upstream calls a layer's class its `type`, which hides a method of torch's
        hides = callable(of_class) and (callable(value) or of_class is not getattr(nn.Module, key, None))
        # A fused layer holds one of its forward methods as `forward`
        is_own = (isinstance(value, types.MethodType) and value.__self__ is obj) or is_own_forward(type(obj), value)
        if hides and not is_own:
            raise Violation(f"has a {describe(obj)} whose method {key} is replaced")


def is_own_forward(cls: type, value: Any) -> bool:
    """Whether a function is a forward method of a layer's own class."""
    name = getattr(value, "__name__", "")
    return name.startswith("forward") and getattr(cls, name, None) is value


# Containers -----------------------------------------------------------------------------------------------------------
def set_items(target: Any, items: list) -> None:
    """Put keys and values, which alternate, into a dictionary."""
    if type(target) not in (dict, OrderedDict):
        raise Violation(f"sets items of {describe(target)}")
    if len(items) % 2:
        raise Violation("has a key without a value")
    target.update(zip(check_keys(items[::2]), items[1::2]))


def check_keys(keys: list) -> list:
    """Return the keys; refuse nested tuples, whose hash may take for ever, and numbers that can be made to collide."""
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        if not all(type(part) in KEY_TYPES for part in parts):
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
