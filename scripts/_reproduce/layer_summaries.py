"""Build models, and collect what upstream logs of each: the header, the rows and the summary.

    python -m _reproduce.layer_summaries rtdetr-l-FLA …

One JSON object a line: the versions, then the name and the lines of each model.

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

import ultralytics
from _shared.flops import call_as_published
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import LOGGER


class LineCollector(logging.Handler):
    """A logging handler that collects lines."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Collect the lines of a record."""
        self.lines += record.getMessage().split("\n")


class AsPublished(RTDETRDetectionModel):
    """An RT-DETR whose summary has the published GFLOPs."""

    def info(self, *args: Any, **kwargs: Any) -> Any:
        """Log the summary, at the end of the constructor."""
        call_as_published(self)
        return super().info(*args, **kwargs)


def summarize(
    name: str, cls: type[RTDETRDetectionModel] = RTDETRDetectionModel
) -> tuple[RTDETRDetectionModel, list[str]]:
    """Build a model from its file; return it, and the lines that upstream logs meanwhile."""
    handler, handlers = LineCollector(), LOGGER.handlers[:]
    LOGGER.handlers[:] = [handler]
    try:
        model = cls(f"{name}.yaml")
    finally:
        LOGGER.handlers[:] = handlers
    return model, handler.lines


def main() -> None:
    """Print the versions, and the lines of each model on the command line."""
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
