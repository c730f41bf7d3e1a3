"""Errors whose line says all, so that the command `yolo` shows no traceback with it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ()


class Refused(ValueError):
    """Something that the user gave is not taken, and the line says what is."""

    plain = True


def plain(error: Exception) -> Exception:
    """Mark an error whose line says all."""
    error.plain = True
    return error


def quoted(text: Any, length: int = 400) -> str:
    """Give text of a stranger's in one line of a bounded length that cannot command a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(text))  # upstream's colours
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= length else f"{line[:length]}…"


def tell(cls: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show what ends the command: the line of a plain error, of no file or network; none for Ctrl-C; or all of it."""
    if getattr(error, "plain", False):
        print(getattr(error, "strerror", None) or error, file=sys.stderr)
    elif issubclass(cls, (FileNotFoundError, ConnectionError)):  # upstream's, of one line
        print(error, file=sys.stderr)
    elif issubclass(cls, KeyboardInterrupt):
        sys.exit(130)  # as a shell names it; Python forgets it where something is imported while it ends
    else:
        sys.__excepthook__(cls, error, traceback)


if Path(sys.argv[0] if sys.argv else "").stem == "yolo":  # a script of the user's shows where it was
    sys.excepthook = tell
