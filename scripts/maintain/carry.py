"""Carry the queue to another release with git's rebase, one patch at a time, and say what became of each patch.

The work is done in a repository of its own (a "session"), whose branch `queue` goes from the old release to the new
one. git's own state says how far it is, so that a session survives being killed, and git's own tools work in it.
"""

from __future__ import annotations

import ast
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from maintain.git import git
from maintain.pin import PACKAGE, Pin, UpstreamError, applies, patches
from maintain.repository import apply_queue, commit_release, queue_repository, release_tag
from maintain.tree import sha256

OLD_QUEUE = "old-queue"  # tag of the queue as it stands on the old release
NOTES = "session.json"  # in .git: what git does not know of the session
MARKER = re.compile(r"(?m)^(?:<{7}|>{7}|\|{7}) ")


@dataclass
class Notes:
    """What git does not know of a session: where from, where to, and what was decided by hand."""

    old: str  # releases
    new: str
    wheel_sha256: str
    queue_sha256: str  # of patches/ when the session began
    order: dict[str, str]  # file name of each patch: its commit on the old release
    left_out: list[str] = field(default_factory=list)  # file names: for later releases than the new one
    later: list[str] = field(default_factory=list)  # file names: for later releases than the old one, not the new one
    resolved: list[str] = field(default_factory=list)  # commits that conflicted
    accepted: list[str] = field(default_factory=list)  # commits whose new place was looked at
    dropped: dict[str, str] = field(default_factory=dict)  # commits that are to be dropped: their state
    shown: str | None = None  # commit whose new place was shown last

    @classmethod
    def read(cls, repo: Path) -> Notes:
        return cls(**json.loads((repo / ".git" / NOTES).read_text(encoding="utf-8")))

    def write(self, repo: Path) -> None:
        temporary = repo / ".git" / f"{NOTES}.part"
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(temporary, repo / ".git" / NOTES)

    def file_of(self, commit: str) -> str:
        """Give the file name of the patch that a commit of the old queue is."""
        return next(file for file, sha in self.order.items() if sha == commit)


@dataclass(frozen=True)
class Stop:
    """Why a rebase waits for a hand: `conflict`, `taken` by upstream, or `moved` into another function."""

    reason: str
    patch: str
    lines: list[str]


@dataclass(frozen=True)
class Carried:
    """What became of a patch: clean, offset, moved, conflict resolved, upstream's, dropped, left out."""

    patch: str
    state: str
    details: list[str]


# Begin ----------------------------------------------------------------------------------------------------------------
def begin(root: Path, pin: Pin, repo: Path, release: str, wheel: Path, queue: str) -> None:
    """Make a session's repository: both releases, and the queue on the old one; nothing is rebased yet."""
    queue_repository(root, pin, repo)
    if release != pin.release:
        commit_release(repo, wheel, release)
    git("tag", "--force", OLD_QUEUE, "queue", cwd=repo)
    commits = git("rev-list", "--reverse", f"{release_tag(pin.release)}..queue", cwd=repo).split()
    files = [patch for patch in patches(root) if applies(patch, pin.release)]
    notes = Notes(
        old=pin.release,
        new=release,
        wheel_sha256=sha256(wheel),
        queue_sha256=queue,
        order={file.name: commit for file, commit in zip(files, commits)},
        left_out=[patch.name for patch in patches(root) if not applies(patch, release)],
        later=[patch.name for patch in patches(root) if patch not in files and applies(patch, release)],
    )
    notes.write(repo)


# Go on ----------------------------------------------------------------------------------------------------------------
def advance(root: Path, repo: Path) -> Stop | None:
    """Run git's rebase until it has ended or a patch needs a hand."""
    notes = Notes.read(repo)
    if not rebasing(repo) and not on_release(repo, notes.new):
        start(repo, notes)
    while rebasing(repo):
        commit = current(repo)
        stop = examine(repo, notes, commit) if commit else None
        if stop:
            return stop
        before = picked(repo)
        git("rebase", "--continue", cwd=repo, check=False, GIT_EDITOR=":")
        if rebasing(repo) and picked(repo) == before:
            git("rebase", "--continue", cwd=repo, GIT_EDITOR=":")  # says what is in its way
    for file, commit in notes.order.items():
        if file not in notes.left_out and commit not in notes.dropped and commit not in pairs(repo, notes):
            raise UpstreamError(f"patches/{file} got lost on the way; `rebase --abort`, and start again")
    present = git("log", "--format=%s", f"{release_tag(notes.new)}..queue", cwd=repo).splitlines()
    later = [root / "patches" / file for file in notes.later]
    apply_queue(repo, [patch for patch in later if subject_of(patch) not in present])
    return None


def start(repo: Path, notes: Notes) -> None:
    """Start git's rebase with a list that stops after each patch, and leaves out those that are for later releases."""
    todo = repo / ".git" / "todo"
    commits = [commit for file, commit in notes.order.items() if file not in notes.left_out]
    todo.write_text("".join(f"pick {commit}\nbreak\n" for commit in commits) or "noop\n")
    git(
        *("rebase", "--interactive", "--empty=ask", "--onto", release_tag(notes.new), release_tag(notes.old), "queue"),
        cwd=repo,
        check=False,
        GIT_SEQUENCE_EDITOR='cp "$TODO"',
        TODO=str(todo),
    )
    if not rebasing(repo) and not on_release(repo, notes.new):
        raise UpstreamError(f"git rebase did not start in {repo}; `rebase --abort` and start again")


def rebasing(repo: Path) -> bool:
    return (repo / ".git" / "rebase-merge").is_dir()


def on_release(repo: Path, release: str) -> bool:
    """Whether the branch `queue` stands on a release."""
    base = git("rev-list", "--max-parents=0", "queue", cwd=repo).split()
    return base == git("rev-parse", release_tag(release), cwd=repo).split()


def picked(repo: Path) -> list[str]:
    """List the commits of the old queue that git's rebase has picked."""
    done = repo / ".git" / "rebase-merge" / "done"
    return re.findall(r"(?m)^pick (\w+)", done.read_text()) if done.is_file() else []


def current(repo: Path) -> str | None:
    """Give the commit of the old queue that git's rebase has picked last."""
    commits = picked(repo)
    return git("rev-parse", commits[-1], cwd=repo).strip() if commits else None


def unmerged(repo: Path) -> dict[str, set[str]]:
    """Give the conflicting paths, each with the stages that git has of it: 1 base, 2 upstream's, 3 the patch's."""
    paths: dict[str, set[str]] = {}
    for line in git("ls-files", "--unmerged", "-z", cwd=repo).split("\0"):
        if line:
            entry, path = line.split("\t", 1)
            paths.setdefault(path, set()).add(entry.split()[2])
    return paths


def examine_now(repo: Path) -> Stop | None:
    """Say what a rebase that was left waits for, or None if for nothing."""
    commit = current(repo) if rebasing(repo) else None
    return examine(repo, Notes.read(repo), commit) if commit else None


def first_marker(file: Path) -> int | None:
    """Give the line of a file's first conflict marker."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    match = MARKER.search(text)
    return text.count("\n", 0, match.start()) + 1 if match else None


def examine(repo: Path, notes: Notes, commit: str) -> Stop | None:
    """Say what keeps the patch that was picked last from being right, or None."""
    file = notes.file_of(commit)
    paths = unmerged(repo)
    if paths:
        if commit not in notes.resolved:
            notes.resolved.append(commit)
            notes.write(repo)
        for path in paths:
            name_sides(repo / path, notes, file)
        lines = [line for path, stages in paths.items() for line in describe_conflict(repo, notes, path, stages)]
        return Stop("conflict", file, lines)
    if (repo / ".git" / "CHERRY_PICK_HEAD").is_file() and not git("status", "--porcelain", "-uno", cwd=repo):
        return Stop("taken", file, [f"ultralytics {notes.new} has all of it already"])
    if subject(repo, "HEAD") != subject(repo, commit):
        if commit in notes.dropped:
            return None
        if commit in notes.resolved and git("status", "--porcelain", cwd=repo):
            return Stop("conflict", file, ["resolved, and not yet committed"])
        if commit in notes.resolved:
            return Stop("taken", file, ["nothing of it was left when its conflict was resolved"])
        # git was killed between noting the pick and making the commit: pick it again
        git("reset", "--quiet", "--hard", cwd=repo)
        todo = repo / ".git" / "rebase-merge" / "git-rebase-todo"
        todo.write_text(f"pick {commit}\nbreak\n{todo.read_text()}")
        return None
    if commit not in notes.accepted:
        lines = [str(move) for move in moves(repo, commit, "HEAD") if move.gone or move.come]
        if lines:
            return Stop("moved", file, lines)
    return None


def subject(repo: Path, commit: str) -> str:
    return git("log", "-1", "--format=%s", commit, cwd=repo).strip()


def subject_of(patch: Path) -> str:
    """Read the subject of a patch file."""
    text = re.sub(r"\n(?=[ \t])", "", patch.read_text(encoding="utf-8", errors="replace"))
    return re.search(r"(?m)^Subject: \[PATCH\] (.*)$", text)[1]


def pairs(repo: Path, notes: Notes) -> dict[str, str]:
    """Give the new commit of each commit of the old queue that has one; a patch is known by its subject."""
    new = git("log", "--reverse", "--format=%H %s", f"{release_tag(notes.new)}..queue", cwd=repo).splitlines()
    found = {}
    for file, commit in notes.order.items():
        same = [line for line in new if line.partition(" ")[2] == subject(repo, commit)]
        if same and file not in notes.left_out and commit not in notes.dropped:
            found[commit] = same[0].partition(" ")[0]
            new.remove(same[0])
    return found


# Conflicts ------------------------------------------------------------------------------------------------------------
def name_sides(file: Path, notes: Notes, patch: str) -> None:
    """Name both sides of each conflict in its markers, in place of git's HEAD and commit hashes."""
    if not file.is_file():
        return
    names = {"<<<<<<<": f"{PACKAGE} {notes.new}", "|||||||": f"{PACKAGE} {notes.old}", ">>>>>>>": f"patches/{patch}"}
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    text = re.sub(r"(?m)^(<{7}|>{7}|\|{7}) .*?(?=\r?$)", lambda match: f"{match[1]} {names[match[1]]}", text)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


def describe_conflict(repo: Path, notes: Notes, path: str, stages: set[str]) -> list[str]:
    """Say where a file conflicts: one line for each place."""
    if "2" not in stages:
        return [f"{path}: ultralytics {notes.new} has no such file any more"]
    text = (repo / path).read_text(encoding="utf-8", errors="replace")
    lines = []
    for match in re.finditer(r"(?m)^<{7} ", text):
        number = text.count("\n", 0, match.start()) + 1
        before = upstreams_side(text[: match.start()])
        function = enclosing(upstreams_side(text), before.count("\n") + 1)
        lines.append(f"{path}, line {number}{f' ({function})' if function else ''}")
    return lines or [f"{path}: both sides changed it"]


def upstreams_side(text: str) -> str:
    """Resolve conflicts the way of the new release."""
    return re.sub(r"(?ms)^<{7} [^\n]*\n(.*?)^\|{7} .*?^>{7} [^\n]*\n", r"\1", text)


# Places ---------------------------------------------------------------------------------------------------------------
def enclosing(source: str, line: int) -> str:
    """Name the function or class that a line of Python source is in, as `Class.method`; "" for the module itself."""
    try:
        node, names = ast.parse(source), []
    except SyntaxError:
        return ""
    while True:
        for child in ast.walk(node):
            if child is not node and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                if first <= line <= child.end_lineno:
                    node = child
                    names.append(child.name)
                    break
        else:
            return ".".join(names)


def places(repo: Path, commit: str) -> dict[str, set[str]]:
    """Give the functions that a commit changes lines of, by file."""
    found: dict[str, set[str]] = {}
    diff = git("diff-tree", "-p", "--unified=0", "--no-renames", "--full-index", commit, cwd=repo)
    for part in re.split(r"(?m)^(?=diff --git )", diff)[1:]:
        path = re.search(r"^diff --git a/(.+) b/", part)[1]
        functions = found.setdefault(path, set())
        for match in re.finditer(r"(?m)^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", part):
            removal = match[4] == "0"  # has no lines on the new side
            first, count = (match[1], match[2]) if removal else (match[3], match[4])
            source = git("show", f"{commit}{'^' if removal else ''}:{path}", cwd=repo) if path.endswith(".py") else ""
            functions |= {enclosing(source, line) for line in range(int(first), int(first) + int(count or 1))}
    return found


def renames(repo: Path, old: str, new: str) -> dict[str, str]:
    """Give the files that one commit has under another path than another commit."""
    lines = git("diff", "--find-renames", "--diff-filter=R", "--name-status", old, new, cwd=repo).splitlines()
    return {line.split("\t")[1]: line.split("\t")[2] for line in lines}


@dataclass(frozen=True)
class Move:
    """A file in which a patch changes other functions than it did, or which has another name."""

    path: str
    target: str
    gone: set[str]  # functions that are not changed any more
    come: set[str]  # functions that were not changed before

    def __str__(self) -> str:
        if not (self.gone or self.come):
            return f"{self.path} is {self.target} now"
        gone, come = (
            ", ".join(sorted(name or "the module itself" for name in names)) or "nowhere"
            for names in (self.gone, self.come)
        )
        file = f" of {self.path}" if self.path != self.target else ""
        return f"{self.target}: a hunk was in {gone}{file}, is in {come}"


def moves(repo: Path, old: str, new: str) -> list[Move]:
    """Compare where a commit and its counterpart make their changes."""
    before, after = places(repo, old), places(repo, new)
    renamed = renames(repo, f"{old}^", f"{new}^") if before.keys() - after.keys() else {}
    found = []
    for path, functions in before.items():
        target = renamed.get(path, path)
        now = after.pop(target, set())
        if target != path or now != functions:
            found.append(Move(path, target, functions - now, now - functions))
    return found + [Move(path, path, set(), functions) for path, functions in after.items()]


# What became of it ----------------------------------------------------------------------------------------------------
def outcome(repo: Path) -> list[Carried]:
    """Say of each patch what became of it."""
    notes = Notes.read(repo)
    new = pairs(repo, notes)
    found = []
    for file, commit in notes.order.items():
        if file in notes.left_out:
            found.append(Carried(file, "left out", [f"it is for later releases than {notes.new}"]))
        elif commit not in new:
            found.append(Carried(file, notes.dropped[commit], []))
        else:
            found.append(Carried(file, *compare(repo, notes, commit, new[commit])))
    found += [Carried(file, "clean", [f"applies since {notes.new}"]) for file in notes.later]
    found += [Carried(file, "left out", []) for file in notes.left_out if file not in notes.order]
    return sorted(found, key=lambda carried: carried.patch)


def compare(repo: Path, notes: Notes, old: str, new: str) -> tuple[str, list[str]]:
    """Give a carried patch's state, and how its diff differs from the old one."""
    moved = [str(move) for move in moves(repo, old, new)]
    if old in notes.resolved:
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
    return "offset", ["lines beside it changed" if same else "part of it is upstream's"]


def diff_of(repo: Path, commit: str) -> str:
    """Give a commit's diff without the hashes of its files."""
    return re.sub(r"(?m)^index .*\n", "", git("diff-tree", "-p", "--no-commit-id", commit, cwd=repo))


def range_diff(repo: Path, commit: str | None = None) -> str:
    """Compare the queue on both releases with `git range-diff`; or, with a commit of the old queue, it and HEAD."""
    notes = Notes.read(repo)
    old, new = f"{release_tag(notes.old)}..{OLD_QUEUE}", f"{release_tag(notes.new)}..queue"
    if commit:
        old, new = f"{commit}^..{commit}", "HEAD^..HEAD"
    return git("range-diff", "--no-color", "--creation-factor=100", old, new, cwd=repo)
