"""A rebase session: its repository, the notes beside git's own state, and which commit belongs to which patch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from email import message_from_bytes
from pathlib import Path

from _upstream.pin import Pin, hash_file, is_for_release, list_patches
from _upstream.queue.git import git
from _upstream.queue.repository import check_tree, commit_release, make_queue_repository, release_tag
from _upstream.queue.tree import manifest

REBASE = "python scripts/upstream.py rebase"
SESSION = ".upstream/rebase"
OLD_QUEUE = "old-queue"  # tag of the queue on the old release
NOTES = "session.json"  # in .git: the session's notes


@dataclass
class Notes:
    """What git does not record of a session: both releases, and the maintainer's decisions."""

    old: str  # releases
    new: str
    wheel_sha256: str
    queue_sha256: str  # of patches/ when the session began
    order: dict[str, str]  # file name of each patch: its commit on the old release
    left_out: list[str] = field(default_factory=list)  # file names: for later releases than the new one
    later: list[str] = field(default_factory=list)  # file names: for later releases than the old one, not the new one
    stopped: dict[str, str] = field(default_factory=dict)  # patches at which the rebase has stopped: the last reason
    resolved: list[str] = field(default_factory=list)  # patches that conflicted
    shown: str | None = None  # digest of the patch whose new place was shown last
    accepted: list[str] = field(default_factory=list)  # digests of patches whose new place was accepted
    dropped: dict[str, str] = field(default_factory=dict)  # patches that are to be dropped: their state

    @classmethod
    def read(cls, repo: Path) -> Notes:
        """Read the notes of a session."""
        return cls(**json.loads((repo / ".git" / NOTES).read_text(encoding="utf-8")))

    def write(self, repo: Path) -> None:
        """Write the notes of a session."""
        temporary = repo / ".git" / f"{NOTES}.part"
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(temporary, repo / ".git" / NOTES)

    def reset_decisions(self) -> None:
        """Forget all decisions: git starts again."""
        self.stopped, self.resolved, self.shown, self.accepted, self.dropped = {}, [], None, [], {}

    @property
    def carried_patches(self) -> dict[str, str]:
        """The patches that the new release gets, each with its commit on the old release."""
        gone = {*self.left_out, *self.dropped}
        return {file: commit for file, commit in self.order.items() if file not in gone}


@dataclass(frozen=True)
class Stop:
    """Why a rebase waits for the maintainer.

    Reasons: `conflict`; `taken`, upstream has the change; `lost`, nothing of the patch is there; `moved` into another
    function; `later`, a patch that applies from the new release on does not apply.
    """

    reason: str
    patch: str
    lines: list[str]


@dataclass(frozen=True)
class Carried:
    """The state of a patch: clean, offset, moved, conflict resolved, upstream's, dropped, left out or new."""

    patch: str
    state: str
    details: list[str]


def start_session(root: Path, pin: Pin, repo: Path, release: str, wheel: Path, queue: str) -> None:
    """Make a session's repository with both releases and the queue on the old one; nothing is rebased yet."""
    make_queue_repository(root, pin, repo)
    check_tree(manifest(repo), pin)
    if release != pin.release:
        commit_release(repo, wheel, release)
    git("tag", "--force", OLD_QUEUE, "queue", cwd=repo)
    commits = git("rev-list", "--reverse", f"{release_tag(pin.release)}..queue", cwd=repo).split()
    files = [patch for patch in list_patches(root) if is_for_release(patch, pin.release)]
    notes = Notes(
        old=pin.release,
        new=release,
        wheel_sha256=hash_file(wheel),
        queue_sha256=queue,
        order={file.name: commit for file, commit in zip(files, commits)},
        left_out=[patch.name for patch in list_patches(root) if not is_for_release(patch, release)],
        later=[patch.name for patch in list_patches(root) if patch not in files and is_for_release(patch, release)],
    )
    notes.write(repo)


def is_rebasing(repo: Path) -> bool:
    """Whether git's rebase is under way."""
    return (repo / ".git" / "rebase-merge").is_dir()


def is_on_release(repo: Path, release: str, commit: str = "queue") -> bool:
    """Whether a commit, by default the branch `queue`, is based on a release."""
    base = git("rev-list", "--max-parents=0", commit, cwd=repo).split()
    return base == git("rev-parse", release_tag(release), cwd=repo).split()


def read_done_list(repo: Path) -> str:
    """Return the part of its list that git's rebase has done."""
    done = repo / ".git" / "rebase-merge" / "done"
    return done.read_text() if done.is_file() else ""


def list_picked_commits(repo: Path) -> list[str]:
    """List the commits of the old queue that git's rebase has picked."""
    commits = re.findall(r"(?m)^pick (\w+)", read_done_list(repo))
    return git("rev-parse", *commits, cwd=repo).split() if commits else []


def has_changes(repo: Path) -> bool:
    """Whether a file that git tracks differs from its commit."""
    return bool(git("status", "--porcelain", "--untracked-files=no", cwd=repo))


def list_unmerged_paths(repo: Path) -> dict[str, set[str]]:
    """Return the conflicting paths, each with the stages that git has of it: 1 base, 2 upstream's, 3 the patch's."""
    paths: dict[str, set[str]] = {}
    for line in git("ls-files", "--unmerged", "-z", cwd=repo).split("\0"):
        if line:
            entry, path = line.split("\t", 1)
            paths.setdefault(path, set()).add(entry.split()[2])
    return paths


def list_commits(repo: Path, commits: str) -> list[tuple[str, str]]:
    """Return the hash and the subject of each commit, oldest first."""
    lines = git("log", "--reverse", "--format=%H %s", commits, cwd=repo).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def match_commits(repo: Path, notes: Notes) -> tuple[dict[str, str], list[str]]:
    """Return the new commit of each patch that has one, and the commits that belong to no patch.

    A patch is identified by its subject, or by its place between two such patches, as a subject may have been edited.
    """
    old = [
        (file, subject)
        for file, (_, subject) in zip(notes.order, list_commits(repo, f"{release_tag(notes.old)}..{OLD_QUEUE}"))
    ]
    if is_rebasing(repo):
        done = list_picked_commits(repo)
        old = [(file, subject) for file, subject in old if notes.order[file] in done]
    old = [(file, subject) for file, subject in old if file in notes.carried_patches]
    new = list_commits(repo, f"{release_tag(notes.new)}..HEAD")
    found, rest = {}, []
    matcher = SequenceMatcher(None, [subject for _, subject in old], [subject for _, subject in new], autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        found.update((file, commit) for (file, _), (commit, _) in zip(old[a:b], new[c:d]))
        rest += [commit for commit, _ in new[c + max(b - a, 0) : d]]
    return found, rest


def map_patches_to_commits(repo: Path, notes: Notes) -> dict[str, str]:
    """Return the new commit of each patch that has one."""
    return match_commits(repo, notes)[0]


def read_patch_message(patch: Path) -> str:
    """Read the commit message of a patch file."""
    mail = message_from_bytes(patch.read_bytes().partition(b"\ndiff --git ")[0].partition(b"\n")[2])
    subject = re.sub(r"\s*\n\s*", " ", mail["Subject"]).removeprefix("[PATCH] ")
    return f"{subject}\n\n{mail.get_payload().strip()}\n"
