"""Seal exported files, so that a change of their bytes is seen before a runtime uses them.

The seal is a SHA-256 in the metadata: of each other file of a folder; of a single file as it is with 64 zeros in place
of the digest. There it stands twice and is found in the bytes, not by parsing them, so that damage to the metadata is
seen, too. TorchScript's archive, like a checkpoint's, has a CRC-32 of each of its records already.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path

SEAL_KEY = "sha256"
SEAL_PREFIX = "addmodules-sha256:"  # before the digest of a single file
BLANK_DIGEST = b"0" * 64
METADATA_FILE = "metadata.yaml"  # of an export that is a folder
CHANGE_ADVICE = f"if another program has changed it, take `{SEAL_KEY}` out of its metadata"


def sha256(data: bytes) -> str:
    """Give a digest as text."""
    return hashlib.sha256(data).hexdigest()


def format_seal(digest: str) -> str:
    """Write a digest as a single file's metadata hold it."""
    return f"{SEAL_PREFIX}{digest} {SEAL_PREFIX}{digest}"


def fill_seal(data: bytes, placeholder: str) -> bytes:
    """Give data with its digest in place of a placeholder in it."""
    digest = sha256(data.replace(placeholder.encode(), BLANK_DIGEST))
    return data.replace(placeholder.encode(), digest.encode())


def find_file_change(file: Path) -> str | None:
    """Say that a single file does not match its seal; None where it does, or has no seal."""
    data = file.read_bytes()
    digests = re.findall(rb"%s([0-9a-f]{64})" % SEAL_PREFIX.encode(), data)
    if not digests:
        return None
    try:
        is_tflite = file.suffix == ".tflite"
        sealed = data[: find_archive_start(file)] if is_tflite else data.replace(digests[0], BLANK_DIGEST)
    except zipfile.BadZipFile as e:
        return str(e)
    is_unchanged = digests == [sha256(sealed).encode()] * 2
    return None if is_unchanged else f"it is not as it was written ({CHANGE_ADVICE})"


def find_folder_change(folder: Path, metadata: dict) -> str | None:
    """Say which file of a folder does not match its seal; None where all do, or there is no seal."""
    for name, digest in metadata.get(SEAL_KEY, {}).items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        data = (folder / name).read_bytes()
        if name == METADATA_FILE:
            data = data.replace(b"\r\n", b"\n").replace(str(digest).encode(), BLANK_DIGEST)
        if sha256(data) != digest:
            return f"{name} is not as it was written ({CHANGE_ADVICE})"
    return None


def find_archive_start(file: Path) -> int:
    """Find where the archive behind a LiteRT model begins.

    Raises:
        zipfile.BadZipFile: If the archive is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        if archive.testzip():
            raise zipfile.BadZipFile("the metadata are not as they were written")
        return min(entry.header_offset for entry in archive.infolist())
