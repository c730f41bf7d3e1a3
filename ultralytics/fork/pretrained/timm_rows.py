"""What a row of the module Timm needs of the training that it is built for."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NAME_KEY = "backbone_name"  # of a model YAML, for the name that its first row takes
DEFAULT_SIZE = 640  # pixels, of the module's `img_size`


def create_bare_model(name: str) -> Any:
    """Create a model of timm without numbers, or where it computes with numbers, without pretrained ones.

    Raises:
        RuntimeError: For a tag that the model has not.
    """
    import timm
    import torch

    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (NotImplementedError, RuntimeError):  # earlier releases of timm read drop rates from a tensor
        return timm.create_model(name)


def list_timm_layers(model: Any) -> list[Any]:
    """List the layers of a model that are backbones of timm."""
    return [m for m in model.modules() if type(m).__name__ == "Timm"] if isinstance(model, nn.Module) else []


def find_timm_row(settings: Any) -> list | None:
    """Find the first row of a model YAML, if it is one of Timm."""
    rows = settings.get("backbone") if isinstance(settings, dict) else None
    row: Any = rows[0] if isinstance(rows, (list, tuple)) and rows else None
    is_timm = isinstance(row, (list, tuple)) and len(row) == 4 and row[2] == "Timm" and isinstance(row[3], list)
    return list(row) if is_timm else None


def find_backbone_name(settings: Any) -> str | None:
    """Find the name of timm's model that a model YAML's first row has, or its key `backbone_name`."""
    row = find_timm_row(settings)
    name = row[3][0] if row and row[3] else None
    return settings.get(NAME_KEY) if name == NAME_KEY else name


def has_same_backbone(cfg: Any, weights: Any) -> bool:
    """Whether weights are of a model whose first row names the backbone that a model YAML names."""
    names = [find_backbone_name(settings) for settings in (cfg, getattr(weights, "yaml", None))]
    return names[0] is not None and names[0] == names[1]


def list_timm_stages(layer: Any) -> list[list[str]]:
    """List the parts of the stem and of each stage of a Timm layer, by the strides of timm's `feature_info`.

    The stem ends with the map of stride 2, or where there is none, before the stage of the first map.

    Returns:
        The names of the parts within the layer; empty where the backbone is not a list of parts that run in turn.
    """
    features = layer.features
    parts = dict(features.named_children())
    if type(features).__name__ in {"EfficientNetFeatures", "MobileNetV3Features"}:
        parts |= {f"blocks.{name}": m for name, m in parts.pop("blocks").named_children()}
    elif type(features).__name__ != "FeatureListNet":  # whose parts are named by the maps, with `_` for `.`
        return []
    ends = {info["module"]: info["reduction"] for info in features.feature_info.info if info["reduction"] > 1}
    ends |= {name.replace(".", "_"): stride for name, stride in ends.items()}
    names = list(parts)
    start = next(place for place, name in enumerate(names) if name in ends)
    if ends[names[start]] == 2:
        start += 1
        while isinstance(parts[names[start]], _BatchNorm) or not any(True for _ in parts[names[start]].parameters()):
            start += 1  # the norm and the pooling of a stem whose map is read before them
    stages, begin = [names[:start]], start
    for place in range(start, len(names)):
        later = [ends[name] for name in names[place + 1 :] if name in ends]
        if names[place] in ends and (not later or later[0] != ends[names[place]]):
            stages.append(names[begin : place + 1])
            begin = place + 1
    stages[-1] += names[begin:]
    return [[f"features.{name}" for name in stage] for stage in stages]


def set_image_size(cfg: Any, imgsz: Any) -> Any:
    """Give a model YAML whose Timm row is built for the size of a training's images; a size in the row stays.

    Args:
        cfg: The model YAML, or its file.
        imgsz: Pixels a side.

    Returns:
        What was given, if there is nothing to set.
    """
    from ultralytics.nn.tasks import yaml_model_load

    if cfg is None or imgsz == DEFAULT_SIZE or not isinstance(imgsz, int) or imgsz % 32:
        return cfg
    settings: Any = cfg if isinstance(cfg, dict) else yaml_model_load(cfg)
    row = find_timm_row(settings)
    if row is None:
        return cfg
    name, *others = row[3]
    options = others[-1] if others and isinstance(others[-1], dict) else {}
    if "img_size" in options:
        return cfg
    settings = copy.deepcopy(settings)
    settings["backbone"][0] = [*row[:3], [name, *others[: len(others) - bool(options)], {**options, "img_size": imgsz}]]
    return settings
