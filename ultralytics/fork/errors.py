"""Errors whose one line says everything, so that the command `yolo` shows no traceback with it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any


class Refused(ValueError):
    """An input of the user's is refused; the message names it and says what is expected."""

    plain = True


def mark_as_plain(error: Exception) -> Exception:
    """Mark an error whose message says everything; return it."""
    error.plain = True
    return error


def is_plain(error: BaseException) -> bool:
    """Whether an error's message says everything."""
    return getattr(error, "plain", False)


def quote(text: Any, length: int = 400) -> str:
    """Quote text of a stranger's in one line of bounded length that cannot command a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(text))  # upstream's colours
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= length else f"{line[:length]}…"


def show_error(cls: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show what ends the command: one line for a plain error or a missing file, nothing for Ctrl-C, or a traceback."""
    if is_plain(error):
        print(getattr(error, "strerror", None) or error, file=sys.stderr)
    elif issubclass(cls, (FileNotFoundError, ConnectionError)):  # upstream's, of one line
        print(error, file=sys.stderr)
    elif issubclass(cls, KeyboardInterrupt):
        sys.exit(130)  # as a shell reports it; Python forgets it where something is imported while it ends
    else:
        sys.__excepthook__(cls, error, traceback)


def install_excepthook() -> None:
    """Let the command `yolo` show errors by `show_error`; a user's own script keeps its tracebacks."""
    if Path(sys.argv[0] if sys.argv else "").stem == "yolo":
        sys.excepthook = show_error
