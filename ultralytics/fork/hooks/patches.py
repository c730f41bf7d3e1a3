"""What this fork does to upstream's utils/patches.py: checkpoints are opened restricted, and written atomically.

hooks/utils.py installs these overrides while `ultralytics.utils` is not complete: what needs it is imported when it is
called.
"""

from __future__ import annotations

import os
from typing import Any

from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.hooks.override import override

PATCHES = "ultralytics.utils.patches"


@override(PATCHES)
def torch_load(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Open a checkpoint without running what is in it; upstream opens files that are trusted."""
    from ultralytics.fork.checkpoints.load import load_checkpoint

    return load_checkpoint(*args, load_trusted=original, **kwargs)


@override(PATCHES)
def torch_save(original: Any, obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    """Write a file atomically; a checkpoint of this process's training stays one."""
    if not isinstance(f, (str, os.PathLike)):
        original(obj, f, *args, **kwargs)
        return
    from ultralytics.fork.checkpoints import own_checkpoints

    is_own = own_checkpoints.is_own(f)  # upstream strips a run's last checkpoints
    write_atomically(f, lambda file: original(obj, file, *args, **kwargs))
    if is_own:
        own_checkpoints.add(f)
