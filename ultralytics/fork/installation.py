"""Describe the installed fork, and warn if the upstream tree on disk is older than the patch queue."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

from ultralytics.utils import LOGGER, ROOT

REMEDY = "python scripts/upstream.py apply"
PACKAGE = "ultralytics"
OWN_FOLDERS = f"{PACKAGE}/fork/", f"{PACKAGE}/nn/AddModules/", f"{PACKAGE}/cfg_custom/"  # not upstream's
RECORD_LINE = f"\n{PACKAGE}/__init__.py,"  # in the list of files of a distribution that is not installed editable
VALUE_COLUMN = 23  # the column of values in `yolo checks`


def read_stamp() -> dict:
    """Read what set-up wrote about the tree that it laid down: release, queue, the hash of each file."""
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


def find_problem(stamp: dict) -> str | None:
    """Say what is wrong with the tree, if anything is."""
    queue = queue_sha256()
    if queue is None:
        return None
    if "pending" in stamp:
        return f"set-up of {ROOT} was interrupted; run `{REMEDY}` in {ROOT.parent}"
    if stamp.get("queue") != queue:
        return f"{ROOT} is not what patches/ says (was there a git pull?); run `{REMEDY}` in {ROOT.parent}"
    return None


def warn_if_tree_is_stale() -> None:
    """Warn in one line if the tree is older than the queue, with the command that lays it down again."""
    problem = find_problem(read_stamp())
    if problem:
        LOGGER.warning(problem)


def describe_installation() -> str:
    """Describe the fork: the release under it, its hashes, whether the tree on disk is the recorded one, who owns it.

    Each line but the first begins where `yolo checks` prints a value.
    """
    stamp = read_stamp()
    if not stamp:
        return "AddModules, on a tree that set-up did not lay down"
    files = stamp.get("files", {})
    lines = [
        f"AddModules on upstream {stamp.get('release')}",
        f"wheel sha256 {stamp.get('wheel')}",
        f"queue sha256 {stamp.get('queue')}",
        f"tree sha256 {tree_sha256(files)}",
        f"tree on disk {find_problem(stamp) or describe_tree(files)}",
        describe_owners(),
    ]
    return ("\n" + " " * VALUE_COLUMN).join(lines)


def tree_sha256(files: dict[str, str]) -> str:
    """Hash a tree, given the hash of each of its files, as scripts/upstream.py does."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def describe_tree(files: dict[str, str]) -> str:
    """Say whether the tree on disk is the recorded one, and which files differ if not."""
    edited = sorted(path for path, digest in files.items() if not has_digest(ROOT.parent / path, digest))
    added = sorted(path for path in list_upstream_sources() if path not in files)
    differing = [(edited, "edited or gone"), (added, "that set-up did not lay down")]
    found = [f"{len(paths)} {what}: {', '.join(paths)}" for paths, what in differing if paths]
    remedy = "install it again" if queue_sha256() is None else f"`{REMEDY} --discard-edits` lays down what was recorded"
    return f"not as recorded: {'; '.join(found)}; {remedy}" if found else "as recorded"


def list_upstream_sources() -> list[str]:
    """List the Python files of the package on disk that are upstream's."""
    found = (file.relative_to(ROOT.parent).as_posix() for file in ROOT.rglob("*.py"))
    return [path for path in found if not path.startswith(OWN_FOLDERS)]


def describe_owners() -> str:
    """Say which installed distributions own the package `ultralytics`, and what to do if another one does, too."""
    owning = {
        f"{distribution.name} {distribution.version}"
        for distribution in metadata.distributions()
        if distribution.name == PACKAGE or RECORD_LINE in f"\n{distribution.read_text('RECORD')}"
    }
    others = sorted(owner for owner in owning if "+addmodules." not in owner)
    if not others:
        return f"installed as {', '.join(owning)}" if owning else "not installed: imported from where it lies"
    names = " ".join(owner.partition(" ")[0] for owner in others)
    return (
        f"WARNING: {', '.join(others)} {'owns' if len(others) == 1 else 'own'} the package {PACKAGE}, too; "
        f"`pip uninstall {names}`, then install this fork again"
    )


def has_digest(file: Path, digest: str) -> bool:
    """Whether a file has the recorded content."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest
