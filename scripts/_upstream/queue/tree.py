"""The upstream tree at ultralytics/: the hash of each file, the user's edits, and how it is replaced."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath

from _upstream.pin import APPLY, OURS, PACKAGE, UpstreamError, hash_file

STAMP = f"{PACKAGE}/.addmodules.json"  # the record of set-up: release, queue and the hash of each file
SOURCES = {".py", ".yaml"}  # a new file with such a suffix is an edit, others are ignored


def manifest(base: Path) -> dict[str, str]:
    """Hash each upstream file under `base`/ultralytics, by its path, without our folders, byte code and the stamp."""
    files = {}
    for folder, folders, names in os.walk(base / PACKAGE):
        folders[:] = sorted(f for f in folders if f != "__pycache__")
        for name in sorted(names):
            path = Path(folder) / name
            relative = path.relative_to(base).as_posix()
            if not relative.startswith(OURS) and relative != STAMP:
                files[relative] = hash_file(path)
    return files


def tree_sha256(files: dict[str, str]) -> str:
    """Hash a tree, given the hash of each of its files."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_stamp(root: Path) -> dict:
    """Return the record of the last set-up; it has the key `pending` if that was interrupted."""
    try:
        return json.loads((root / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def format_stamp(stamp: dict) -> str:
    """Format the stamp as JSON."""
    return json.dumps(stamp, indent=0, sort_keys=True)


def write_stamp(root: Path, stamp: dict) -> None:
    """Write the stamp; a killed run leaves the old one."""
    file = root / STAMP
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(".part")
    try:
        temporary.write_text(format_stamp(stamp), encoding="utf-8")
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def list_missing_files(root: Path, files: dict[str, str]) -> list[str]:
    """List the recorded files that are gone."""
    return [path for path in sorted(files) if not (root / path).is_file()]


def list_new_files(root: Path, files: dict[str, str]) -> list[str]:
    """List the source files under ultralytics/ that set-up did not write."""
    new = (PurePosixPath(path) for path in manifest(root) if path not in files)
    return [str(path) for path in new if path.suffix in SOURCES and not any(p.startswith(".") for p in path.parts)]


def list_edited_files(root: Path, *known: dict[str, str]) -> list[str]:
    """List the recorded files whose content matches none of the known hashes."""
    paths = {path for files in known for path in files}
    return sorted(
        path
        for path in paths
        if (root / path).is_file() and hash_file(root / path) not in {files.get(path) for files in known}
    )


def format_count(edited: list[str]) -> str:
    """Format a number of edited files."""
    return f"{len(edited)} edited file{'s' if len(edited) > 1 else ''}"


def lay_down_tree(
    root: Path, source: Path, stage: Path, stamp: dict, new: dict, files: dict[str, str], discard_edits: bool
) -> list[str]:
    """Rename the staged files into place; return the edited files that were kept.

    All files are copied first, so that each file of the tree changes by one rename. Until the last rename, the stamp
    names the old and the new state, so that the next run does not mistake an interrupted run for edits. An error
    half-way restores everything.
    """
    pending = stamp.get("pending", [])
    known = [stamp.get("files", {}), *pending]
    mine = list_edited_files(root, *known, files)
    lost = [path for path in mine if {state[path] for state in known if path in state} != {files.get(path)}]
    if lost and not discard_edits:
        raise UpstreamError(
            f"{', '.join(lost)} {'was' if len(lost) == 1 else 'were'} edited and would be overwritten; "
            "`python scripts/upstream.py export` on the old queue makes patches of edits, "
            f"`{APPLY} --discard-edits` drops them"
        )
    kept = [] if discard_edits else mine
    changed = [
        path
        for path in sorted({path for state in [*known, files] for path in state} - set(kept))
        if (hash_file(root / path) if (root / path).is_file() else None) != files.get(path)
    ]
    for path in [*changed, STAMP]:
        copy_file(root / path, stage / "old" / path)
        copy_file(source / path, stage / "new" / path)
    try:
        write_stamp(root, {**stamp, "pending": [*pending, files]})
        for path in changed:
            move_file(stage / "new" / path, root / path)
        write_stamp(root, {**new, "files": files})
    except BaseException:
        for path in [*changed, STAMP]:
            move_file(stage / "old" / path, root / path)
        raise
    return kept


def copy_file(source: Path, target: Path) -> None:
    """Copy a file if it exists."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def move_file(source: Path, target: Path) -> None:
    """Rename a file over another. If the first is missing, remove the other and the folders that become empty."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        return
    target.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for folder in target.parents:
            folder.rmdir()
