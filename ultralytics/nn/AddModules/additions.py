"""Where upstream's classes and functions get what this folder adds around them, from one line a file."""

from __future__ import annotations

from typing import Any

import torch

from ultralytics.nn.AddModules.checkpoints import at_home, atomic, guarded, resumable, whole
from ultralytics.nn.AddModules.decoder import whole_only
from ultralytics.nn.AddModules.exports import remembered, verified
from ultralytics.nn.AddModules.finite import calm, clipped, watched
from ultralytics.nn.AddModules.gradients import laid_out
from ultralytics.nn.AddModules.launcher import is_launched
from ultralytics.nn.AddModules.opening import intact, opened, reading
from ultralytics.nn.AddModules.recipe import advised, slow_backbone, sound
from ultralytics.nn.AddModules.timm_weights import with_timm
from ultralytics.nn.AddModules.transfer import aligned, reported

__all__ = "add_to_backend", "add_to_exporter", "add_to_tasks", "add_to_trainer"

TRAINER = {
    "check_resume": (whole_only, at_home, sound),
    "setup_model": (reported,),
    "build_optimizer": (slow_backbone,),
    "_setup_train": (advised, watched, laid_out),
    "optimizer_step": (clipped,),
    "save_model": (whole,),
    "resume_training": (resumable,),
    "_handle_nan_recovery": (calm,),
    "_do_train": (guarded,),
}
LOADERS = "load_checkpoint", "attempt_load_one_weight"  # upstream's names for one function, now and before


def add_to_backend(cls: type) -> type:
    """Extend upstream's `AutoBackend`, as a decorator of it: a file that cannot be opened is one line."""
    from ultralytics.nn.backends.base import BaseBackend

    cls.__init__ = opened(cls.__init__)
    BaseBackend.read_metadata = staticmethod(reading(BaseBackend.read_metadata))
    return cls


def add_to_exporter(cls: type) -> type:
    """Extend upstream's `Exporter`, as a decorator of it: what it has written is verified."""
    cls.__call__ = remembered(cls.__call__)
    for name in [name for name in vars(cls) if name.startswith("export_")]:
        setattr(cls, name, verified(getattr(cls, name), name.removeprefix("export_")))
    return cls


def add_to_tasks(names: dict[str, Any]) -> None:
    """Extend upstream's nn/tasks.py: pretrained weights are aligned, and may be timm's; what is saved is whole.

    Args:
        names: Its globals.
    """
    model = names["BaseModel"]
    model.load = aligned(model.load)
    for name in LOADERS:
        if name in names:
            names[name] = intact(with_timm(names[name]))
    torch.save = atomic(torch.save)  # upstream has put its own there, too


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
