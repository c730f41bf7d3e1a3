"""The scratch folder of a checkout, .upstream: one run at a time, and errors that say what they mean."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from maintain.pin import APPLY, UpstreamError


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the checkout's lock, so that two set-ups at once run one after the other."""
    scratch = root / ".upstream"
    scratch.mkdir(exist_ok=True)
    with open(scratch / "lock", "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        for left in [*scratch.glob("stage-*"), *scratch.glob("export-*")]:  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def clear_errors(root: Path) -> Iterator[None]:
    """Say what an operating system's error means for set-up, in one line."""
    try:
        yield
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise UpstreamError(f"the disk is full ({root}); free some space and run `{APPLY}`") from None
        if e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UpstreamError(f"cannot write {e.filename or root}: set-up needs a writable checkout") from None
        raise UpstreamError(f"{e.filename or root}: {e.strerror or e}") from None
