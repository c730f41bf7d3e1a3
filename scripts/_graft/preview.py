"""Show what a change of rows does, and which weights arrive in the changed model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from _shared.markdown_table import format_markdown_table
from ultralytics import YOLO
from ultralytics.fork.building.memory_limit import limit_memory
from ultralytics.fork.building.row_graph import RowGraph
from ultralytics.fork.pretrained.alignment import align_tensors

IMAGE = 128  # pixels a side of the image with which the channels are checked


def build_model(file: Path) -> Any:
    """Build the model of a file, and run it once, so that a layer whose channels do not fit is named.

    Raises:
        RowError: With the file and the row.
    """
    model = YOLO(file, verbose=False).model.eval()
    height, width = getattr(model.model[0], "fixed_size", None) or (IMAGE, IMAGE)
    with torch.no_grad(), limit_memory():
        model(torch.zeros(1, model.yaml.get("channels", 3), height, width))
    return model


def describe_changes(before: RowGraph, after: RowGraph) -> str:
    """Describe the rows that have changed, side by side; a row that only its index has changed of is left out."""
    old = {row.old: (row, values) for row, values in number_rows(before)}
    lines = []
    for row, values in number_rows(after):
        was = old.pop(row.old, None) if row.old is not None else None
        if was is None:
            lines.append((row.index, ["", "", f"{row.index}", str(values)]))
        elif was[1] != values:
            lines.append((row.index, [f"{was[0].index}", str(was[1]), f"{row.index}", str(values)]))
    gone = [(row.index, [f"{row.index}", str(values), "", ""]) for row, values in old.values()]
    rows = [cells for _, cells in sorted([*gone, *lines], key=lambda line: line[0])]
    return format_markdown_table(["layer", "before", "layer", "after"], rows)


def number_rows(graph: RowGraph) -> list[tuple[Any, list]]:
    """List the rows with their values."""
    rows = graph.list_rows()
    return list(zip(graph.rows, [*rows["backbone"], *rows["head"]], strict=True))


def share_of_tensors(source: Any, target: Any) -> tuple[int, int]:
    """Count the tensors of a model that a checkpoint of another one fills, and all of them."""
    found, shapes = align_tensors(source, target), {key: t.shape for key, t in target.state_dict().items()}
    return sum(shapes.get(key) == tensor.shape for key, tensor in found.items()), len(shapes)
