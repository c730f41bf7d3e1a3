"""Choose the class and the task of a model that is built from a YAML."""

from __future__ import annotations

from typing import Any

from ultralytics.fork.building import forward  # noqa: F401 - what builds a model is imported with its class
from ultralytics.fork.building.model_yaml import check_sections, describe_row, file_name
from ultralytics.nn.AddModules.registry import RowError


def route_by_head(model: Any, cfg: dict, task: str | None) -> str:
    """Make a model built from a YAML an `RTDETR` if its head is RT-DETR's, whatever the file's name; give its task.

    Raises:
        RowError: If no task has the head of the last row, or the head is a classifier's and `nc` is missing.
    """
    from ultralytics.nn.tasks import guess_model_task

    check_sections(cfg)
    last = cfg["head"][-1] if cfg["head"] else None
    if isinstance(last, (list, tuple)) and len(last) > 2 and last[2] == "RTDETRDecoder":
        from ultralytics.models import RTDETR

        model.__class__ = RTDETR
        return "detect"
    if type(model).__name__ == "RTDETR":
        raise RowError(
            f"{file_name(cfg)}: the last row of an RTDETR is RTDETRDecoder; other models have another class or name"
        )
    task = task or guess_model_task(cfg)
    if task is None:
        i = len(cfg["backbone"]) + len(cfg["head"]) - 1
        raise RowError(
            f"{describe_row(cfg, i, last)}: expected the head of a task, such as RTDETRDecoder or Detect, or task=…"
        )
    if task == "classify" and not cfg.get("nc"):
        raise RowError(f"{file_name(cfg)}: `nc: {cfg.get('nc')}`, expected the number of classes")
    return task
