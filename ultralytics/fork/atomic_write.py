"""Write a file so that at any moment it is the old one or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(file: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write beside the file, then rename over it.

    Raises:
        OSError: If it cannot be written, with the size that is needed; the old file is as it was.
    """
    file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file():  # a pipe or /dev/null: there is nothing to rename over
        with open(file, "wb") as f:
            f.write(data)
        return
    part = file.with_name(f".{file.name}.part")  # one name: the next write reuses what a kill leaves
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, file)
    except BaseException as e:
        part.unlink(missing_ok=True)
        if not isinstance(e, OSError):
            raise
        before = " The file that was saved there before is complete." if file.exists() else ""
        size = f"{len(data) / 2**20:.1f} MiB"
        reason = e if e.errno is None else os.strerror(e.errno)
        raise OSError(e.errno, f"{file} ({size}) could not be saved: {reason}.{before}") from None
