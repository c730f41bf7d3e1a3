"""Find what a checkpoint cannot keep of a model, or what another process would refuse, before the model is saved."""

from __future__ import annotations

import io
import pickle
import types
from typing import Any

import torch
from torch import nn

from ultralytics.fork.added_modules import is_added
from ultralytics.fork.checkpoints.load import load_restricted
from ultralytics.fork.checkpoints.refusal import MissingModule, Violation, is_restricted
from ultralytics.fork.checkpoints.state_checks import CONTENTS
from ultralytics.fork.errors import Refused, quote
from ultralytics.utils import LOGGER


def check_model_to_save(model: nn.Module, what: str) -> None:
    """Say what of a model cannot be saved, or what other processes will not open.

    Args:
        model: The model.
        what: What is about to be written, for the message.

    Raises:
        Refused: If Python cannot pickle the model, with the attribute and how to change it.
    """
    if any(type(layer).__name__ == "TensorQuantizer" for layer in model.modules()):
        return  # a quantization-aware training's, without which upstream saves the model
    problem = find_problem(model)
    if problem is None:
        return
    line = describe_problem(model, problem)
    if not isinstance(problem, (Violation, MissingModule)):
        raise Refused(f"{what} cannot be written: {line}") from None
    if is_restricted():
        LOGGER.warning(f"{what} will be refused by other processes: {line}")


def find_problem(content: Any) -> Exception | None:
    """Save something to memory and open it as another process does; give the error, if there is one."""
    buffer = io.BytesIO()
    try:
        torch.save({"content": content}, buffer)
    except (AttributeError, TypeError, pickle.PicklingError, RecursionError, RuntimeError) as e:
        return e
    buffer.seek(0)
    try:
        load_restricted(buffer, "cpu")
    except (Violation, MissingModule) as e:
        return e
    except Exception as e:  # as an opened file that is damaged
        return Violation(f"cannot be read ({type(e).__name__}: {quote(e, 200)})")
    return None


def describe_problem(model: nn.Module, problem: Exception) -> str:
    """Name the layer and the attribute that a problem is with, and the change that mends it."""
    for name, layer in reversed(list(model.named_modules())):
        if find_problem(layer) is None:
            continue
        where = f"{name or 'the model'} ({type(layer).__name__})"
        empty: Any = nn.Module.__new__(type(layer))
        nn.Module.__init__(empty)
        if found := find_problem(empty):
            home = f"{type(layer).__module__}.{type(layer).__qualname__}"
            if is_added(type(layer).__module__):
                return f"the class of {where}, {home}: {quote(found)}"
            return (
                f"the class of {where}, {home}: {quote(found)}. Move `class {type(layer).__name__}` into a file in "
                "ultralytics/nn/AddModules, and import it from there"
            )
        for key, value in vars(layer).items():
            if key in CONTENTS or (key in vars(empty) and "_hooks" not in key):
                continue
            if found := find_problem(value):
                kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
                return f"{where}: its attribute `{key}`, a {kind}: {quote(found)}. {advise(layer, key, value)}"
    return quote(problem)


def advise(layer: nn.Module, key: str, value: Any) -> str:
    """Give the change of two lines that lets a checkpoint keep a layer."""
    cls = type(layer).__name__
    if "_hooks" in key:
        return f"Give {cls} a method for the hook, and register `self.method` in place of the function"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return f"Write `def {key}(self, x): return ...` in class {cls}, and delete the line `self.{key} = ...`"
    return (
        f"Write `@property` and `def {key}(self): return ...` in class {cls} in place of `self.{key} = ...`, or keep "
        "numbers, texts, lists, dictionaries, tensors or layers"
    )
