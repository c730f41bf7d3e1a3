"""Checkpoints that this process's training has written: they open whatever their layers hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ultralytics.utils import USER_CONFIG_DIR

_written: dict[Path, tuple[int, ...] | None] = {}


def add(file: str | os.PathLike[str]) -> None:
    """Record that this process's training has written a file; it counts until somebody else writes the file."""
    file = Path(os.path.realpath(file))
    _written[file] = read_identity(file)


def is_own(file: Any) -> bool:
    """Whether a file is a checkpoint of this process's training, or upstream's note to the processes of a DDP run."""
    if not isinstance(file, (str, os.PathLike)):
        return False
    file = Path(os.path.realpath(file))
    is_ddp_note = file.parent == Path(os.path.realpath(USER_CONFIG_DIR)) / "DDP"
    return is_ddp_note or (file in _written and _written[file] == read_identity(file))


def read_identity(file: Path) -> tuple[int, ...] | None:
    """Give numbers that change when a file is written again or replaced."""
    if not file.exists():
        return None
    stat = file.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
