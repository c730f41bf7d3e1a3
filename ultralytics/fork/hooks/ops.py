"""What this fork does to upstream's models/utils/ops.py, in a process of a launcher only."""

from __future__ import annotations

from typing import Any

from ultralytics.fork.distributed.denoising import draw_for_global_batch
from ultralytics.fork.hooks.override import install_module, override

OPS = "ultralytics.models.utils.ops"


def install() -> None:
    """Put the override in place; RT-DETR's head imports the function when it runs."""
    install_module(OPS)


@override(OPS)
def get_cdn_group(original: Any, *args: Any, **kwargs: Any) -> tuple:
    """Draw denoising queries for the batch of all processes, and take this process's share."""
    return draw_for_global_batch(original, *args, **kwargs)
