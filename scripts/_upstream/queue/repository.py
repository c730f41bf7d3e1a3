"""The scratch repository: an upstream release is its first commit, and each patch of the queue is one more."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path

from _upstream.fetch.wheel import fetch_wheel, unpack_wheel
from _upstream.pin import PACKAGE, Pin, UpstreamError, is_for_release, list_patches, queue_sha256
from _upstream.queue.git import git
from _upstream.queue.tree import tree_sha256

FORMAT_PATCH = [
    "--no-signature",
    "--zero-commit",
    "--no-numbered",
    "--no-stat",
    "--full-index",
    "--no-renames",
    "--unified=3",
]


def make_repository(repo: Path, wheel: Path, release: str) -> None:
    """Make a repository whose branch `queue` is an upstream release."""
    repo.mkdir(parents=True)
    git("init", "--quiet", "--template=", "--initial-branch=queue", ".", cwd=repo)
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text("* -text\n*.py diff=python\n")
    commit_release(repo, wheel, release)
    git("reset", "--quiet", "--hard", release_tag(release), cwd=repo)


def commit_release(repo: Path, wheel: Path, release: str) -> None:
    """Commit upstream's package without parents, tagged with the release, beside the other commits."""
    with tempfile.TemporaryDirectory(prefix="release-", dir=repo / ".git") as folder:
        unpack_wheel(wheel, Path(folder))
        index = {"GIT_INDEX_FILE": f"{folder}.index"}
        git(f"--work-tree={folder}", "add", "--all", "--force", ".", cwd=repo, **index)
        tree = git("write-tree", cwd=repo, **index).strip()
    Path(index["GIT_INDEX_FILE"]).unlink()
    commit = git("commit-tree", tree, "-m", f"{PACKAGE} {release}", cwd=repo).strip()
    git("tag", "--force", release_tag(release), commit, cwd=repo)


def release_tag(release: str) -> str:
    """Return the git tag of a release."""
    return f"release/{release}"


def make_queue_repository(root: Path, pin: Pin, repo: Path) -> None:
    """Make `repo` the repository of the checkout's queue; copy the one that set-up kept if it holds this queue."""
    kept = root / ".upstream" / "repo"
    marker = kept / ".git" / "queue"
    if marker.is_file() and marker.read_text() == queue_sha256(root):
        shutil.copytree(kept, repo, symlinks=True)
        return
    make_repository(repo, fetch_wheel(root, pin, repo.parent), pin.release)
    apply_queue(repo, [patch for patch in list_patches(root) if is_for_release(patch, pin.release)])


def apply_queue(repo: Path, queue: list[Path]) -> None:
    """Apply and commit each patch of the queue.

    Raises:
        UpstreamError: If a patch does not apply; the message names the file and the hunk.
    """
    for patch in queue:
        data = patch.read_bytes()
        if data.count(b"\r\n") == data.count(b"\n"):  # checked out on Windows; single CRLF lines are upstream's
            data = data.replace(b"\r\n", b"\n")
        text = data.decode(errors="surrogateescape")
        if "\ndiff --git " not in text:
            raise UpstreamError(f"patches/{patch.name} holds no patch; `git checkout patches` restores it")
        try:
            git("am", "--quiet", "--keep-cr", "--keep-non-patch", "-", cwd=repo, stdin=text)
        except UpstreamError as e:
            where = first_rejected_hunk(repo, text)
            git("am", "--abort", cwd=repo, check=False)
            if where is None:
                raise UpstreamError(f"patches/{patch.name}: {e}") from None
            raise UpstreamError(f"patches/{patch.name} does not apply to {where}") from None


def check_tree(files: dict[str, str], pin: Pin) -> None:
    """Raise an error if the hash of a patched tree is not the recorded one."""
    digest = tree_sha256(files)
    if digest != pin.tree_sha256:
        raise UpstreamError(
            f"the patched tree has sha256 {digest}, patches/upstream.toml records {pin.tree_sha256}; `git checkout "
            f"patches && git clean -f patches` restores the queue; to change it, edit under {PACKAGE}/ and run `export`"
        )


def first_rejected_hunk(repo: Path, patch: str) -> str | None:
    """Return the file and the hunk of a patch that git rejects, or None if the reason is another one."""
    try:
        git("apply", "--check", "-", cwd=repo, stdin=patch)
    except UpstreamError:
        pass
    else:
        return None
    path, number = None, 0
    parts = re.split(r"(?m)^(?=diff --git |@@ )", patch)
    header = ""
    for part in parts:
        if part.startswith("diff --git "):
            header, number = part, 0
            path = re.search(r"^diff --git a/(\S+)", part)[1]
            if not (repo / path).exists() and "new file mode" not in part:
                return f"{path}: upstream has no such file"
        elif part.startswith("@@ "):
            number += 1
            hunk = re.split(r"(?m)^-- ?$", part)[0]
            try:
                git("apply", "--check", "--recount", "-", cwd=repo, stdin=header + hunk)
            except UpstreamError:
                return f"{path}, hunk {number} ({part.splitlines()[0]})"
    return path


def format_queue(repo: Path, release: str, others: list[Path], out: Path) -> dict[str, bytes]:
    """Format the repository's queue as patch files.

    Args:
        repo: The repository, whose branch `queue` is the queue on the release.
        release: The release.
        others: Patches for later releases, which keep their numbers.
        out: A folder for git to write to.

    Returns:
        The content of each patch by its file name, the others' included.
    """
    taken = {int(patch.name.partition("-")[0]) for patch in others}
    numbers = (number for number in itertools.count(1) if number not in taken)
    for commit in git("rev-list", "--reverse", f"{release_tag(release)}..queue", cwd=repo).split():
        number = f"--start-number={next(numbers)}"
        git("format-patch", "--quiet", *FORMAT_PATCH, "-o", str(out), number, "-1", commit, cwd=repo)
    return {file.name: file.read_bytes() for file in [*out.glob("*.patch"), *others]}


def keep_repository(root: Path, repo: Path) -> None:
    """Move the repository to where `export` finds it, with the hash of its queue."""
    kept = root / ".upstream" / "repo"
    (repo / ".git" / "queue").write_text(queue_sha256(root))
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(repo, kept)
