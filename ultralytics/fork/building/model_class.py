"""Choose the class and the task of a model that is built from a YAML."""

from __future__ import annotations

from typing import Any

from ultralytics.fork.building import forward  # noqa: F401 - what builds a model is imported with its class
from ultralytics.fork.building.model_yaml import check_sections, describe_row, file_name
from ultralytics.fork.building.signatures import HEADS
from ultralytics.nn.AddModules.registry import NAMES, RowError


def route_by_head(model: Any, cfg: dict, task: str | None) -> str:
    """Make a model built from a YAML an `RTDETR` if its head is RT-DETR's, whatever the file's name; give its task.

    Raises:
        RowError: If no task has the head of the last row, or the head is a classifier's and `nc` is missing.
    """
    from ultralytics.nn.tasks import guess_model_task

    check_sections(cfg)
    last = cfg["head"][-1] if cfg["head"] else None
    kind = find_head_kind(last[2]) if isinstance(last, (list, tuple)) and len(last) > 2 else None
    if kind == "RTDETRDecoder":
        from ultralytics.models import RTDETR

        model.__class__ = RTDETR
        return "detect"
    if type(model).__name__ == "RTDETR":
        raise RowError(
            f"{file_name(cfg)}: the last row of an RTDETR is RTDETRDecoder, or a registered class that is derived from "
            "it; other models have another class or name"
        )
    if kind != (last or [None] * 3)[2]:  # upstream knows its own heads by name
        cfg = {**cfg, "head": [*cfg["head"][:-1], [*last[:2], kind, *last[3:]]]}
    task = task or guess_model_task(cfg)
    if task is None:
        i = len(cfg["backbone"]) + len(cfg["head"]) - 1
        raise RowError(
            f"{describe_row(cfg, i, last)}: expected the head of a task, such as RTDETRDecoder or Detect, or task=…"
        )
    if task == "classify" and not cfg.get("nc"):
        raise RowError(f"{file_name(cfg)}: `nc: {cfg.get('nc')}`, expected the number of classes")
    return task


def find_head_kind(name: Any) -> Any:
    """Give the name of upstream's head from which a registered class is derived, or the name itself."""
    for cls in getattr(NAMES.get(name) if isinstance(name, str) else None, "__mro__", ()):
        if cls.__module__ == HEADS:
            return cls.__name__
    return name
