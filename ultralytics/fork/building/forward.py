"""What a model's forward loop does with each layer: multi-output backbones, and errors that name the row."""

from __future__ import annotations

from typing import Any

from torch import nn

from ultralytics.fork.building.memory_limit import is_building, run_within_limit
from ultralytics.fork.building.model_yaml import describe_row, pad_maps
from ultralytics.fork.building.rows import make_row_error
from ultralytics.fork.errors import Refused
from ultralytics.nn.AddModules.registry import RowError


def run_layer(model: nn.Module, m: nn.Module, x: Any, y: list) -> Any:
    """Run a layer in a forward loop; put all outputs but the last of a multi-output one where later rows look.

    Args:
        model: The model, with its savelist.
        m: The layer.
        x: Its input.
        y: The outputs so far, by layer index; None for those that no later row reads.
    """
    try:
        x = run_within_limit(m, x)
    except Exception as e:
        if is_building():
            raise name_row_in_error(m, model, e) from e
        if isinstance(e, ValueError) and "more than 1 value per channel" in str(e):
            raise explain_small_map(m, model, e) from e
        raise
    if m.i > len(y):  # only a backbone has more than one index
        outputs = pad_maps(x, None)
        y.extend(out if j in model.save else None for j, out in enumerate(outputs[:-1]))
        x = outputs[-1]
    return x


def explain_small_map(m: nn.Module, model: Any, error: ValueError) -> ValueError:
    """Name the row in torch's error for a norm over one value, and say what to do."""
    where = locate_row(m, model)
    if where is None:
        return error
    return Refused(
        f"{where}: the map is 1x1, and a batch norm cannot learn from one value of one image; give it larger "
        "images, or two and more"
    )


def name_row_in_error(m: nn.Module, model: Any, error: Exception) -> Exception:
    """Name the row in what a layer raises on the first image, while its model is built."""
    where = locate_row(m, model)
    if where is None or isinstance(error, RowError):
        return error
    return make_row_error(error, f"{where}: {' '.join(str(error).split())[:400] or type(error).__name__}")


def locate_row(m: nn.Module, model: Any) -> str | None:
    """Describe where the row of a model's layer stands, if it has one."""
    i = next((i for i, layer in enumerate(model.model) if layer is m), None)
    rows = getattr(model, "yaml", None)
    return describe_row(rows, i, [*rows["backbone"], *rows["head"]][i]) if rows and i is not None else None
