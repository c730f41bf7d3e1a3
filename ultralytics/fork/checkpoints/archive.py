"""Check the form of a checkpoint before anything in it is read: what it declares is not larger than the file."""

from __future__ import annotations

import os
import tarfile
import zipfile
from typing import Any

from ultralytics.fork.checkpoints.refusal import Violation, is_restricted

__all__ = "Violation", "list_records", "read_storage_sizes"

PICKLE_LIMIT = 2**22  # bytes; the largest model, in the middle of a training, has a pickle of 1.5 million
RECORDS_LIMIT = 2**15  # of an archive; the same model has 6,000
DIRECTORY_ENTRY_LIMIT = 2**10  # bytes of a record in the directory: its path, the archive's name and a few numbers


def read_storage_sizes(file: Any) -> dict[str, int] | int:
    """Check the form of a checkpoint.

    Args:
        file: The open file.

    Returns:
        The bytes of each storage of an archive, by its key; for the format before torch 1.6, the bytes of the file.

    Raises:
        Violation: For a form that torch does not write.
    """
    start = file.tell()
    begin = file.read(4)
    size = file.seek(0, os.SEEK_END)
    file.seek(start)
    if begin == b"PK\x03\x04":
        return read_archive_sizes(file, size)
    if begin[:1] != b"\x80":
        raise ValueError("it does not begin like a checkpoint")
    is_tar = tarfile.is_tarfile(file)  # torch would unpack it
    file.seek(start)
    if is_tar:
        raise Violation("is a tar archive, as torch wrote them before 2018")
    return size


def read_archive_sizes(file: Any, size: int) -> dict[str, int]:
    """Check the records of an archive, as `read_storage_sizes` does."""
    records = list_records(file, size)
    for record in records:
        name = record.filename
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise Violation(f"has a record {name[:80]!r} that is compressed or encrypted, which torch does not write")
        if record.file_size != record.compress_size:
            raise Violation(f"has a record {name[:80]!r} of two sizes")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Violation(f"has a record named {name[:80]!r}, which is a path out of the archive")
    folders = {record.filename.partition("/")[0] for record in records}
    sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
    if "constants.pkl" in sizes or any(name.startswith("code/") for name in sizes):
        raise Violation("is a TorchScript archive, not a checkpoint; under the name .torchscript `yolo` runs it")
    if len(folders) != 1 or "data.pkl" not in sizes:
        raise ValueError("it holds no data.pkl")
    if sizes["data.pkl"] > PICKLE_LIMIT:
        raise Violation(f"has a pickle of {sizes['data.pkl'] / 2**20:.0f} MiB; the pickles of models have a few MiB")
    return {name.removeprefix("data/"): size for name, size in sizes.items() if name.startswith("data/")}


def list_records(file: Any, size: int) -> list[zipfile.ZipInfo]:
    """List the records of an archive, in time and memory that are bounded by its size.

    Raises:
        Violation: For an archive that torch does not write.
    """
    begin, nbytes, count = find_directory(file, size)
    if count > RECORDS_LIMIT and is_restricted():
        raise Violation(f"has {count} records")
    file.seek(begin)
    if nbytes > DIRECTORY_ENTRY_LIMIT * count or file.read(nbytes).count(b"PK\x01\x02") != count:
        raise Violation("lists other records than it declares")
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if (archive.start_dir, len(records)) != (begin, count):
            raise Violation("has a second directory")
    duplicates = count - len({record.filename.lower() for record in records})  # torch ignores the case
    if duplicates:
        raise Violation(f"has {duplicates} records with the name of another")
    if sum(record.compress_size for record in records) > size:
        raise Violation("declares more bytes than the file has")
    return records


def find_directory(file: Any, size: int) -> tuple[int, int, int]:
    """Find the directory of an archive where torch reads it: where the archive's last record says that it is.

    Python's zipfile looks for the directory directly before that record. An archive with two directories would hold
    other records for torch than for Python.

    Returns:
        The offset of the directory, its bytes, and the count of records that it lists.
    """
    file.seek(max(0, size - 42))
    tail = file.read(42)
    locator, end = tail[:20], tail[20:]
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("it does not end like an archive")
    stop = size - 22
    count, nbytes, begin = (int.from_bytes(end[a:b], "little") for a, b in ((10, 12), (12, 16), (16, 20)))
    if locator[:4] == b"PK\x06\x07":  # zip64
        stop = int.from_bytes(locator[8:16], "little")
        if stop != size - 98:
            raise Violation("has a second directory")
        file.seek(stop)
        record = file.read(56)
        count, nbytes, begin = (int.from_bytes(record[a : a + 8], "little") for a in (32, 40, 48))
    if begin + nbytes != stop:
        raise Violation("has a second directory")
    return begin, nbytes, count
