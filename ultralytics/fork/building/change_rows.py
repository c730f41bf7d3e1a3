"""Change the rows of a model in memory, whose layers keep their weights: methods of `YOLO` and `RTDETR`.

model = RTDETR("best.pt")
model.insert(9, "FocusedLinearAttention", [1024])
model.train(data="my.yaml")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from ultralytics.fork.building.row_graph import RowGraph
from ultralytics.fork.errors import Refused
from ultralytics.fork.pretrained.alignment import find_strides
from ultralytics.fork.pretrained.timm_weights import weights_follow
from ultralytics.nn.AddModules.registry import BACKBONE_LAYERS

PLACED = "i", "f", "type", "np"  # attributes of a layer that tell its place
CARRIED = "names", "args", "task", "pt_path"  # attributes of a model that a change of its rows leaves


def insert(self: Any, before: int, module: str, args: Sequence = (), repeats: int = 1) -> Any:
    """Put a row before a layer, which then reads it, while it reads what the layer has read.

    Args:
        before: Index of the layer.
        module: Name of the module, as a row has it.
        args: Its arguments, as a row has them.
        repeats: How many to chain.

    Returns:
        The model, whose other layers keep their weights.

    Raises:
        Refused: If there is no such layer, or it reads several.
        RowError: If the row cannot become a layer; the model stays as it is.
    """
    return change_rows(self, lambda graph: graph.insert(before, module, args, repeats))


def wrap(self: Any, layer: int, module: str, args: Sequence = (), repeats: int = 1) -> Any:
    """Put a row behind a layer, and let all that read the layer read the row; see `insert`."""
    return change_rows(self, lambda graph: graph.wrap(layer, module, args, repeats))


def replace(self: Any, old: str, new: str, layers: Iterable[int] | None = None, args: Sequence | None = None) -> Any:
    """Put another module in place of one, in all rows or in those of some layers; see `insert`."""
    return change_rows(self, lambda graph: graph.replace(old, new, layers, args))


def remove(self: Any, layers: Iterable[int]) -> Any:
    """Remove rows; what read one of them reads what it has read; see `insert`."""
    return change_rows(self, lambda graph: graph.remove(layers))


def swap_backbone(self: Any, module: str, args: Sequence = ()) -> Any:
    """Put a multi-output backbone in place of all rows of the backbone; see `insert`."""
    strides = list_layer_strides(self.model)
    return change_rows(self, lambda graph: graph.swap_backbone(module, args, strides))


METHODS = insert, wrap, replace, remove, swap_backbone


def add_methods(cls: type) -> None:
    """Give upstream's `Model` the methods of this file.

    Raises:
        AttributeError: If upstream has a method of such a name.
    """
    for method in METHODS:
        there = getattr(cls, method.__name__, method)
        if there is not method:
            raise AttributeError(f"upstream has a method {cls.__name__}.{method.__name__}; rename that of {__name__}")
        setattr(cls, method.__name__, method)


def change_rows(self: Any, change: Callable[[RowGraph], None]) -> Any:
    """Build the model of changed rows, and load into it what the model has."""
    old = self.model
    if not (isinstance(old, nn.Module) and isinstance(getattr(old, "yaml", None), dict)):
        raise Refused(f"{self.model}: rows can be changed in a model of PyTorch that was built from a model file")
    graph = RowGraph(old.yaml)
    change(graph)
    settings = graph.make_settings()
    with weights_follow():
        new = type(old)(settings, ch=settings.get("channels", 3), nc=settings.get("nc"), verbose=False)
    carry_layers(graph, old, new)
    vars(new).update({key: vars(old)[key] for key in CARRIED if key in vars(old)})
    new.train(old.training)
    self.model, self.predictor = new.to(next(old.parameters()).device), None
    self.ckpt = {"model": new}  # a training begins with these layers, not with those of the file
    return self


def carry_layers(graph: RowGraph, old: Any, new: Any) -> None:
    """Put the layers of rows that stay into the new model, and the tensors that fit into those of another module."""
    before, places = {layer.i: layer for layer in old.model}, {layer.i: n for n, layer in enumerate(new.model)}
    for row in graph.rows:
        if row.old is None:
            continue
        place = places[row.index + row.layers - 1]
        source, target = before[row.old], new.model[place]
        tensors, shapes = source.state_dict(), {key: t.shape for key, t in target.state_dict().items()}
        if type(source) is type(target) and shapes == {key: t.shape for key, t in tensors.items()}:
            new.model[place] = copy.deepcopy(source)
            vars(new.model[place]).update({key: vars(target)[key] for key in PLACED if key in vars(target)})
        else:
            fitting = {key: t for key, t in tensors.items() if shapes.get(key) == t.shape}
            target.load_state_dict(fitting, strict=False)


def list_layer_strides(model: Any) -> dict[int, float]:
    """List the strides of a model's layers, by index; a multi-output backbone has one for each map."""
    strides = {}
    for place, stride in find_strides(model).items():
        layer = model.model[place]
        strides[layer.i] = stride
        if hasattr(layer, "width_list"):
            strides |= {layer.i - k: stride / 2**k for k in range(BACKBONE_LAYERS)}
    return strides
