"""Write a file so that at any moment it is the old one or the new one, never half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(file: str | os.PathLike[str], data: bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    """Write beside the file, then rename over it.

    Args:
        file: The file.
        data: Its content, or what writes it to an open file.

    Raises:
        OSError: If it cannot be written, with how much was to be written; the old file is as it was.
    """
    file = Path(os.path.realpath(file))
    write = data if callable(data) else lambda f: f.write(data)
    if file.exists() and not file.is_file():  # a pipe or /dev/null: there is nothing to rename over
        with open(file, "wb") as f:
            write(f)
        return
    part = file.with_name(f".{file.name}.part")  # one name: the next write reuses what a kill leaves
    written = 0
    try:
        with open(part, "wb") as f:
            try:
                write(f)
                f.flush()
            finally:
                written = os.fstat(f.fileno()).st_size
            os.fsync(f.fileno())
        os.replace(part, file)
    except BaseException as e:
        part.unlink(missing_ok=True)
        size = f"after {written / 2**20:.1f} MiB" if callable(data) else f"{len(data) / 2**20:.1f} MiB"
        raise explain_error(e, file, size) from None


def link_atomically(source: Path, file: Path) -> None:
    """Let a file be one that was written atomically, which nobody changes but by writing another in its place.

    Where the file system has no links, it is a copy.

    Raises:
        OSError: If it cannot be written; the old file is as it was.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
        os.replace(part, file)
    except BaseException as e:
        part.unlink(missing_ok=True)
        raise explain_error(e, file, f"{source.stat().st_size / 2**20:.1f} MiB") from None


def explain_error(error: BaseException, file: Path, size: str) -> BaseException:
    """Give an error of the operating system with the file's name; torch's writer hides it behind one of its own."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, (OSError, KeyboardInterrupt)):
        error = error.__context__
    if not isinstance(error, OSError):
        return error
    before = " The file that was saved there before is complete." if file.exists() else ""
    reason = error if error.errno is None else os.strerror(error.errno)
    return OSError(error.errno, f"{file} ({size}) could not be saved: {reason}.{before}")
