"""What this fork does to upstream's nn/tasks.py.

`parse_model` builds rows of registered modules within limits; forward loops run multi-output backbones; `fuse()` fuses
our modules; weights are aligned by what a layer is; checkpoints are checked, and may be others' weights.

The package `ultralytics.nn` imports nn/tasks.py, which needs all of this file: what imports something of that package
is imported when it is used. So each file of this fork can be the first one that a program imports.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from ultralytics.fork.building.memory_limit import construct_within_limit, summarise_within_limit
from ultralytics.fork.building.norms import keep_timm_layers, set_norms
from ultralytics.fork.checkpoints.contents import load_checked
from ultralytics.fork.hooks import downloads
from ultralytics.fork.hooks import override as overrides
from ultralytics.fork.hooks.override import override
from ultralytics.fork.installation import warn_if_tree_is_stale
from ultralytics.fork.pretrained.alignment import load_aligned
from ultralytics.fork.pretrained.weight_kinds import load_weights

__all__ = ("install",)

TASKS = "ultralytics.nn.tasks"
HEAD = "ultralytics.nn.modules.head.RTDETRDecoder"
FUSION = "ultralytics.nn.modules.block.RepC3"
CALLED_LATER = {  # names that nn/tasks.py takes of this file, and where they are
    "READERS": "ultralytics.nn.AddModules.registry",
    "fuse_layer": "ultralytics.fork.building.fuse",
    "index_layer": "ultralytics.fork.building.rows",
    "read_row": "ultralytics.fork.building.rows",
    "run_layer": "ultralytics.fork.building.forward",
}


def __getattr__(name: str) -> Any:
    """Import one of `CALLED_LATER` when it is taken for the first time."""
    if name not in CALLED_LATER:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    value = globals()[name] = getattr(importlib.import_module(CALLED_LATER[name]), name)
    return value


def install(names: dict[str, Any]) -> None:
    """Put the overrides of nn/tasks.py in place, given its globals, behind `parse_model`."""
    import ultralytics.nn.AddModules  # noqa: F401 - registers the modules of its files
    from ultralytics.fork.hooks import cfg  # noqa: F401 - as it is imported

    overrides.install_module(HEAD)
    overrides.install_module(FUSION)
    model = names["BaseModel"]
    overrides.install(model)
    overrides.install(names["RTDETRDetectionModel"])
    overrides.install(names)
    for cls in [cls for cls in names.values() if isinstance(cls, type) and issubclass(cls, model)]:
        if "__init__" in vars(cls):
            cls.__init__ = construct_within_limit(read_named_file(cls.__init__))
    downloads.install()
    warn_if_tree_is_stale()


def read_named_file(init: Callable) -> Callable:
    """Wrap the constructor of a model, so that it reads its file by the override of `yaml_model_load`.

    Upstream defines that function behind the line that installs the overrides of nn/tasks.py; hooks/model.py has it.
    """

    @functools.wraps(init)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        importlib.import_module("ultralytics.engine.model")
        init(self, *args, **kwargs)

    return build


@override(TASKS)
def parse_model(original: Any, d: dict, ch: int, verbose: bool = True) -> tuple:
    """Build rows of registered modules, within limits; what is wrong names file and row."""
    from ultralytics.fork.building.rows import build_rows

    return build_rows(original, d, ch, verbose)


@override(TASKS)
def initialize_weights(original: Any, model: Any) -> None:
    """Give the batch norms the eps and the momentum that the model YAML names; those of timm keep their own."""
    with keep_timm_layers(model):
        original(model)
        set_norms(model)


@override("ultralytics.nn.tasks.BaseModel")
def info(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Summarise a model of a usual size without counting operations."""
    return summarise_within_limit(original, self, *args, **kwargs)


@override("ultralytics.nn.tasks.BaseModel")
def load(original: Any, self: Any, weights: Any, verbose: bool = True) -> None:
    """Align weights by what a layer is, not by its number."""
    load_aligned(original, self, weights, verbose)


@override("ultralytics.nn.tasks.BaseModel")
def fuse(original: Any, self: Any, verbose: bool = True, *args: Any, **kwargs: Any) -> Any:
    """Fold no layer whose forward would be lost."""
    from ultralytics.fork.building.fuse import fuse_model

    return fuse_model(original, self, verbose, *args, **kwargs)


@override("ultralytics.nn.tasks.RTDETRDetectionModel")
def init_criterion(original: Any, self: Any) -> Any:
    """Train by the class loss and the gains of the arguments."""
    from ultralytics.fork.training.losses import make_criterion

    return make_criterion(original, self)


@override("ultralytics.nn.tasks.RTDETRDetectionModel")
def loss(original: Any, self: Any, batch: dict[str, Any], preds: Any = None) -> tuple:
    """Learn from a teacher, too, if the training has one."""
    if "distillation" not in self._modules:
        return original(self, batch, preds)
    from ultralytics.fork.training.distillation import add_loss

    return add_loss(original, self, batch, preds)


@override(FUSION, until="8.3.40")
def __init__(original: Any, self: Any, c1: int, c2: int, n: int = 3, e: float = 1.0) -> None:
    """Let both entrances have the width that is used inside, which earlier releases give the output's."""
    from ultralytics.nn.modules.conv import Conv

    original(self, c1, c2, n, e)
    inside = int(c2 * e)
    if inside != c2:
        self.cv1, self.cv2 = Conv(c1, inside, 1, 1), Conv(c1, inside, 1, 1)


@override(HEAD)
def _generate_anchors(original: Any, *args: Any, **kwargs: Any) -> tuple:
    """Make anchors that a later step of a training can use, in inference mode too: the head keeps them."""
    if not torch.is_inference_mode_enabled():
        return original(*args, **kwargs)
    with torch.inference_mode(False):
        return original(*args, **kwargs)


@override(HEAD)
def _get_decoder_input(original: Any, self: Any, feats: torch.Tensor, *args: Any) -> tuple:
    """Use no anchors that `torch.export` has left, which have no numbers."""
    kept = vars(self).get("anchors")
    if kept is not None and type(kept) is not type(feats) and type(kept).__name__ == "FakeTensor":
        self.shapes = []
    return original(self, feats, *args)


@override(TASKS, since="8.3.193")
def load_checkpoint(original: Any, *args: Any, **kwargs: Any) -> tuple:
    """Check the file and its contents; accept weights of timm, the official RT-DETR and Hugging Face."""
    return load_checked(load_weights, original, *args, **kwargs)


@override(TASKS, until="8.3.193")
def attempt_load_one_weight(original: Any, *args: Any, **kwargs: Any) -> tuple:
    """Do what `load_checkpoint` does, under the name of earlier releases."""
    return load_checked(load_weights, original, *args, **kwargs)
