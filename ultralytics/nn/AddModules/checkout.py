"""Whether the laid-down upstream tree belongs to the patch queue of this checkout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ultralytics.utils import LOGGER, ROOT

__all__ = ()

REMEDY = "python scripts/upstream.py apply"


def read_stamp() -> dict:
    """Give what set-up wrote of the tree that it laid down: release, queue, the hash of each file."""
    try:
        return json.loads((ROOT / ".addmodules.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def queue_sha256() -> str | None:
    """Hash the pin and the queue of the checkout, as scripts/upstream.py does; None where there is no checkout."""
    folder = ROOT.parent / "patches"
    pin = folder / "upstream.toml"
    if not pin.is_file():
        return None
    digest = hashlib.sha256()
    for file in [pin, *sorted(folder.glob("[0-9]*.patch"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def problem(stamp: dict) -> str | None:
    """Say what is wrong with the tree, if anything is."""
    queue = queue_sha256()
    if queue is None:
        return None
    if "pending" in stamp:
        return f"set-up of {ROOT} was interrupted; run `{REMEDY}` in {ROOT.parent}"
    if stamp.get("queue") != queue:
        return f"{ROOT} is not what patches/ says (was there a git pull?); run `{REMEDY}` in {ROOT.parent}"
    return None


def warn_if_stale() -> None:
    """Say in one line, where it is so, that the tree is older than the queue and what mends it."""
    trouble = problem(read_stamp())
    if trouble:
        LOGGER.warning(trouble)


def describe() -> str:
    """Describe the fork in a line: the release under it, the queue, and whether the tree on disk is as recorded."""
    stamp = read_stamp()
    if not stamp:
        return "AddModules, on a tree that set-up did not lay down"
    files = stamp.get("files", {})
    edited = [path for path, digest in files.items() if not intact(ROOT.parent / path, digest)]
    state = problem(stamp) or (f"{len(edited)} files edited: {', '.join(edited)}" if edited else "tree as recorded")
    return f"AddModules on upstream {stamp.get('release')}, queue {stamp.get('queue', '')[:12]}, {state}"


def intact(file: Path, digest: str) -> bool:
    """Whether a file has the recorded content."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest
