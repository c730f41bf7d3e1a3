"""Set-up: make ultralytics/ the pinned release with the patch queue applied."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from _upstream.fetch.wheel import fetch_wheel, keep_wheel
from _upstream.pin import PACKAGE, Pin, is_for_release, list_patches, queue_sha256
from _upstream.queue.repository import apply_queue, check_tree, keep_repository, make_repository
from _upstream.queue.scratch_folder import explain_os_errors, lock_checkout
from _upstream.queue.tree import (
    format_count,
    lay_down_tree,
    list_edited_files,
    list_missing_files,
    manifest,
    read_stamp,
)
from _upstream.verify.overrides import check_overrides


def apply(root: Path, discard_edits: bool = False) -> str:
    """Make `root`/ultralytics the pinned release with the queue applied, around this project's own folders.

    The new tree is staged beside the old one, and its files are renamed into place at the end. Files that the user
    edited stay if the queue does not change them. If it does, nothing is changed and the error names them.

    Args:
        root: The checkout, or an unpacked source distribution.
        discard_edits: Overwrite edited files.

    Returns:
        One line that says what was done.

    Raises:
        UpstreamError: If the tree cannot be made; then it stays as it was.
    """
    with explain_os_errors(root), lock_checkout(root):
        return lay_down_queue(root, discard_edits)


def lay_down_queue(root: Path, discard_edits: bool = False) -> str:
    """Do the work of `apply`; the caller holds the lock."""
    pin, queue, stamp = Pin.read(root), queue_sha256(root), read_stamp(root)
    edited = list_edited_files(root, stamp.get("files", {}))
    complete = "pending" not in stamp and not list_missing_files(root, stamp.get("files", {}))
    new = {"release": pin.release, "wheel": pin.wheel_sha256, "queue": queue}
    if new.items() <= stamp.items() and complete and not (edited and discard_edits):
        kept = f"; kept {format_count(edited)}: {', '.join(edited)} (--discard-edits drops them)" if edited else ""
        check_overrides(root, root, pin.release)
        return f"{PACKAGE}/ is up to date{kept}"
    stage = Path(tempfile.mkdtemp(prefix="stage-", dir=root / ".upstream"))
    try:
        repo = stage / "repo"
        wheel = fetch_wheel(root, pin, stage)
        make_repository(repo, wheel, pin.release)
        apply_queue(repo, [patch for patch in list_patches(root) if is_for_release(patch, pin.release)])
        files = manifest(repo)
        check_tree(files, pin)
        check_overrides(root, repo, pin.release)
        kept = lay_down_tree(root, repo, stage, stamp, new, files, discard_edits)
        with contextlib.suppress(OSError):  # the tree is complete, and the next run can make these again
            keep_repository(root, repo)
            keep_wheel(root, wheel, pin.wheel)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    line = f"{PACKAGE}/ is {pin.release} with {len(list_patches(root))} patches"
    return line + (f"; kept {format_count(kept)}: {', '.join(kept)}" if kept else "")
