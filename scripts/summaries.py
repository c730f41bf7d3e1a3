"""Build models, and collect what upstream logs of each: the header, the rows and the summary.

    python scripts/summaries.py rtdetr-l-FLA …   one JSON object a line: the versions, then each model's name and lines

scripts/reproduce.py imports this, and with --release runs it in that release's own environment, where `AsPublished`
builds the models.
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import ultralytics
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import LOGGER


class Lines(logging.Handler):
    """Collects what is logged."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += record.getMessage().split("\n")


def call_as_published(model: nn.Module) -> None:
    """Let the profiler see a model's convolutions as it saw those of the published code.

    That code's bi-level routing attention ran its first convolution as `self.qkv_linear.forward(x)`. A forward called
    like that passes by the hooks with which thop counts, so that the published GFLOPs are without it.
    """
    for m in model.modules():
        if isinstance(m, BiLevelRoutingAttention_nchw):
            # An attribute of the instance comes before the registered module, which stays where it is counted
            vars(m)["qkv_linear"] = m.qkv_linear.forward


class AsPublished(RTDETRDetectionModel):
    """An RT-DETR whose summary has the published GFLOPs."""

    def info(self, *args: Any, **kwargs: Any) -> Any:
        """Log the summary, at the end of the constructor."""
        call_as_published(self)
        return super().info(*args, **kwargs)


def summarize(
    name: str, cls: type[RTDETRDetectionModel] = RTDETRDetectionModel
) -> tuple[RTDETRDetectionModel, list[str]]:
    """Build a model from its file; give it, and the lines that upstream logs meanwhile."""
    handler, handlers = Lines(), LOGGER.handlers[:]
    LOGGER.handlers[:] = [handler]
    try:
        model = cls(f"{name}.yaml")
    finally:
        LOGGER.handlers[:] = handlers
    return model, handler.lines


def main() -> None:
    """Print what is imported here, and the lines of each model that the command line names."""
    versions = {
        "ultralytics": ultralytics.__version__,
        "ultralytics-thop": version("ultralytics-thop"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(versions), flush=True)
    for name in sys.argv[1:]:
        print(json.dumps({"name": name, "lines": summarize(name, AsPublished)[1]}), flush=True)


if __name__ == "__main__":
    main()
