"""What this fork does to upstream's engine/model.py.

A YAML with RT-DETR's head becomes an `RTDETR`, and an `RTDETR` is no other model; detectors of others open as
checkpoints do; `embed` finds the layer before the head behind a multi-output backbone; `save` says what a file will not
keep; `benchmark` refuses decoder arguments; `tune` searches what acts; `val` fetches no data set that nobody named;
`resume` refuses a run that is over; a model file is the one that is named.
"""

from __future__ import annotations

import importlib
from typing import Any
from unittest.mock import patch

from torch import nn

from ultralytics.fork.building import model_class
from ultralytics.fork.building.change_rows import add_methods
from ultralytics.fork.checkpoints.model_to_save import check_model_to_save
from ultralytics.fork.decoder_size import refuse_in_mode
from ultralytics.fork.errors import Refused
from ultralytics.fork.hooks import override as overrides
from ultralytics.fork.hooks.override import install_module, override
from ultralytics.fork.pretrained.weight_kinds import is_foreign_detector
from ultralytics.fork.privacy.downloads import require_local_data
from ultralytics.fork.rtdetr import find_head
from ultralytics.fork.training.resume import refuse_finished_run
from ultralytics.fork.training.search_space import search_what_acts
from ultralytics.utils import DEFAULT_CFG_DICT

__all__ = (
    "install",
    "leave_out_predictor",
    "refuse_finished_run",
    "refuse_in_mode",
    "require_local_data",
    "route_by_head",
)

MODULE = "ultralytics.engine.model"
MODEL = "ultralytics.engine.model.Model"


def install(function: Any) -> Any:
    """Put the overrides of a method of upstream's `Model` in place, and those of functions that its file imports."""
    install_module(MODULE)
    return overrides.install(function)


def route_by_head(model: Any, config: dict, task: str) -> str:
    """Let a model from a YAML be an `RTDETR` if the YAML has its head."""
    install_module(MODEL)  # the methods behind the patched line of upstream's class
    add_methods(type(model))
    return model_class.route_by_head(model, config, task)


@override(MODULE)
def yaml_model_load(original: Any, path: Any) -> dict:
    """Read the file that is named: earlier releases take rtdetr-r50m.yaml for rtdetr-r50.yaml at a scale `m`."""
    tasks = importlib.import_module("ultralytics.nn.tasks")
    file = tasks.check_yaml(path, hard=False)
    if not file:
        return original(path)
    with patch.object(tasks, "check_yaml", lambda *_, **__: file):
        return original(path)


@override(MODEL)
def embed(original: Any, self: Any, source: Any = None, stream: bool = False, **kwargs: Any) -> Any:
    """Take the layer before the head by its index, which is not its place behind a multi-output backbone."""
    layers = getattr(getattr(self.model, "module", self.model), "model", None)
    if not kwargs.get("embed") and isinstance(layers, nn.Sequential) and hasattr(layers[-2], "i"):
        kwargs["embed"] = [layers[-2].i]
    return original(self, source, stream, **kwargs)


@override(MODEL)
def save(original: Any, self: Any, filename: Any = "saved_model.pt", *args: Any) -> None:
    """Say what of the model a file cannot keep, or what another process would refuse."""
    if isinstance(self.model, nn.Module):
        check_model_to_save(self.model, str(filename))
    original(self, filename, *args)


@override(MODEL)
def tune(original: Any, self: Any, use_ray: bool = False, *args: Any, **kwargs: Any) -> Any:
    """Search only over what acts on an RT-DETR."""
    if not find_head(self.model):
        return original(self, use_ray, *args, **kwargs)
    arguments = {key: value for key, value in {**self.overrides, **kwargs}.items() if key in DEFAULT_CFG_DICT}
    with search_what_acts(use_ray, kwargs.get("space"), {"optimizer": "AdamW", **arguments}):
        return original(self, use_ray, *args, **kwargs)


@override(MODEL)
def _load(original: Any, self: Any, weights: Any, *args: Any, **kwargs: Any) -> None:
    """Open detectors of others, too; refuse another model as an `RTDETR`, whose predictions would end in an error."""
    install_module(MODEL)
    add_methods(type(self))
    if is_foreign_detector(weights):
        open_foreign_detector(self, weights)
    else:
        original(self, weights, *args, **kwargs)
    if type(self).__name__ == "RTDETR" and isinstance(self.model, nn.Module) and not find_head(self.model):
        raise Refused(f"{weights} is a model of YOLO for the task {self.task}, not an RT-DETR: open it by YOLO(...)")


def open_foreign_detector(self: Any, weights: Any) -> None:
    """Let a `YOLO` or `RTDETR` hold a detector that is no checkpoint of Ultralytics, as it holds one that is."""
    from ultralytics.nn.tasks import load_checkpoint

    self.model, self.ckpt = load_checkpoint(weights)
    self.task, self.ckpt_path, self.model_name = self.model.task, self.model.pt_path, weights
    self.model.args = self._reset_ckpt_args(self.model.args)
    self.overrides = {**self.model.args, "task": self.task, "model": str(weights)}


def leave_out_predictor(self: Any) -> dict:
    """Copy and pickle a model without its predictor, which holds a lock and is made again by the next prediction."""
    return {**vars(self), "predictor": None}
