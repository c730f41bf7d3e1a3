"""Run git with fixed settings, whatever the user's settings are."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

from _upstream.pin import UpstreamError

# The same input gives the same commits, and so the same patches, on every machine
IDENTITY = {"NAME": "ultralytics-addmodules", "EMAIL": "addmodules@example.invalid", "DATE": "2026-01-01T00:00:00+0000"}
GIT_ENVIRONMENT = {
    **{f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    "TZ": "UTC",
}
GIT_CONFIG = {
    "advice.detachedHead": "false",
    "commit.gpgsign": "false",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.excludesFile": os.devnull,
    "core.fileMode": "false",
    "core.quotePath": "false",
    "core.safecrlf": "false",
    "gc.auto": "0",
    "merge.conflictStyle": "diff3",
}


def git(*args: str, cwd: Path, stdin: str | None = None, check: bool = True, **environment: str) -> str:
    """Run git with fixed settings and return its output."""
    config = [word for key, value in GIT_CONFIG.items() for word in ("-c", f"{key}={value}")]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *config, *args],
            cwd=cwd,
            env={**inherited, **GIT_ENVIRONMENT, **environment},
            input=None if stdin is None else stdin.encode(errors="surrogateescape"),
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            close_fds=False,  # a running git inherits the lock of the scratch folder
        )
    except FileNotFoundError:
        raise UpstreamError("git was not found; install git and run this again") from None
    if check and done.returncode:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no message"]
        # git does not always report a full disk, and then a patch only seems not to apply
        if any("No space left" in line for line in lines) or shutil.disk_usage(cwd).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise UpstreamError(f"git {args[0]} failed: {lines[-1]}")
    return done.stdout.decode(errors="surrogateescape")
