"""The scratch repository: an upstream release as its first commit, each patch of the queue as one more."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from maintain.git import git
from maintain.pin import PACKAGE, Pin, UpstreamError, queue_sha256
from maintain.wheel import unpack

FORMAT_PATCH = "--no-signature --zero-commit --no-numbered --no-stat --full-index --no-renames --unified=3".split()


def make_repository(repo: Path, wheel: Path, pin: Pin) -> None:
    """Make a repository whose only commit, tagged with the release, is upstream's package."""
    repo.mkdir(parents=True)
    git("init", "--quiet", "--template=", "--initial-branch=queue", ".", cwd=repo)
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text("* -text\n*.py diff=python\n")
    unpack(wheel, repo)
    git("add", "--all", "--force", ".", cwd=repo)
    git("commit", "--quiet", "-m", f"{PACKAGE} {pin.release}", cwd=repo)
    git("tag", release_tag(pin), cwd=repo)


def release_tag(pin: Pin) -> str:
    return f"release/{pin.release}"


def apply_queue(repo: Path, queue: list[Path]) -> None:
    """Commit each patch of the queue.

    Raises:
        UpstreamError: For a patch that does not apply, with the file and the hunk.
    """
    for patch in queue:
        text = patch.read_bytes().replace(b"\r\n", b"\n").decode(errors="surrogateescape")
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


def first_rejected_hunk(repo: Path, patch: str) -> str | None:
    """Name the file and the hunk of a patch that git refuses, or None if it refuses the patch for something else."""
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


def keep_repository(root: Path, repo: Path) -> None:
    """Keep the repository for `export`, under the hash of the queue that it holds."""
    kept = root / ".upstream" / "repo"
    (repo / ".git" / "queue").write_text(queue_sha256(root))
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(repo, kept)
