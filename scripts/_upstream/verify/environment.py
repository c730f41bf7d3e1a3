"""Python environments with the requirements of a release, which uv makes and caches."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

from _upstream.pin import UpstreamError
from _upstream.processes import SECONDS_TO_END, end_process

OUR_REQUIREMENTS = ("einops", "timm")  # what nn/AddModules, and checkpoints of the tutorials, import beyond upstream
HOLD = "import sys; print(sys.executable, flush=True); sys.stdin.read()"


def read_requirements(wheel: Path) -> list[str]:
    """List the requirements in a wheel's metadata, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    return [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]


def find_uv() -> str:
    """Find uv: the one that runs this process, or the one on PATH."""
    uv = os.environ.get("UV") or "uv"
    found = shutil.which(uv)
    if not found:
        raise UpstreamError(f"{uv} was not found; `python -m pip install uv` installs uv")
    return found


def python_command(needs: list[str]) -> list[str]:
    """Return the command line of this Python in an environment that has `needs`, requirements as pip reads them."""
    command = [find_uv(), "run", "--quiet", "--no-project", "--isolated", f"--python={sys.executable}"]
    return [*command, *(f"--with={need}" for need in needs), "python"]


@contextlib.contextmanager
def make_interpreter(needs: list[str], folder: Path) -> Iterator[str]:
    """Make an environment with `needs`, and yield the path of its interpreter while the environment exists.

    uv removes the environment when the process ends for which it was made. That process waits until its input is
    closed.
    """
    log = folder / "environment.log"
    with open(log, "wb") as file:
        holder = subprocess.Popen(
            [*python_command(needs), "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
        )
    try:
        python = holder.stdout.readline().decode().strip()
        if not python:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise UpstreamError(f"uv could not make the environment of the tests: {lines[0]}")
        yield python
    finally:
        holder.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            holder.wait(SECONDS_TO_END)
        end_process(holder)
        holder.stdout.close()
