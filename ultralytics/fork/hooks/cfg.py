"""What this fork does to upstream's cfg/__init__.py.

The command `yolo` tells an exported model by its metadata, fetches no model or data set that nobody named, and ends
with one line, not a traceback, where the line says everything.
"""

from __future__ import annotations

from typing import Any

from ultralytics.fork.errors import mark_as_plain
from ultralytics.fork.export.metadata import model_stem
from ultralytics.fork.hooks.override import install_module, override
from ultralytics.fork.privacy.downloads import require_names

CFG = "ultralytics.cfg"

__all__ = "model_stem", "require_names"


@override(CFG)
def check_dict_alignment(original: Any, *args: Any, **kwargs: Any) -> None:
    """Say in one line which argument does not exist, and which one was meant."""
    try:
        original(*args, **kwargs)
    except SyntaxError as e:
        raise mark_as_plain(SyntaxError(" ".join(str(e).split()))) from None


install_module(CFG)
