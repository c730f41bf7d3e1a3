"""What this fork does to upstream's cfg/__init__.py.

The command `yolo` tells an exported model by its metadata, fetches no model or data set that nobody named, and ends
with one line, not a traceback, where the line says everything.
"""

from __future__ import annotations

from ultralytics.fork.errors import install_excepthook
from ultralytics.fork.export.metadata import model_stem
from ultralytics.fork.privacy.downloads import require_names

__all__ = "model_stem", "require_names"

install_excepthook()
