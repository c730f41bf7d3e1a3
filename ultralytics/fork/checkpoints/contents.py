"""Check what a checkpoint holds after it was opened, and take from it only what upstream can use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import nn

from ultralytics.fork.checkpoints.file_damage import check_checkpoint_file, replacement_advice
from ultralytics.fork.checkpoints.load import load_checkpoint
from ultralytics.fork.errors import is_plain, mark_as_plain, quote
from ultralytics.fork.pretrained.timm_rows import list_timm_layers
from ultralytics.fork.rtdetr import find_head
from ultralytics.utils import LOGGER

MAX_SIZE = 8192  # side of an image that a checkpoint can ask for, and stride
ATTRIBUTE_TYPES = {"task": (str, type(None)), "yaml": dict, "stride": torch.Tensor, "save": (list, tuple)}


def load_checked(load: Callable, original: Callable, weight: Any, *args: Any, **kwargs: Any) -> tuple:
    """Load a checkpoint, after a check of its file, and check what it holds.

    RT-DETR's anchors are made again: a checkpoint holds them for its last image size, rounded to half precision, and a
    score would be off by 1e-3, at that size only.

    Args:
        load: Function that loads weights, by upstream's function or otherwise.
        original: Upstream's function, the first argument of `load`.
        weight: The file, or what else upstream's function takes.

    Raises:
        Refused: If the file is damaged.
        TypeError: If it does not hold a model that can be used.
    """
    if isinstance(weight, (str, Path)) and Path(weight).suffix == ".pt" and Path(weight).is_file():
        check_checkpoint_file(Path(weight))
    try:
        model, *others = load(original, weight, *args, **kwargs)
        if found := find_head(model):
            found[1].shapes = []
        removed = {}  # both arguments hold the same; a line is shown once
        for arguments in (getattr(model, "args", None), (others[0] or {}).get("train_args")):
            removed |= dict.fromkeys(remove_unusable_arguments(arguments) if isinstance(arguments, dict) else ())
        for line in removed:
            LOGGER.warning(f"{weight} names {line}")
        clean_class_names(model)
        check_attributes(model)
        for m in list_timm_layers(model):
            m.keep_inputs()
    except Exception as e:
        if is_plain(e) or isinstance(e, OSError):
            raise
        reason = "it is a state dict, weights without layers" if is_state_dict(weight) else str(e)
        reason = quote(reason.replace("ERROR ❌️ ", ""), 200)
        line = f"{weight} holds no model that can be used ({reason}). {replacement_advice(weight)}"
        raise mark_as_plain(TypeError(line)) from e
    return model, *others


def is_state_dict(weight: Any) -> bool:
    """Whether a file holds tensors by their names, and nothing else."""
    try:
        content = load_checkpoint(weight, map_location="cpu", mmap=True)
    except Exception:  # whatever it is, then
        return False
    return isinstance(content, dict) and bool(content) and all(isinstance(x, torch.Tensor) for x in content.values())


def remove_unusable_arguments(args: dict) -> Iterator[str]:
    """Remove from a checkpoint's arguments a data set elsewhere, which would be fetched, and an impossible image size.

    Yields:
        What was removed.
    """
    data, size = args.get("data"), args.get("imgsz")
    if data is not None and (not isinstance(data, (str, Path)) or "://" in str(data)):
        name = quote(data, 200) if isinstance(data, str) else f"a {type(data).__name__}"
        yield f"{name} as its data set, which is not fetched: name it by data="
        args["data"] = None
    sides = size if isinstance(size, (list, tuple)) else [size]
    if size is not None and not all(isinstance(x, int) and 0 < x <= MAX_SIZE for x in sides):
        yield f"{quote(size, 80)} as its image size, which is none: name it by imgsz="
        del args["imgsz"]


def clean_class_names(model: Any) -> None:
    """Replace what in class names would lead out of the folder in which `save_crop` makes a folder for each class.

    Raises:
        ValueError: If the classes are not numbered from 0.
    """
    names = getattr(model, "names", None)
    if names is None:
        return
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    model.names = {int(key): clean_class_name(str(name)) for key, name in pairs}
    if sorted(model.names) != list(range(len(model.names))):
        raise ValueError("its classes are not numbered from 0")


def clean_class_name(name: str) -> str:
    """Give a class name that is not a path to elsewhere, on any system."""
    path = PureWindowsPath(name)  # which takes both slashes
    if not (path.drive or path.root or {".", ".."} & {name, *path.parts} or "\0" in name):
        return name
    return re.sub(r"[/\\:\0]|^\.+$", "_", name)


def check_attributes(model: Any) -> None:
    """Check the types of the model's attributes that upstream computes with.

    Raises:
        ValueError: For an attribute of another type.
    """
    layers = model.model if isinstance(getattr(model, "model", None), nn.Sequential) else ()
    layers = [m for m in layers if hasattr(m, "f") and hasattr(m, "i")]
    froms = [x for m in layers for x in (m.f if isinstance(m.f, (list, tuple)) else [m.f])]
    stride = getattr(model, "stride", None)
    for key, kind in ATTRIBUTE_TYPES.items():
        if hasattr(model, key) and not isinstance(getattr(model, key), kind):
            raise ValueError(f"its {key} is a {type(getattr(model, key)).__name__}")
    if isinstance(stride, torch.Tensor) and not (stride.numel() and ((stride >= 1) & (stride <= MAX_SIZE)).all()):
        raise ValueError(f"its stride is {quote(stride.tolist(), 80)}")
    if not all(isinstance(x, int) for x in [*froms, *(m.i for m in layers), *(getattr(model, "save", None) or ())]):
        raise ValueError("its layers come from no layers")
