"""Carry the queue to another release with git's rebase, one patch at a time, and say what became of each patch.

The work is done in a repository of its own (a "session"), whose branch `queue` goes from the old release to the new
one. git's own state says how far it is, so that a session survives being killed, and git's own tools work in it.
"""

from __future__ import annotations

import ast
import collections
import hashlib
import json
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from email import message_from_bytes
from pathlib import Path

from _upstream.pin import PACKAGE, Pin, UpstreamError, applies, patches, sha256
from _upstream.queue.git import git
from _upstream.queue.repository import apply_queue, check_tree, commit_release, queue_repository, release_tag
from _upstream.queue.tree import manifest

REBASE = "python scripts/upstream.py rebase"
SESSION = ".upstream/rebase"
OLD_QUEUE = "old-queue"  # tag of the queue as it stands on the old release
NOTES = "session.json"  # in .git: what git does not know of the session


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
    stopped: dict[str, str] = field(default_factory=dict)  # patches that a hand was needed for: the last reason
    resolved: list[str] = field(default_factory=list)  # patches that conflicted
    shown: str | None = None  # digest of the patch whose new place was shown last
    accepted: list[str] = field(default_factory=list)  # digests of patches whose new place was seen and left
    dropped: dict[str, str] = field(default_factory=dict)  # patches that are to be dropped: their state

    @classmethod
    def read(cls, repo: Path) -> Notes:
        return cls(**json.loads((repo / ".git" / NOTES).read_text(encoding="utf-8")))

    def write(self, repo: Path) -> None:
        temporary = repo / ".git" / f"{NOTES}.part"
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(temporary, repo / ".git" / NOTES)

    def forget(self) -> None:
        """Take back what was decided: git begins anew."""
        self.stopped, self.resolved, self.shown, self.accepted, self.dropped = {}, [], None, [], {}

    @property
    def wanted(self) -> dict[str, str]:
        """The patches that are to stand on the new release, each with its commit on the old one."""
        gone = {*self.left_out, *self.dropped}
        return {file: commit for file, commit in self.order.items() if file not in gone}


@dataclass(frozen=True)
class Stop:
    """Why a rebase waits for a hand.

    `conflict`; `taken`, upstream has it; `lost`, nothing of it is there; `moved` into another function; `later`, a
    patch that applies from the new release on, and does not.
    """

    reason: str
    patch: str
    lines: list[str]


@dataclass(frozen=True)
class Carried:
    """What became of a patch: clean, offset, moved, conflict resolved, upstream's, dropped, left out, new."""

    patch: str
    state: str
    details: list[str]


# Begin ----------------------------------------------------------------------------------------------------------------
def begin(root: Path, pin: Pin, repo: Path, release: str, wheel: Path, queue: str) -> None:
    """Make a session's repository: both releases, and the queue on the old one; nothing is rebased yet."""
    queue_repository(root, pin, repo)
    check_tree(manifest(repo), pin)
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
        notes.forget()
        start(repo, notes)
    while rebasing(repo):
        stop = examine(repo, notes)
        if stop:
            return stop
        before = steps(repo)
        git("rebase", "--continue", cwd=repo, check=False, GIT_EDITOR=":")
        if rebasing(repo) and steps(repo) == before:
            git("rebase", "--continue", cwd=repo, GIT_EDITOR=":")  # says what is in its way
    return examine_all(root, repo, notes)


def examine_now(root: Path, repo: Path) -> Stop | None:
    """Say what a session that was left waits for, or None if for nothing."""
    notes = Notes.read(repo)
    if rebasing(repo):
        return examine(repo, notes)
    return examine_all(root, repo, notes) if on_release(repo, notes.new) else None


def start(repo: Path, notes: Notes) -> None:
    """Start git's rebase with a list that stops after each patch, and leaves out those that are for later releases."""
    notes.write(repo)
    todo = repo / ".git" / "todo"
    todo.write_text("".join(f"pick {commit}\nbreak\n" for commit in notes.wanted.values()) or "noop\n")
    git(
        *("rebase", "--interactive", "--empty=ask", "--onto", release_tag(notes.new), release_tag(notes.old), "queue"),
        cwd=repo,
        check=False,
        GIT_SEQUENCE_EDITOR='cp "$TODO"',
        TODO=str(todo),
    )
    if not rebasing(repo) and not on_release(repo, notes.new):
        raise UpstreamError(f"git rebase did not start in {repo}; `rebase --abort` and start again")


def mend(repo: Path, notes: Notes) -> None:
    """Mend what a git that was killed has left: its locks, and a rebase that it had not yet begun or had just ended.

    No git of ours runs, as the scratch folder's lock is held.
    """
    for lock in filter(Path.is_file, [*(repo / ".git").glob("*.lock"), *(repo / ".git" / "refs").rglob("*.lock")]):
        lock.unlink()
    if not rebasing(repo):
        return
    state = repo / ".git" / "rebase-merge"
    if on_release(repo, notes.new, "HEAD") and all((state / name).is_file() for name in ("head-name", "onto")):
        restore_list(repo, notes)
    elif not picked(repo):  # git first writes its list, and then checks the new release out
        shutil.rmtree(state)
        git("symbolic-ref", "HEAD", "refs/heads/queue", cwd=repo)
        git("reset", "--quiet", "--hard", cwd=repo)


def restore_list(repo: Path, notes: Notes) -> None:
    """Put back what git's list has lost: git takes a pick from it before it notes the pick as done."""
    todo = repo / ".git" / "rebase-merge" / "git-rebase-todo"
    text = todo.read_text() if todo.is_file() else ""
    listed = {*picked(repo), *re.findall(r"(?m)^\w+ (\w{40,})", text)}
    missing = [commit for commit in notes.wanted.values() if commit not in listed]
    if missing:
        todo.write_text("".join(f"pick {commit}\nbreak\n" for commit in missing) + text)


def rebasing(repo: Path) -> bool:
    return (repo / ".git" / "rebase-merge").is_dir()


def on_release(repo: Path, release: str, commit: str = "queue") -> bool:
    """Whether a commit, else the branch `queue`, stands on a release."""
    base = git("rev-list", "--max-parents=0", commit, cwd=repo).split()
    return base == git("rev-parse", release_tag(release), cwd=repo).split()


def steps(repo: Path) -> str:
    """Give what git's rebase has done of its list."""
    done = repo / ".git" / "rebase-merge" / "done"
    return done.read_text() if done.is_file() else ""


def picked(repo: Path) -> list[str]:
    """List the commits of the old queue that git's rebase has picked."""
    commits = re.findall(r"(?m)^pick (\w+)", steps(repo))
    return git("rev-parse", *commits, cwd=repo).split() if commits else []


def dirty(repo: Path) -> bool:
    """Whether a tracked file, or one that the user has added, is not as committed."""
    return bool(git("status", "--porcelain", "--untracked-files=no", cwd=repo))


def unmerged(repo: Path) -> dict[str, set[str]]:
    """Give the conflicting paths, each with the stages that git has of it: 1 base, 2 upstream's, 3 the patch's."""
    paths: dict[str, set[str]] = {}
    for line in git("ls-files", "--unmerged", "-z", cwd=repo).split("\0"):
        if line:
            entry, path = line.split("\t", 1)
            paths.setdefault(path, set()).add(entry.split()[2])
    return paths


def examine(repo: Path, notes: Notes) -> Stop | None:
    """Say what keeps the patch that was picked last from being right, or None."""
    commits = picked(repo)
    if not commits:
        return None
    file = next((file for file, commit in notes.order.items() if commit == commits[-1]), None)
    if file is None:
        raise UpstreamError(
            f"a rebase of your own is under way in {SESSION}; finish it or `git rebase --abort` it first"
        )
    paths = unmerged(repo)
    if paths:
        if file not in notes.resolved:
            notes.resolved.append(file)
            notes.write(repo)
        for path in paths:
            name_sides(repo / path, notes, file)
        lines = [line for path, stages in paths.items() for line in describe_conflict(repo, notes, path, stages)]
        return Stop("conflict", file, lines)
    edited, present = dirty(repo), file in pairs(repo, notes)
    if (repo / ".git" / "CHERRY_PICK_HEAD").is_file() and not (edited or present) and file not in notes.resolved:
        return Stop("taken", file, [f"ultralytics {notes.new} has all of it already"])
    if file in notes.dropped:
        return None
    if present:
        return misplaced(repo, notes, file)
    if file in notes.stopped:  # the work tree is the user's
        if edited:
            return Stop("conflict", file, ["resolved, and not yet committed"])
        return Stop("lost", file, ["nothing of it is there"])
    # git was killed between noting the pick and making the commit: pick it again
    git("reset", "--quiet", "--hard", cwd=repo)
    todo = repo / ".git" / "rebase-merge" / "git-rebase-todo"
    todo.write_text(f"pick {commits[-1]}\nbreak\n{todo.read_text()}")
    return None


def examine_all(root: Path, repo: Path, notes: Notes) -> Stop | None:
    """Say which patch of a rebase that git has ended is not right, whoever ended it; put on those that apply now."""
    if git("symbolic-ref", "--quiet", "HEAD", cwd=repo, check=False).strip() != "refs/heads/queue":
        raise UpstreamError(
            f"{SESSION} is not on its branch; `git -C {SESSION} checkout queue`, with your commits on it"
        )
    if git("stash", "list", cwd=repo):
        raise UpstreamError(f"{SESSION} has a stash that would be lost; `git -C {SESSION} stash pop` or `stash drop`")
    for file in notes.wanted:
        if file not in pairs(repo, notes):
            return Stop("lost", file, ["nothing of it is there"])
        stop = misplaced(repo, notes, file)
        if stop:
            return stop
    present = {subject for _, subject in log(repo, f"{release_tag(notes.new)}..queue")}
    for file in notes.later:
        patch = root / "patches" / file
        if file not in notes.dropped and message_of(patch).partition("\n")[0] not in present:
            try:
                apply_queue(repo, [patch])
            except UpstreamError as e:
                return Stop("later", file, [str(e)])
    return None


def misplaced(repo: Path, notes: Notes, file: str) -> Stop | None:
    """Say which hunks of a carried patch are in another function than they were, unless that was accepted."""
    old, new = notes.order[file], pairs(repo, notes)[file]
    if digest_of(repo, new) in notes.accepted:
        return None
    lines = [str(move) for move in moves(repo, old, new) if move.gone and move.come]
    return Stop("moved", file, lines) if lines else None


# Which commit is which patch ------------------------------------------------------------------------------------------
def log(repo: Path, commits: str) -> list[tuple[str, str]]:
    """Give the hash and the subject of each commit, oldest first."""
    lines = git("log", "--reverse", "--format=%H %s", commits, cwd=repo).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def match(repo: Path, notes: Notes) -> tuple[dict[str, str], list[str]]:
    """Give the new commit of each patch that has one, and the commits that are no patch's.

    A patch is known by its subject; between two that are, by its place, as a subject may have been edited.
    """
    old = [
        (file, subject) for file, (_, subject) in zip(notes.order, log(repo, f"{release_tag(notes.old)}..{OLD_QUEUE}"))
    ]
    if rebasing(repo):
        done = picked(repo)
        old = [(file, subject) for file, subject in old if notes.order[file] in done]
    old = [(file, subject) for file, subject in old if file in notes.wanted]
    new = log(repo, f"{release_tag(notes.new)}..HEAD")
    found, rest = {}, []
    matcher = SequenceMatcher(None, [subject for _, subject in old], [subject for _, subject in new], autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        found.update((file, commit) for (file, _), (commit, _) in zip(old[a:b], new[c:d]))
        rest += [commit for commit, _ in new[c + max(b - a, 0) : d]]
    return found, rest


def pairs(repo: Path, notes: Notes) -> dict[str, str]:
    """Give the new commit of each patch that has one."""
    return match(repo, notes)[0]


def message_of(patch: Path) -> str:
    """Read the commit message of a patch file."""
    mail = message_from_bytes(patch.read_bytes().partition(b"\ndiff --git ")[0].partition(b"\n")[2])
    subject = re.sub(r"\s*\n\s*", " ", mail["Subject"]).removeprefix("[PATCH] ")
    return f"{subject}\n\n{mail.get_payload().strip()}\n"


def normalize(repo: Path, release: str) -> None:
    """Give each commit of the queue our identity, whoever made it, so that the patches are the same everywhere."""
    parent = git("rev-parse", release_tag(release), cwd=repo).strip()
    for commit in git("rev-list", "--reverse", f"{release_tag(release)}..queue", cwd=repo).split():
        message = git("cat-file", "commit", commit, cwd=repo).partition("\n\n")[2]
        parent = git("commit-tree", f"{commit}^{{tree}}", "-p", parent, "-F", "-", cwd=repo, stdin=message).strip()
    git("update-ref", "refs/heads/queue", parent, cwd=repo)


# Conflicts ------------------------------------------------------------------------------------------------------------
def name_sides(file: Path, notes: Notes, patch: str) -> None:
    """Name both sides of each conflict in its markers, in place of git's HEAD and commit hashes."""
    if not file.is_file() or is_binary(file):
        return
    names = {"<<<<<<<": f"{PACKAGE} {notes.new}", "|||||||": f"{PACKAGE} {notes.old}", ">>>>>>>": f"patches/{patch}"}
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    text = re.sub(r"(?m)^(<{7}|>{7}|\|{7}) .*?(?=\r?$)", lambda match: f"{match[1]} {names[match[1]]}", text)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


def is_binary(file: Path) -> bool:
    return b"\0" in file.read_bytes()


def describe_conflict(repo: Path, notes: Notes, path: str, stages: set[str]) -> list[str]:
    """Say where a file conflicts: one line for each place."""
    add, remove = (f"`git -C {SESSION} {verb} {path}`" for verb in ("add", "rm"))
    if not (repo / path).is_file():
        return [f"{path}: is not there; {remove} confirms it"]
    if "2" not in stages:
        return [f"{path}: {PACKAGE} {notes.new} has no such file any more; {remove} agrees, {add} keeps the file"]
    if "3" not in stages:
        return [f"{path}: the patch removes it, {PACKAGE} {notes.new} changed it; {remove} or {add}"]
    if is_binary(repo / path):
        return [f"{path}: both sides changed a binary file; put the right one there, and {add}"]
    text = (repo / path).read_text(encoding="utf-8", errors="replace")
    lines = []
    for match in re.finditer(r"(?m)^<{7} ", text):
        number = text.count("\n", 0, match.start()) + 1
        before = upstreams_side(text[: match.start()])
        try:
            function = enclosing(upstreams_side(text).encode(), before.count("\n") + 1)
        except (SyntaxError, ValueError):
            function = ""
        lines.append(f"{path}, line {number}{f' ({function})' if function else ''}")
    return lines or [f"{path}: edited; `{REBASE} --continue` takes it as it is"]


def upstreams_side(text: str) -> str:
    """Resolve conflicts the way of the new release."""
    return re.sub(r"(?ms)^<{7} [^\n]*\n(.*?)^\|{7} .*?^>{7} [^\n]*\n", r"\1", text)


def refuse_unresolved(repo: Path) -> None:
    """Refuse to go on with what is not resolved, with the file, the line and the remedy."""
    paths = unmerged(repo)
    for path in sorted({*paths, *git("diff", "--name-only", "-z", "HEAD", cwd=repo).split("\0")[:-1]}):
        file, stages = repo / path, paths.get(path)
        if stages and file.is_file() and (not {"2", "3"} <= stages or is_binary(file)):
            add, remove = (f"`git -C {SESSION} {verb} {path}`" for verb in ("add", "rm"))
            raise UpstreamError(f"{path} conflicts as a whole; {add} keeps it as it is, {remove} drops it")
        if file.is_file() and not is_binary(file):
            text = file.read_text(encoding="utf-8", errors="replace")
            marker = re.search(r"(?m)^(?:<{7}|>{7}|\|{7}) ", text)
            if marker:
                line = text.count("\n", 0, marker.start()) + 1
                raise UpstreamError(f"{SESSION}/{path}, line {line} still has a conflict marker; edit the file first")


# Places ---------------------------------------------------------------------------------------------------------------
def enclosing(source: bytes, line: int) -> str:
    """Name the function or class that a line of Python source is in, as `Class.method`; "" for the module itself."""
    node, names = ast.parse(source), []
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


def places(repo: Path, commit: str) -> dict[str, collections.Counter]:
    """Count the lines that a commit changes by file and function."""
    found: dict[str, collections.Counter] = {}
    diff = git("diff-tree", "-p", "--unified=0", "--no-renames", "--full-index", commit, cwd=repo)
    for part in re.split(r"(?m)^(?=diff --git )", diff)[1:]:
        path = re.search(r"^diff --git a/(.+) b/", part)[1]
        counts = found.setdefault(path, collections.Counter())
        for match in re.finditer(r"(?m)^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", part):
            for side, first, count in ((f"{commit}^", match[1], match[2]), (commit, match[3], match[4])):
                lines = range(int(first), int(first) + int(count or 1))
                source = git("show", f"{side}:{path}", cwd=repo) if lines and path.endswith(".py") else ""
                try:
                    data = source.encode("utf-8", "surrogateescape")
                    counts.update(enclosing(data, line) for line in lines)
                except (SyntaxError, ValueError) as e:
                    python = platform.python_version()
                    raise UpstreamError(
                        f"{path} cannot be read by Python {python} ({e}); run this with another"
                    ) from None
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
    gone: frozenset[str]  # functions of which fewer lines are changed
    come: frozenset[str]  # functions of which more are

    def __str__(self) -> str:
        if not (self.gone and self.come):
            return f"{self.path} is {self.target} now"
        gone, come = (
            ", ".join(sorted(name or "the module itself" for name in names)) for names in (self.gone, self.come)
        )
        file = f" of {self.path}" if self.path != self.target else ""
        return f"{self.target}: a hunk was in {gone}{file}, is in {come}"


def moves(repo: Path, old: str, new: str) -> list[Move]:
    """List the files in which a commit and its counterpart make their changes elsewhere."""
    before, after = places(repo, old), places(repo, new)
    renamed = renames(repo, f"{old}^", f"{new}^") if before.keys() - after.keys() else {}
    found = []
    for path, counts in before.items():
        target = renamed.get(path, path)
        now = after.get(target, collections.Counter())
        move = Move(path, target, frozenset(counts - now), frozenset(now - counts))
        if target != path or (move.gone and move.come):
            found.append(move)
    return found


# What became of it ----------------------------------------------------------------------------------------------------
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
