"""Tell what kind of weights a file, a folder or a name is, and load it: a checkpoint, or weights of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ultralytics.fork.errors import Refused, mark_as_plain
from ultralytics.fork.export.safetensors_folder import is_own_folder, read_own_folder
from ultralytics.fork.pretrained.detectors import is_detector, load_detector
from ultralytics.fork.pretrained.timm_backbones import is_timm_weights, load_timm_backbone
from ultralytics.fork.pretrained.timm_weights import PREFIX, SUFFIXES

EXPECTED = (
    "Expected a checkpoint (.pt), an RT-DETR's official file or Hugging Face folder, a name such as "
    f"{PREFIX}resnet50, or a file of timm's ({', '.join(SUFFIXES)})"
)


def is_foreign_detector(weights: Any) -> bool:
    """Whether weights are a detector that is no checkpoint of Ultralytics: a folder without a pickle, or others'."""
    return is_own_folder(weights) or is_detector(weights)


def load_weights(
    load_checkpoint: Callable, weight: str | Path, device: torch.device | None = None, *args: Any, **kwargs: Any
) -> tuple:
    """Load a checkpoint, a folder of safetensors, a detector of others, or a timm backbone.

    Args:
        load_checkpoint: Upstream's function.
        weight: What to load.
        device: Where to put it.

    Raises:
        Refused: If it is not a file of weights.
    """
    if is_own_folder(weight):
        return read_own_folder(weight, device)
    if is_detector(weight):
        return load_detector(weight, device)
    if is_timm_weights(weight):
        return load_timm_backbone(weight, device)
    try:
        return load_checkpoint(weight, device, *args, **kwargs)
    except FileNotFoundError:
        line = f"{weight} does not exist, and could not be downloaded. {EXPECTED}"
        raise mark_as_plain(FileNotFoundError(line)) from None
    except (AssertionError, IsADirectoryError) as e:
        if Path(weight).suffix == ".pt":
            raise
        missing = " and does not exist" if not Path(weight).exists() else ""
        raise Refused(f"{weight} is no file of weights{missing}. {EXPECTED}") from e
