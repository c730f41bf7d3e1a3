"""Write a release into a folder, patched or untouched, for `check`, `rebase` and reproduce.py."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from _upstream.fetch.releases import check_file_hash, check_release
from _upstream.fetch.wheel import fetch_release, find_wheel, keep_wheel, wheel_name
from _upstream.pin import OURS, Pin, UpstreamError, queue_sha256
from _upstream.queue import carry, rebase_session
from _upstream.queue.git import git
from _upstream.queue.repository import release_tag
from _upstream.queue.scratch_folder import explain_os_errors, lock_checkout


def write_patched_release(root: Path, release: str, folder: Path) -> Path:
    """Write a release with the queue applied into a folder, with this project's modules and model files.

    Args:
        root: The checkout.
        release: Any release to which the queue carries without a decision.
        folder: An empty folder: it gets ultralytics/ and cfg_custom/.

    Returns:
        The release's wheel.

    Raises:
        UpstreamError: If the release cannot be downloaded, or the queue does not carry to it without a decision.
    """
    with (
        explain_os_errors(root),
        lock_checkout(root),
        tempfile.TemporaryDirectory(prefix="stage-", dir=root / ".upstream") as own,
    ):
        wheel, repo, stop = carry_queue_to(root, release, Path(own))
        if stop:
            raise UpstreamError(f"patches/{stop.patch} on {release}: {stop.reason}: {'; '.join(stop.lines)}")
        write_patched_tree(root, repo, folder)
    return wheel


def carry_queue_to(root: Path, release: str, folder: Path) -> tuple[Path, Path, rebase_session.Stop | None]:
    """Carry the queue to a release; the caller holds the lock.

    Returns:
        The release's wheel, the repository in `folder`, and the stop if a patch needs a decision.
    """
    wheel, repo = get_wheel(root, check_release(release), folder), folder / "repo"
    rebase_session.start_session(root, Pin.read(root), repo, release, wheel, queue_sha256(root))
    return wheel, repo, carry.run_rebase(root, repo)


def get_wheel(root: Path, release: str, folder: Path) -> Path:
    """Return a release's wheel: the user's, else one kept by an earlier run, else a download, which is kept."""
    kept = root / ".upstream" / "wheels" / wheel_name(release)
    if release != Pin.read(root).release and kept.is_file() and not find_wheel(root, release, pinned=False):
        return check_file_hash(kept)
    _, wheel = fetch_release(root, release, folder)
    return keep_wheel(root, wheel, kept.name)


def write_patched_tree(root: Path, repo: Path, folder: Path) -> None:
    """Write the repository's patched tree into a folder, with this project's modules and model files."""
    check_out_commit(repo, "queue", folder)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*OURS, "cfg_custom"):
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=ignore)


def write_untouched_tree(repo: Path, release: str, folder: Path) -> None:
    """Write a release as upstream published it into a folder."""
    check_out_commit(repo, release_tag(release), folder)


def check_out_commit(repo: Path, commit: str, folder: Path) -> None:
    """Write a commit's files into a folder that is not the repository's work tree."""
    folder.mkdir(parents=True, exist_ok=True)
    index = repo / ".git" / "check-out.index"
    git(f"--work-tree={folder}", "read-tree", commit, cwd=repo, GIT_INDEX_FILE=str(index))
    git(f"--work-tree={folder}", "checkout-index", "--all", "--force", cwd=repo, GIT_INDEX_FILE=str(index))
    index.unlink()
