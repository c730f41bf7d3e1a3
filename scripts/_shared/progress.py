"""A progress bar on stderr, or plain lines if stderr is not a terminal."""

from __future__ import annotations

import sys


class MissingPackageError(RuntimeError):
    """A package that a script needs is not installed; the message says how to install it."""


class Progress:
    """tqdm's bar with the name of the last step beside it.

    Args:
        title: The text before the bar.
        total: The number of steps, if it is known.
        lines: If stderr is not a terminal, print each step as a line.
    """

    def __init__(self, title: str, total: int | None = None, lines: bool = False):
        try:
            from tqdm import tqdm  # missing during set-up, which shows no bar
        except ModuleNotFoundError:
            raise MissingPackageError("tqdm is not installed; `uv run` installs it") from None
        self.title, self.total, self.done = title, total, 0
        self.lines = lines and not sys.stderr.isatty()
        self.bar = tqdm(desc=title, total=total, disable=None, leave=False, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, what: str) -> None:
        """Count one more finished step."""
        self.done += 1
        if self.lines:
            print(f"{self.title} {self.done}/{self.total}: {what}", file=sys.stderr, flush=True)
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.update()
