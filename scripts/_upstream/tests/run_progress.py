"""Show the progress of pytest runs, read from their logs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

SECONDS_BETWEEN_LINES = 30  # if stderr is not a terminal
SCHEDULED = re.compile(rb"(?m)^\d+ workers? \[(\d+) items?\]")
DONE = re.compile(rb"(?m)^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) ")


def print_message(text: str) -> None:
    """Print a message on stderr."""
    print(text, file=sys.stderr, flush=True)


class ProgressLine:
    """A line on stderr: redrawn in place on a terminal, else printed every 30 seconds."""

    def __init__(self):
        self.live = sys.stderr.isatty()
        self.began = self.printed = time.monotonic()

    def show(self, text: str, last: bool = False) -> None:
        """Show a text and the time since the start."""
        now = time.monotonic()
        minutes, seconds = divmod(int(now - self.began), 60)
        text = f"{text}  {minutes}:{seconds:02d}"
        if self.live:
            print(f"\r{text}\x1b[K", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            print_message(text)


def count_finished_tests(log: Path) -> str:
    """Describe how many tests of a run are done and how many failed."""
    text = log.read_bytes() if log.is_file() else b""
    scheduled = SCHEDULED.search(text)
    if not scheduled:
        return "starting"
    states = DONE.findall(text)
    bad = sum(state in (b"FAILED", b"ERROR") for state in states)
    return f"{len(states)} of {int(scheduled[1])}, {bad} failed"


def show_progress(runs: dict[str, tuple[subprocess.Popen, Path]]) -> None:
    """Show the progress of runs until all have ended.

    Args:
        runs: The process and the log of each, by name.
    """
    display = ProgressLine()
    running = True
    while running:
        running = any(process.poll() is None for process, _ in runs.values())
        display.show(
            " | ".join(f"{name} {count_finished_tests(log)}" for name, (_, log) in runs.items()), last=not running
        )
        if running:
            time.sleep(0.5)
