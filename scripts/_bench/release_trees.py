"""Run processes in turn on this project's tree and on the untouched release, in one environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _upstream.pin import Pin, UpstreamError
from _upstream.queue.release_trees import write_untouched_tree

OURS, UNTOUCHED = "ours", "untouched"
YOLO = "from ultralytics.cfg import entrypoint; entrypoint()"


@dataclass
class Finished:
    """What a process has used.

    Attributes:
        cpu: Processor time of the process and its children, seconds.
        wall: Seconds.
        peak: Of the resident set of the process, MiB; nan where the system does not tell it.
        output: Its standard output.
    """

    cpu: float
    wall: float
    peak: float
    output: str

    def read_result(self) -> dict:
        """Read the JSON in the last line of the output."""
        return json.loads(self.output.splitlines()[-1])


@contextmanager
def lay_down_trees(root: Path) -> Iterator[dict[str, Path]]:
    """Give the folders of both trees: the checkout, and the untouched release in a temporary folder.

    Args:
        root: The checkout, whose set-up has left the untouched release in `.upstream`.

    Raises:
        UpstreamError: If it is not there.
    """
    repo = root / ".upstream" / "repo"
    if not repo.is_dir():
        raise UpstreamError("the untouched release is not in .upstream: run `python scripts/upstream.py apply`")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        write_untouched_tree(repo, Pin.read(root).release, Path(folder))
        yield {OURS: root, UNTOUCHED: Path(folder)}


def run_python(tree: Path, arguments: list[str], folder: Path | None = None) -> Finished:
    """Run Python in a process that imports ultralytics from a tree.

    Args:
        tree: The folder that holds ultralytics/.
        arguments: Of the interpreter.
        folder: The working directory; the tree if it is None.

    Raises:
        RuntimeError: If the process fails, with the last line that it wrote.
    """
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "", "YOLO_OFFLINE": "true"}
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder or tree, env=env, stdout=stdout, stderr=stderr
        )
        used, code = wait_with_usage(process)
        wall = time.perf_counter() - began
        stdout.seek(0)
        stderr.seek(0)
        if code:
            lines = (stderr.read().strip() or stdout.read().strip() or "killed").splitlines()
            short = " ".join(argument for argument in arguments if len(argument) < 80)
            raise RuntimeError(f"{short} on {tree.name} ends with {code}: {lines[-1]}")
        return Finished(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024, stdout.read())


def wait_with_usage(process: subprocess.Popen) -> tuple[Any, int]:
    """Wait for a process; give what it has used, and its exit code."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used, process.returncode
