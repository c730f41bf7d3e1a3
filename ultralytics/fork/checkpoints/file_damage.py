"""Say which model file is damaged, before anything in it is used.

Checkpoints and TorchScript files are archives, which have a checksum of each of their records.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultralytics.fork.checkpoints.archive import list_records
from ultralytics.fork.checkpoints.refusal import OPT_OUT, Violation, is_restricted
from ultralytics.fork.errors import Refused, quote

ARCHIVE_SUFFIXES = ".pt", ".torchscript"  # zip archives, as torch writes them
MAX_CODE = 2**26  # bytes of all compressed records: torch compresses the code of TorchScript only
PICKLE_START = b"\x80"  # with which checkpoints of torch before 1.6 begin
NOT_A_MODEL = {
    b"version https://git-lfs": "is a pointer of Git LFS; `git lfs pull` fetches the file",
    b"<!doctype html": "is a web page",
    b"<html": "is a web page",
}


def check_checkpoint_file(file: Path) -> None:
    """Check that a checkpoint's file is an undamaged archive, or a pickle of torch before 1.6.

    Raises:
        Refused: With the file and its damage.
    """
    refuse_damaged(file, find_archive_damage)


def refuse_damaged(file: Path, find_damage: Callable[[Path], str | None]) -> None:
    """Refuse a file that is damaged or breaks a rule for archives.

    Args:
        file: The file or folder.
        find_damage: Function that says what is wrong with it, or gives None.

    Raises:
        Refused: With the file and its damage.
    """
    try:
        damage = find_damage(file)
    except Violation as e:
        raise Refused(f"{file} {quote(e)}. {OPT_OUT if is_restricted() else replacement_advice(file)}") from None
    if damage:
        raise Refused(f"{file} {damage}. {replacement_advice(file)}")


def replacement_advice(file: Any) -> str:
    """Say what to do about a file that is damaged."""
    more = "" if Path(file).suffix == ".pt" else ", or export it again from the checkpoint"
    return f"Copy or download it again{more}"


def find_archive_damage(file: Path) -> str | None:
    """Say what is wrong with a model file that is not a folder; None where nothing is seen."""
    with open(file, "rb") as f:
        begin = f.read(64)
    if not begin:
        return "is empty"
    found = next((what for text, what in NOT_A_MODEL.items() if begin.lstrip().lower().startswith(text)), None)
    if found or file.suffix not in ARCHIVE_SUFFIXES or (file.suffix == ".pt" and begin.startswith(PICKLE_START)):
        return found
    return find_record_damage(file)


def find_record_damage(file: Path) -> str | None:
    """Say what is wrong with an archive that torch has written; None where all its checksums are right."""
    try:
        with open(file, "rb") as f:
            records = list_records(f, file.stat().st_size)
        code = sum(record.file_size for record in records if record.compress_type != zipfile.ZIP_STORED)
        if code > MAX_CODE:
            return f"has records that unpack to {code / 2**20:.0f} MiB, which torch does not write"
        with zipfile.ZipFile(file) as archive:
            for record in records:
                if record.CRC:  # torch can be told to record none
                    with archive.open(record) as f:  # its end is where the checksum is compared
                        while f.read(2**20):
                            pass
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, zlib.error) as e:
        return f"is damaged or truncated: it is no whole archive of torch ({e})"
    return None
