"""Unpack no archive of a data set that would fill the disk, and say in one line which archive is damaged."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ultralytics.fork.errors import Refused, quote

MAX_GROWTH = 100  # times its own size that an archive may unpack to; images hardly shrink in one
ALWAYS_ALLOWED = 2**30  # bytes that any archive may unpack to


def download_and_unpack(
    safe_download: Callable,
    url: Any,
    file: Any = None,
    dir: Any = None,
    unzip: bool = True,
    delete: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Path:
    """Download a file as upstream does, and check an archive before it is unpacked.

    Raises:
        Refused: For an archive that is damaged, or unpacks to far more than it holds.
    """
    archive = safe_download(url, file, dir, False, False, *args, **kwargs)
    if not unzip:
        return archive
    try:
        check_unpacked_size(archive)
        return safe_download(archive, None, dir or archive.parent, True, delete, *args, **kwargs)
    except (EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError) as e:
        raise Refused(f"{archive} cannot be unpacked: {quote(e)}. Copy or download it again") from e


def check_unpacked_size(archive: Path) -> None:
    """Refuse an archive that unpacks to far more than it holds."""
    limit = max(ALWAYS_ALLOWED, MAX_GROWTH * archive.stat().st_size)
    total = 0
    for size in iterate_member_sizes(archive):
        total += size
        if total > limit:
            raise Refused(
                f"{archive} is not unpacked: {archive.stat().st_size / 2**20:,.1f} MiB would become more than "
                f"{limit / 2**30:,.1f} GiB. If that is right, unpack it yourself"
            )


def iterate_member_sizes(archive: Path) -> Iterator[int]:
    """Yield the sizes that an archive gives for its files; no more is unpacked of each."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            yield from (member.file_size for member in z.infolist())
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield from (member.size for member in tar)
