"""Find the state of each patch on another release: clean, offset, moved, dropped and so on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from _upstream.queue.changed_functions import find_moves
from _upstream.queue.git import git
from _upstream.queue.rebase_session import (
    OLD_QUEUE,
    Carried,
    Notes,
    list_commits,
    map_patches_to_commits,
    match_commits,
)
from _upstream.queue.repository import release_tag


def list_patch_states(repo: Path) -> list[Carried]:
    """List the state of each patch."""
    notes = Notes.read(repo)
    new, rest = match_commits(repo, notes)
    found = []
    for file, commit in notes.order.items():
        if file in notes.left_out:
            found.append(Carried(file, "left out", [f"it is for later releases than {notes.new}"]))
        elif file in notes.dropped:
            found.append(Carried(file, notes.dropped[file], []))
        else:
            found.append(Carried(file, *compare_patch(repo, notes, file, commit, new[file])))
    found += [Carried(file, "left out", []) for file in notes.left_out if file not in notes.order]
    found += [Carried(file, notes.dropped.get(file, "clean"), ["applies now"]) for file in notes.later]
    later = len([file for file in notes.later if file not in notes.dropped])  # the last commits
    subjects = dict(list_commits(repo, f"{release_tag(notes.new)}..HEAD"))
    new_ones = [Carried(subjects[commit], "new", []) for commit in rest[: len(rest) - later]]
    return sorted(found, key=lambda carried: carried.patch) + new_ones


def compare_patch(repo: Path, notes: Notes, file: str, old: str, new: str) -> tuple[str, list[str]]:
    """Return a carried patch's state, and how its diff differs from the old diff."""
    moved = [str(move) for move in find_moves(repo, old, new)]
    if file in notes.resolved:
        return "conflict resolved", moved
    if moved:
        return "moved", moved
    before, after = read_diff(repo, old), read_diff(repo, new)
    if before == after:
        return "clean", []
    numbers, sides = r"(?m)^@@ .* @@.*\n", r"(?m)^(?:@@| ).*\n"
    if re.sub(numbers, "", before) == re.sub(numbers, "", after):
        return "offset", []
    same = re.sub(sides, "", before) == re.sub(sides, "", after)
    return "offset", ["lines beside it changed" if same else "its own lines changed"]


def read_diff(repo: Path, commit: str) -> str:
    """Return a commit's diff without the hashes of its files."""
    return re.sub(r"(?m)^index .*\n", "", git("diff-tree", "-p", "--no-commit-id", commit, cwd=repo))


def hash_diff(repo: Path, commit: str) -> str:
    """Hash a commit's diff, which identifies a patch whoever committed it."""
    return hashlib.sha256(read_diff(repo, commit).encode("utf-8", "surrogateescape")).hexdigest()


def range_diff(repo: Path, file: str | None = None) -> str:
    """Compare the queue, or one patch of it, on both releases with `git range-diff`."""
    notes = Notes.read(repo)
    old, new = f"{release_tag(notes.old)}..{OLD_QUEUE}", f"{release_tag(notes.new)}..queue"
    if file:
        before, after = notes.order[file], map_patches_to_commits(repo, notes)[file]
        old, new = f"{before}^..{before}", f"{after}^..{after}"
    if not (list_commits(repo, old) and list_commits(repo, new)):
        return ""  # git refuses an empty side
    return git("range-diff", "--no-color", "--creation-factor=100", old, new, cwd=repo)
