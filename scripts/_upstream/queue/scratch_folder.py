"""The scratch folder of a checkout, .upstream: its lock, a journal of replaced files, and plain errors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from _upstream.pin import UpstreamError


@contextlib.contextmanager
def lock_checkout(root: Path) -> Iterator[None]:
    """Hold the checkout's lock, so that two runs work one after the other."""
    scratch = root / ".upstream"
    scratch.mkdir(exist_ok=True)
    with open(scratch / "lock", "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another run works in {scratch}; waiting for it", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            os.set_inheritable(file.fileno(), True)  # a git that outlives a killed run holds the lock until it ends
        for left in [*scratch.glob("stage-*"), *scratch.glob("journal.part")]:  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        complete_replacement(root)
        yield


def replace_files(root: Path, files: dict[str, bytes | None], finished: str | None = None) -> None:
    """Replace several files of the checkout as one step: if the run is killed half-way, the next run completes it.

    Args:
        root: The checkout.
        files: The new content of each file by its path in the checkout, None for one that is removed.
        finished: A folder of the scratch folder that is removed after the last file, by its path in the checkout.
    """
    part, journal = root / ".upstream" / "journal.part", root / ".upstream" / "journal"
    part.mkdir()
    for number, content in enumerate(files.values()):
        if content is not None:
            (part / str(number)).write_bytes(content)
    index = {"files": {path: content is not None for path, content in files.items()}, "finished": finished}
    (part / "index.json").write_text(json.dumps(index), encoding="utf-8")
    os.replace(part, journal)
    complete_replacement(root)


def complete_replacement(root: Path) -> None:
    """Rename into place the files that `replace_files` has written to its journal."""
    journal = root / ".upstream" / "journal"
    if (journal / "index.json").is_file():
        index = json.loads((journal / "index.json").read_text(encoding="utf-8"))
        for number, (path, stays) in enumerate(index["files"].items()):
            if not stays:
                (root / path).unlink(missing_ok=True)
            elif (journal / str(number)).is_file():
                os.replace(journal / str(number), root / path)
        if index["finished"] and (root / index["finished"]).is_dir():
            os.replace(root / index["finished"], journal / "finished")
        (journal / "index.json").unlink()
    shutil.rmtree(journal, ignore_errors=True)


@contextlib.contextmanager
def explain_os_errors(root: Path) -> Iterator[None]:
    """Turn an error of the operating system into one line that says what it means for set-up."""
    try:
        yield
    except OSError as e:
        if isinstance(e, shutil.Error):
            e = first_copy_error(e)
        if e.errno == errno.ENOSPC:
            raise UpstreamError(f"the disk is full ({root}); free some space and run this again") from None
        if e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UpstreamError(f"cannot write {e.filename or root}: set-up needs a writable checkout") from None
        raise UpstreamError(f"{e.filename or root}: {e.strerror or e}") from None


def first_copy_error(errors: shutil.Error) -> OSError:
    """Return the first of the errors that `copytree` has collected as text."""
    _, target, why = errors.args[0][0]
    number = re.match(r"\[Errno (\d+)\]", str(why))
    return OSError(int(number[1]), os.strerror(int(number[1])), target) if number else OSError(f"{target}: {why}")
