"""Export: turn edits made in place under ultralytics/ into patches."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from _upstream.pin import APPLY, PACKAGE, Pin, UpstreamError, hash_queue, list_later_patches, list_patches, queue_sha256
from _upstream.queue.git import git
from _upstream.queue.repository import format_queue, keep_repository, make_queue_repository, release_tag
from _upstream.queue.scratch_folder import explain_os_errors, lock_checkout, replace_files
from _upstream.queue.tree import (
    STAMP,
    copy_file,
    format_count,
    format_stamp,
    list_edited_files,
    list_missing_files,
    list_new_files,
    manifest,
    read_stamp,
    tree_sha256,
)


def export(root: Path, message: str | None = None, new: bool = False) -> str:
    """Fold the edits under ultralytics/ into the queue, and write the queue to patches/.

    A hunk that touches the lines of a patch, or their lines of context, becomes part of that patch. The other hunks
    become one new patch at the end. Without edits, the patches are written byte for byte as before.

    Args:
        root: The checkout.
        message: Commit message of the new patch.
        new: Put everything into a new patch.

    Returns:
        One line that says what was done.
    """
    with explain_os_errors(root), lock_checkout(root):
        pin, stamp, queue = Pin.read(root), read_stamp(root), queue_sha256(root)
        if stamp.get("queue") != queue or "pending" in stamp:
            raise UpstreamError(f"{PACKAGE}/ was not laid down from this queue; run `{APPLY}` first")
        with tempfile.TemporaryDirectory(prefix="stage-export-", dir=root / ".upstream") as stage:
            repo = Path(stage) / "repo"
            make_queue_repository(root, pin, repo)
            edited = copy_edits(root, repo, stamp["files"])
            files = manifest(repo)
            git("add", "--all", "--force", "--intent-to-add", ".", cwd=repo)
            folded, added = commit_edits(repo, pin, message, new) if edited else (0, 0)
            assert manifest(repo) == files, "the queue does not give the edited tree"
            written = dict(
                format_queue(repo, pin.release, list_later_patches(root, pin.release), Path(stage) / "patches")
            )
            written["upstream.toml"] = replace(pin, tree_sha256=tree_sha256(files)).text().encode()
            new = {"release": pin.release, "wheel": pin.wheel_sha256, "queue": hash_queue(written)}
            stamp = format_stamp({**new, "files": files}).encode()
            replace_files(root, {**list_changed_patches(root, written), STAMP: stamp})
            if edited:
                keep_repository(root, repo)
    if not edited:
        return f"no edits under {PACKAGE}/; {len(list_patches(root))} patches written as they were"
    return f"{format_count(edited)}: {folded} hunks folded into their patches, {added} in a new patch"


def copy_edits(root: Path, repo: Path, files: dict[str, str]) -> list[str]:
    """Copy edited and new files to the repository's work tree and remove deleted ones; return their paths."""
    gone = list_missing_files(root, files)
    for path in gone:
        (repo / path).unlink()
    copied = [*list_edited_files(root, files), *list_new_files(root, files)]
    for path in copied:
        copy_file(root / path, repo / path)
    return [*gone, *copied]


@dataclass(frozen=True)
class Hunk:
    """A change of the lines `first` to `last` of a file, or an insertion between the two if last < first."""

    path: str
    first: int
    last: int
    patch: str


def commit_edits(repo: Path, pin: Pin, message: str | None, new: bool) -> tuple[int, int]:
    """Commit each hunk of the work tree into its patch; return the numbers of folded and new hunks."""
    queue = git("rev-list", "--reverse", f"{release_tag(pin.release)}..HEAD", cwd=repo).split()
    base = git("rev-parse", "HEAD", cwd=repo).strip()
    diff = git("diff", "--unified=0", "--no-renames", "--binary", "--full-index", "HEAD", cwd=repo)
    owned = [(None if new else find_owner(repo, hunk, queue), hunk) for hunk in split_hunks(diff)]
    owners = [commit for commit in [*queue, None] if any(owner == commit for owner, _ in owned)]
    for number, owner in enumerate(owners, 1):
        # Hunks count the lines of the queue's tree; applied from the end of a file, their numbers stay right
        git("read-tree", base, cwd=repo)
        for hunk in [hunk for whose, hunk in owned if whose in owners[:number]][::-1]:
            git("apply", "--cached", "--unidiff-zero", "-", cwd=repo, stdin=hunk.patch)
        paths = git("diff", "--cached", "--name-only", "HEAD", cwd=repo).split()
        text = [f"--fixup={owner}"] if owner else ["-m", message or f"Change {', '.join(paths)}"]
        git("commit", "--quiet", *text, cwd=repo)
    git("reset", "--quiet", "--hard", cwd=repo)
    squash_fixups(repo, release_tag(pin.release))
    added = sum(owner is None for owner, _ in owned)
    return len(owned) - added, added


def squash_fixups(repo: Path, base: str) -> None:
    """Squash each fix-up commit into its patch, and drop a patch that the edits have undone completely."""
    action, emptied = ["--interactive", "--autosquash", base], False
    while action:
        try:
            git("rebase", *action, cwd=repo, GIT_SEQUENCE_EDITOR=":", GIT_EDITOR=":")
            action = []
        except UpstreamError:
            if git("ls-files", "--unmerged", cwd=repo):
                git("rebase", "--abort", cwd=repo, check=False)
                raise UpstreamError(
                    "an edit touches lines of several patches; `export --new` makes a patch of its own of all edits"
                ) from None
            # git stops at a fix-up that leaves its patch empty
            git("commit", "--quiet", "--amend", "--allow-empty", "--no-edit", cwd=repo)
            action, emptied = ["--continue"], True
    if emptied:
        git("rebase", "--quiet", "--force-rebase", "--no-keep-empty", base, cwd=repo)


def split_hunks(diff: str) -> Iterator[Hunk]:
    """Split a diff without context into hunks, each of which is a patch that applies alone."""
    for part in re.split(r"(?m)^(?=diff --git )", diff)[1:]:
        header, *bodies = re.split(r"(?m)^(?=@@ )", part)
        path = re.search(r"^diff --git a/(\S+)", header)[1]
        if not bodies:  # a binary file, or one without lines
            yield Hunk(path, 1, 0, header)
        for body in bodies:
            match = re.match(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", body)
            start, old, new = int(match[1]), int(match[2] or 1), int(match[4] or 1)
            first = start if old else start + 1
            if "\nnew file mode " not in header and "\ndeleted file mode " not in header:
                # git applies at the new file's line number, which is different without the hunks before
                body = f"@@ -{start},{old} +{first if new else first - 1},{new} @@" + body[match.end() :]
            yield Hunk(path, first, first + old - 1, header + body)


def find_owner(repo: Path, hunk: Hunk, queue: list[str], context: int = 3) -> str | None:
    """Return the last patch of the queue that has a line at most `context` lines away from a hunk, or None."""
    total = len(git("show", f"HEAD:{hunk.path}", cwd=repo, check=False).split("\n")) - 1
    if total < 1 or ((hunk.first, hunk.last) == (1, 0) and "\n@@ " not in hunk.patch):
        return None
    lines = f"-L{max(hunk.first - context, 1)},{min(hunk.last + context, total)}"
    touched = set(re.findall(r"(?m)^([0-9a-f]{40}) ", git("blame", "-p", lines, "HEAD", "--", hunk.path, cwd=repo)))
    return next((commit for commit in reversed(queue) if commit in touched), None)


def list_changed_patches(root: Path, queue: dict[str, bytes]) -> dict[str, bytes | None]:
    """Return the files under patches/ that change if the queue becomes `queue`, by their path in the checkout."""
    now = {file.name: file.read_bytes() for file in [*list_patches(root), root / "patches" / "upstream.toml"]}
    names = sorted({*now, *queue})
    return {f"patches/{name}": queue.get(name) for name in names if queue.get(name) != now.get(name)}
