"""Where upstream's classes and functions get what this folder adds around them, from one line a file."""

from __future__ import annotations

from typing import Any

import torch

from ultralytics import utils
from ultralytics.nn.AddModules.budget import within_budget
from ultralytics.nn.AddModules.checkpoints import at_home, atomic, guarded, resumable, whole
from ultralytics.nn.AddModules.datasets import (
    asked,
    bounded,
    decoded,
    harmless,
    identified,
    kept,
    pointed,
    readable,
    told,
    unwrapped,
)
from ultralytics.nn.AddModules.decoder import whole_only
from ultralytics.nn.AddModules.exports import remembered, verified
from ultralytics.nn.AddModules.finite import calm, clipped, watched
from ultralytics.nn.AddModules.gradients import laid_out
from ultralytics.nn.AddModules.launcher import is_launched
from ultralytics.nn.AddModules.opening import intact, opened, reading
from ultralytics.nn.AddModules.quiet import hushed, listed
from ultralytics.nn.AddModules.recipe import advised, slow_backbone, sound
from ultralytics.nn.AddModules.timm_weights import with_timm
from ultralytics.nn.AddModules.transfer import aligned, reported
from ultralytics.nn.AddModules.yaml_files import counted
from ultralytics.utils import downloads

__all__ = "add_to_backend", "add_to_data", "add_to_exporter", "add_to_tasks", "add_to_trainer"

TRAINER = {
    "check_resume": (whole_only, at_home, sound),
    "get_dataset": (unwrapped,),
    "setup_model": (reported,),
    "build_optimizer": (slow_backbone,),
    "_setup_train": (advised, watched, laid_out),
    "optimizer_step": (clipped,),
    "save_model": (whole,),
    "resume_training": (resumable,),
    "_handle_nan_recovery": (calm,),
    "_do_train": (guarded,),
}
DATA = {
    "load_dataset_cache_file": harmless,
    "save_dataset_cache_file": kept,
    "convert_ndjson_to_yolo_if_needed": asked,
    "check_det_dataset": told,
    "check_cls_dataset": told,
    "check_image": decoded,
    "verify_image_label": pointed,
    "safe_download": bounded,
}
LOADERS = "load_checkpoint", "attempt_load_one_weight"  # upstream's names for one function, now and before


def add_to_backend(cls: type) -> type:
    """Extend upstream's `AutoBackend`, as a decorator of it: a file that cannot be opened is one line."""
    from ultralytics.nn.backends.base import BaseBackend
    from ultralytics.nn.backends.openvino import OpenVINOBackend

    cls.__init__ = opened(cls.__init__)
    BaseBackend.read_metadata = staticmethod(reading(BaseBackend.read_metadata))
    OpenVINOBackend.load_model = hushed(OpenVINOBackend.load_model)
    return cls


def add_to_data() -> None:
    """Extend upstream's `ultralytics.data`, from its end: what lies in a data set is not trusted.

    Whoever takes a function from one of its files comes later.
    """
    from PIL import Image

    from ultralytics.data import base, dataset, utils
    from ultralytics.utils import downloads, patches

    for name, wrap in DATA.items():
        if hasattr(utils, name):  # older releases have fewer
            wrapped = wrap(getattr(utils, name))
            for module in (utils, dataset, downloads):
                if hasattr(module, name):
                    setattr(module, name, wrapped)
    base.BaseDataset.get_img_files = told(base.BaseDataset.get_img_files)
    base.BaseDataset.load_image = readable(base.BaseDataset.load_image)
    dataset.YOLODataset.get_labels = told(dataset.YOLODataset.get_labels)
    if hasattr(patches, "image_open"):
        Image.open = identified(Image.open, patches._image_open)


def add_to_exporter(cls: type) -> type:
    """Extend upstream's `Exporter`, as a decorator of it: what it has written is verified."""
    cls.__call__ = remembered(cls.__call__)
    for name in [name for name in vars(cls) if name.startswith("export_")]:
        setattr(cls, name, verified(getattr(cls, name), name.removeprefix("export_")))
    return cls


def add_to_tasks(names: dict[str, Any]) -> None:
    """Extend upstream's nn/tasks.py: pretrained weights are aligned, and may be timm's; what is saved is whole.

    What a model file asks for is bounded.

    Args:
        names: Its globals.
    """
    model = names["BaseModel"]
    model.load = aligned(model.load)
    for cls in [cls for cls in names.values() if isinstance(cls, type) and issubclass(cls, model)]:
        if "__init__" in vars(cls):
            cls.__init__ = within_budget(cls.__init__)
    for name in LOADERS:
        if name in names:
            names[name] = intact(with_timm(names[name]))
    if hasattr(utils, "YAML"):  # older releases have functions in its place
        utils.YAML.load = staticmethod(counted(utils.YAML.load))
    torch.save = atomic(torch.save)  # upstream has put its own there, too
    downloads.get_github_assets = listed(downloads.get_github_assets)


def add_to_trainer(cls: type) -> type:
    """Extend upstream's `BaseTrainer`, as a decorator of it."""
    for name, wrappers in TRAINER.items():
        for wrap in wrappers if hasattr(cls, name) else ():  # older releases have fewer
            setattr(cls, name, wrap(getattr(cls, name)))
    if is_launched():
        from ultralytics.engine.validator import BaseValidator
        from ultralytics.nn.AddModules.nodes import alone

        BaseValidator.__call__ = alone(BaseValidator.__call__)
    return cls
