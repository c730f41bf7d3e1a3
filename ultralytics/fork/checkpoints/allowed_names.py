"""The classes and functions that a checkpoint may name: those of models, and a few kinds of data."""

from __future__ import annotations

import importlib.util
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ultralytics.fork.added_modules import EXTERNAL, is_added
from ultralytics.fork.checkpoints.refusal import SAFE_LOAD, MissingModule, Violation
from ultralytics.utils import ROOT

# Python modules whose nn.Module classes a checkpoint may name; with a dot at the end, the modules below it
LAYER_MODULES = (
    "clip.model",
    "einops.layers.torch",
    "timm.layers.",
    "timm.models.",
    "torch.nn.modules.",
    "torchvision.models.",
    "torchvision.ops.",
    "torchvision.transforms.transforms",
    "ultralytics.nn.AddModules.",
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
HELD_CLASSES = (
    "ultralytics.nn.AddModules.",
    "timm.layers.",
    "torch.nn.modules.",
    "torchvision.ops.",
    "ultralytics.nn.modules.",
)
# Python modules of which a checkpoint may name each class that is defined there
PLAIN_MODULES = "ultralytics.nn.distill_model", "ultralytics.utils.loss", "ultralytics.utils.tal"
DATA_CLASSES = {
    "argparse.Namespace",
    "timm.layers.format.Format",  # an enum: the layout of a backbone's maps
    "timm.models._features.FeatureInfo",
    "torchvision.transforms.transforms.Compose",
    "torchvision.transforms.transforms.ToTensor",
    "types.SimpleNamespace",
    "ultralytics.utils.IterableSimpleNamespace",
}
TORCH_FUNCTIONS = {  # of the module torch itself, which has some that open files
    *("abs", "add", "bmm", "cat", "celu", "clamp", "cos", "div", "exp", "log", "matmul", "max", "maximum", "mean"),
    *("min", "minimum", "mul", "relu", "rsqrt", "selu", "sigmoid", "sin", "softmax", "sqrt", "square", "sub", "sum"),
    *("tanh", "where"),
}
FUNCTIONAL = "torch.nn.functional", "torch._C._nn", "torch.functional"  # functions of tensors, which a layer may hold
KEPT_FUNCTIONS = {  # a layer may hold them; a checkpoint may not call them
    "clip.clip._convert_image_to_rgb",
    *(f"einops.einops.{name}" for name in ("einsum", "rearrange", "reduce", "repeat")),
    "ultralytics.nn.AddModules.Biformer.regional_routing_attention_torch",
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
    if isinstance(obj, Reference):
        return obj.path[:200]
    cls = obj if isinstance(obj, types.FunctionType) else type(obj)
    return f"{cls.__module__}.{cls.__qualname__}"


def current_path(path: str) -> str:
    """Give the path today of a class or function that an earlier release had elsewhere."""
    for old, new in MOVED_MODULES.items():
        if path.startswith(old):
            path = new + path[len(old) :]
    return RENAMED.get(path, path)


def find_class(path: str) -> Any:
    """Find a class, a dtype or a function of tensors that a checkpoint names; nothing else is imported.

    Of the files of nn/AddModules, which are the owner's own code, it may name all classes and functions.

    Raises:
        Violation: If it is not part of a model.
        MissingModule: If it is in nn/AddModules, and its file is not.
    """
    if path == "builtins.object":  # `object.__new__` makes objects of the classes that `instance_mixin` extends
        return Reference(path, object)
    module, _, name = path.rpartition(".")
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if module.startswith(CLIP_MODULES) and importlib.util.find_spec("clip") is None:
        raise Violation(f"names {path[:200]}, which needs the package clip, which is not installed")
    # Libraries' classes have a capital; a file is not imported for another name
    may_be_layer = has_layers(module) and (is_added(module) or name != name.lower())
    is_known = may_be_layer or module in PLAIN_MODULES or path in DATA_CLASSES | KEPT_FUNCTIONS
    if not (is_known or (module in FUNCTIONAL and not name.startswith("_"))):
        raise Violation(f"names {path[:200]}, which is not part of a model")
    try:
        obj = vars(importlib.import_module(module)).get(name)
    except ImportError:
        obj = None
    if isinstance(obj, type):
        is_layer = issubclass(obj, nn.Module) and may_be_layer and has_layers(obj.__module__)
        is_data = path in DATA_CLASSES or (module in PLAIN_MODULES and obj.__module__ == module)
        if is_layer or is_data or is_owners(obj, module):
            return Reference(path, obj)
    elif obj is not None:
        is_tensor_function = module in FUNCTIONAL and getattr(obj, "__module__", None) in (*FUNCTIONAL, "torch")
        if path in KEPT_FUNCTIONS or is_owners(obj, module) or is_tensor_function:
            return obj
    if obj is None and is_added(module):
        raise MissingModule(
            f"names {path[:200]}, which is not here: put the file with {name[:100]} into {ROOT / 'nn' / 'AddModules'}; "
            f"{SAFE_LOAD}=0 does not help"
        )
    problem = "is not a class of a model" if obj is not None else "does not exist here"
    raise Violation(f"names {path[:200]}, which {problem}")


def is_owners(obj: Any, module: str) -> bool:
    """Whether a class or a function is the owner's own, defined in a file of nn/AddModules."""
    is_own = is_added(module) and getattr(obj, "__module__", None) == module
    return is_own and isinstance(obj, (type, types.FunctionType))


def may_be_held(obj: Any) -> bool:
    """Whether an object may hold a class, such as that of its norms, to make layers of it later."""
    return isinstance(obj, type) and (f"{obj.__module__}.".startswith(HELD_CLASSES) or obj.__module__ in EXTERNAL)


def has_layers(module: str) -> bool:
    """Whether a checkpoint may name the layers of a Python module."""
    return module in EXTERNAL or (
        module != FEATURE_EXTRACTION
        and any(module == known or (known.endswith(".") and module.startswith(known)) for known in LAYER_MODULES)
    )
