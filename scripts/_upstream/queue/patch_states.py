"""Say what became of each patch on another release."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from _upstream.queue.changed_functions import moves
from _upstream.queue.git import git
from _upstream.queue.rebase_session import OLD_QUEUE, Carried, Notes, log, match, pairs
from _upstream.queue.repository import release_tag


def outcome(repo: Path) -> list[Carried]:
    """Say of each patch what became of it."""
    notes = Notes.read(repo)
    new, rest = match(repo, notes)
    found = []
    for file, commit in notes.order.items():
        if file in notes.left_out:
            found.append(Carried(file, "left out", [f"it is for later releases than {notes.new}"]))
        elif file in notes.dropped:
            found.append(Carried(file, notes.dropped[file], []))
        else:
            found.append(Carried(file, *compare(repo, notes, file, commit, new[file])))
    found += [Carried(file, "left out", []) for file in notes.left_out if file not in notes.order]
    found += [Carried(file, notes.dropped.get(file, "clean"), ["applies now"]) for file in notes.later]
    later = len([file for file in notes.later if file not in notes.dropped])  # the last commits
    subjects = dict(log(repo, f"{release_tag(notes.new)}..HEAD"))
    new_ones = [Carried(subjects[commit], "new", []) for commit in rest[: len(rest) - later]]
    return sorted(found, key=lambda carried: carried.patch) + new_ones


def compare(repo: Path, notes: Notes, file: str, old: str, new: str) -> tuple[str, list[str]]:
    """Give a carried patch's state, and how its diff differs from the old one."""
    moved = [str(move) for move in moves(repo, old, new)]
    if file in notes.resolved:
        return "conflict resolved", moved
    if moved:
        return "moved", moved
    before, after = diff_of(repo, old), diff_of(repo, new)
    if before == after:
        return "clean", []
    numbers, sides = r"(?m)^@@ .* @@.*\n", r"(?m)^(?:@@| ).*\n"
    if re.sub(numbers, "", before) == re.sub(numbers, "", after):
        return "offset", []
    same = re.sub(sides, "", before) == re.sub(sides, "", after)
    return "offset", ["lines beside it changed" if same else "its own lines changed"]


def diff_of(repo: Path, commit: str) -> str:
    """Give a commit's diff without the hashes of its files."""
    return re.sub(r"(?m)^index .*\n", "", git("diff-tree", "-p", "--no-commit-id", commit, cwd=repo))


def digest_of(repo: Path, commit: str) -> str:
    """Hash a commit's diff, by which a patch is known whoever committed it."""
    return hashlib.sha256(diff_of(repo, commit).encode("utf-8", "surrogateescape")).hexdigest()


def range_diff(repo: Path, file: str | None = None) -> str:
    """Compare the queue, or one patch of it, on both releases with `git range-diff`."""
    notes = Notes.read(repo)
    old, new = f"{release_tag(notes.old)}..{OLD_QUEUE}", f"{release_tag(notes.new)}..queue"
    if file:
        before, after = notes.order[file], pairs(repo, notes)[file]
        old, new = f"{before}^..{before}", f"{after}^..{after}"
    if not (log(repo, old) and log(repo, new)):
        return ""  # git takes an empty side for a mistake
    return git("range-diff", "--no-color", "--creation-factor=100", old, new, cwd=repo)
