"""The classes and functions that a checkpoint may name: those of models, and a few kinds of data."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ultralytics.fork.checkpoints.refusal import SAFE_LOAD, MissingModule, Violation
from ultralytics.utils import ROOT

ADDED_MODULES = "ultralytics.nn.AddModules."
# Python modules whose nn.Module classes a checkpoint may name; with a dot at the end, the modules below it
LAYER_MODULES = (
    "clip.model",
    "torch.nn.modules.",
    "torchvision.models.",
    "torchvision.ops.",
    "torchvision.transforms.transforms",
    ADDED_MODULES,
    "ultralytics.models.utils.loss",  # a model keeps its loss once it has computed it
    "ultralytics.models.utils.ops",
    "ultralytics.nn.distill_model",
    "ultralytics.nn.modules",
    "ultralytics.nn.modules.",
    "ultralytics.nn.tasks",
    "ultralytics.nn.text_model",
)
CLIP_MODULES = "clip.", "ultralytics.nn.text_model"  # the latter installs clip when it is imported
FEATURE_EXTRACTION = "torchvision.models.feature_extraction"  # its class runs code that it holds
# Python modules of which a checkpoint may name each class that is defined there
PLAIN_MODULES = "ultralytics.nn.distill_model", "ultralytics.utils.loss", "ultralytics.utils.tal"
DATA_CLASSES = {
    "torchvision.transforms.transforms.Compose",
    "torchvision.transforms.transforms.ToTensor",
    "ultralytics.utils.IterableSimpleNamespace",
}
ACTIVATIONS = {  # functions of torch
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6"),
    *("selu", "sigmoid", "silu", "softmax", "softplus", "tanh"),
}
KEPT_FUNCTIONS = {  # a layer may hold them; a checkpoint may not call them
    "clip.clip._convert_image_to_rgb",
    "ultralytics.nn.AddModules.Biformer.regional_routing_attention_torch",
    *(f"{module}.{name}" for module in ("torch.nn.functional", "torch._C._nn") for name in ACTIVATIONS),
}
RENAMED = {  # names of earlier releases, and timm's names of what EMO has
    "timm.layers.drop.DropPath": "ultralytics.nn.AddModules.EMO.DropPath",
    "timm.models.layers.drop.DropPath": "ultralytics.nn.AddModules.EMO.DropPath",
    "ultralytics.nn.modules.block.Silence": "torch.nn.modules.linear.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
}
MOVED_MODULES = {
    "__builtin__.": "builtins.",
    "numpy._core.": "numpy.core.",
    "pathlib._local.": "pathlib.",
    "ultralytics.yolo.utils.": "ultralytics.utils.",
    "ultralytics.yolo.v8.": "ultralytics.models.yolo.",
}


@dataclass(frozen=True)
class Reference:
    """A class or function that a checkpoint has named; nothing happens until an opcode uses it that may."""

    path: str
    target: Any


def describe(obj: Any) -> str:
    """Name an object in a message."""
    return obj.path[:200] if isinstance(obj, Reference) else f"{type(obj).__module__}.{type(obj).__name__}"


def current_path(path: str) -> str:
    """Give the path today of a class or function that an earlier release had elsewhere."""
    for old, new in MOVED_MODULES.items():
        if path.startswith(old):
            path = new + path[len(old) :]
    return RENAMED.get(path, path)


def find_class(path: str) -> Any:
    """Find a class, a dtype or an activation that a checkpoint names; nothing else is imported.

    Raises:
        Violation: If it is not part of a model.
        MissingModule: If it is in nn/AddModules, and its file is not.
    """
    if path == "builtins.object":  # `object.__new__` makes objects of the classes that `instance_mixin` extends
        return Reference(path, object)
    module, _, name = path.rpartition(".")
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    may_be_layer = has_layers(module) and name != name.lower()  # a name of small letters is not a class
    if module.startswith(CLIP_MODULES) and importlib.util.find_spec("clip") is None:
        raise Violation(f"names {path[:200]}, which needs the package clip, which is not installed")
    if not (may_be_layer or module in PLAIN_MODULES or path in DATA_CLASSES | KEPT_FUNCTIONS):
        raise Violation(f"names {path[:200]}, which is not part of a model")
    try:
        obj = vars(importlib.import_module(module)).get(name)
    except ImportError:
        obj = None
    if path in KEPT_FUNCTIONS and obj is not None:
        return obj
    if isinstance(obj, type):
        is_layer = may_be_layer and issubclass(obj, nn.Module) and has_layers(obj.__module__)
        if is_layer or path in DATA_CLASSES or (module in PLAIN_MODULES and obj.__module__ == module):
            return Reference(path, obj)
    if obj is None and path.startswith(ADDED_MODULES):
        raise MissingModule(
            f"names {path[:200]}, which is not here: put the file with {name[:100]} into {ROOT / 'nn' / 'AddModules'}; "
            f"{SAFE_LOAD}=0 does not help"
        )
    problem = "is not a class of a model" if obj is not None else "does not exist here"
    raise Violation(f"names {path[:200]}, which {problem}")


def has_layers(module: str) -> bool:
    """Whether a checkpoint may name the layers of a Python module."""
    return module != FEATURE_EXTRACTION and any(
        module == known or (known.endswith(".") and module.startswith(known)) for known in LAYER_MODULES
    )
