"""Carry the queue to another release with git's rebase, one patch at a time, and find where a maintainer must decide.

The rebase runs in a repository of its own, the session, whose branch `queue` moves from the old release to the new one.
git's own state records the progress. So a session survives being killed, and a maintainer can use git in it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from _upstream.pin import UpstreamError
from _upstream.queue.changed_functions import find_moves
from _upstream.queue.conflicts import describe_conflict, label_conflict_markers
from _upstream.queue.git import git
from _upstream.queue.patch_states import hash_diff
from _upstream.queue.rebase_session import (
    SESSION,
    Notes,
    Stop,
    has_changes,
    is_on_release,
    is_rebasing,
    list_commits,
    list_picked_commits,
    list_unmerged_paths,
    map_patches_to_commits,
    read_done_list,
    read_patch_message,
)
from _upstream.queue.repository import apply_queue, release_tag


def run_rebase(root: Path, repo: Path) -> Stop | None:
    """Run git's rebase until it ends or a patch needs a decision."""
    notes = Notes.read(repo)
    if not is_rebasing(repo) and not is_on_release(repo, notes.new):
        notes.reset_decisions()
        start_git_rebase(repo, notes)
    while is_rebasing(repo):
        stop = find_patch_stop(repo, notes)
        if stop:
            return stop
        before = read_done_list(repo)
        git("rebase", "--continue", cwd=repo, check=False, GIT_EDITOR=":")
        if is_rebasing(repo) and read_done_list(repo) == before:
            git("rebase", "--continue", cwd=repo, GIT_EDITOR=":")  # raises with git's reason
    return find_queue_stop(root, repo, notes)


def find_current_stop(root: Path, repo: Path) -> Stop | None:
    """Return what a waiting session waits for, or None."""
    notes = Notes.read(repo)
    if is_rebasing(repo):
        return find_patch_stop(repo, notes)
    return find_queue_stop(root, repo, notes) if is_on_release(repo, notes.new) else None


def start_git_rebase(repo: Path, notes: Notes) -> None:
    """Start git's rebase with a list that stops after each patch and leaves out the patches for later releases."""
    notes.write(repo)
    todo = repo / ".git" / "todo"
    todo.write_text("".join(f"pick {commit}\nbreak\n" for commit in notes.carried_patches.values()) or "noop\n")
    git(
        *("rebase", "--interactive", "--empty=ask", "--onto", release_tag(notes.new), release_tag(notes.old), "queue"),
        cwd=repo,
        check=False,
        GIT_SEQUENCE_EDITOR='cp "$TODO"',
        TODO=str(todo),
    )
    if not is_rebasing(repo) and not is_on_release(repo, notes.new):
        raise UpstreamError(f"git rebase did not start in {repo}; `rebase --abort` and start again")


def repair_killed_rebase(repo: Path, notes: Notes) -> None:
    """Remove what a killed git left behind: its locks, and a rebase that had not begun or had just ended.

    No git process of this project runs meanwhile, as the caller holds the lock of the scratch folder.
    """
    for lock in filter(Path.is_file, [*(repo / ".git").glob("*.lock"), *(repo / ".git" / "refs").rglob("*.lock")]):
        lock.unlink()
    if not is_rebasing(repo):
        return
    state = repo / ".git" / "rebase-merge"
    if is_on_release(repo, notes.new, "HEAD") and all((state / name).is_file() for name in ("head-name", "onto")):
        restore_todo_list(repo, notes)
    elif not list_picked_commits(repo):  # git first writes its list, and then checks the new release out
        shutil.rmtree(state)
        git("symbolic-ref", "HEAD", "refs/heads/queue", cwd=repo)
        git("reset", "--quiet", "--hard", cwd=repo)


def restore_todo_list(repo: Path, notes: Notes) -> None:
    """Restore picks that git's list has lost: git removes a pick from the list before it records it as done."""
    todo = repo / ".git" / "rebase-merge" / "git-rebase-todo"
    text = todo.read_text() if todo.is_file() else ""
    listed = {*list_picked_commits(repo), *re.findall(r"(?m)^\w+ (\w{40,})", text)}
    missing = [commit for commit in notes.carried_patches.values() if commit not in listed]
    if missing:
        todo.write_text("".join(f"pick {commit}\nbreak\n" for commit in missing) + text)


def find_patch_stop(repo: Path, notes: Notes) -> Stop | None:
    """Return why the patch that was picked last is not right yet, or None."""
    commits = list_picked_commits(repo)
    if not commits:
        return None
    file = next((file for file, commit in notes.order.items() if commit == commits[-1]), None)
    if file is None:
        raise UpstreamError(
            f"a rebase of your own is under way in {SESSION}; finish it or `git rebase --abort` it first"
        )
    paths = list_unmerged_paths(repo)
    if paths:
        if file not in notes.resolved:
            notes.resolved.append(file)
            notes.write(repo)
        for path in paths:
            label_conflict_markers(repo / path, notes, file)
        lines = [line for path, stages in paths.items() for line in describe_conflict(repo, notes, path, stages)]
        return Stop("conflict", file, lines)
    edited, present = has_changes(repo), file in map_patches_to_commits(repo, notes)
    if (repo / ".git" / "CHERRY_PICK_HEAD").is_file() and not (edited or present) and file not in notes.resolved:
        return Stop("taken", file, [f"ultralytics {notes.new} has all of it already"])
    if file in notes.dropped:
        return None
    if present:
        return find_moved_hunks(repo, notes, file)
    if file in notes.stopped:  # the user may have changed the work tree
        if edited:
            return Stop("conflict", file, ["resolved, and not yet committed"])
        return Stop("lost", file, ["nothing of it is there"])
    # git was killed between noting the pick and making the commit: pick it again
    git("reset", "--quiet", "--hard", cwd=repo)
    todo = repo / ".git" / "rebase-merge" / "git-rebase-todo"
    todo.write_text(f"pick {commits[-1]}\nbreak\n{todo.read_text()}")
    return None


def find_queue_stop(root: Path, repo: Path, notes: Notes) -> Stop | None:
    """Return the first patch that is not right after git's rebase, or None; apply patches that now apply."""
    if git("symbolic-ref", "--quiet", "HEAD", cwd=repo, check=False).strip() != "refs/heads/queue":
        raise UpstreamError(
            f"{SESSION} is not on its branch; `git -C {SESSION} checkout queue`, with your commits on it"
        )
    if git("stash", "list", cwd=repo):
        raise UpstreamError(f"{SESSION} has a stash that would be lost; `git -C {SESSION} stash pop` or `stash drop`")
    for file in notes.carried_patches:
        if file not in map_patches_to_commits(repo, notes):
            return Stop("lost", file, ["nothing of it is there"])
        stop = find_moved_hunks(repo, notes, file)
        if stop:
            return stop
    present = {subject for _, subject in list_commits(repo, f"{release_tag(notes.new)}..queue")}
    for file in notes.later:
        patch = root / "patches" / file
        if file not in notes.dropped and read_patch_message(patch).partition("\n")[0] not in present:
            try:
                apply_queue(repo, [patch])
            except UpstreamError as e:
                return Stop("later", file, [str(e)])
    return None


def find_moved_hunks(repo: Path, notes: Notes, file: str) -> Stop | None:
    """Return a stop if hunks of a carried patch are in another function than before, and nobody has accepted that."""
    old, new = notes.order[file], map_patches_to_commits(repo, notes)[file]
    if hash_diff(repo, new) in notes.accepted:
        return None
    lines = [str(move) for move in find_moves(repo, old, new) if move.gone and move.come]
    return Stop("moved", file, lines) if lines else None


def rewrite_identities(repo: Path, release: str) -> None:
    """Rewrite each commit of the queue with this project's identity, so that the patches are the same everywhere."""
    parent = git("rev-parse", release_tag(release), cwd=repo).strip()
    for commit in git("rev-list", "--reverse", f"{release_tag(release)}..queue", cwd=repo).split():
        message = git("cat-file", "commit", commit, cwd=repo).partition("\n\n")[2]
        parent = git("commit-tree", f"{commit}^{{tree}}", "-p", parent, "-F", "-", cwd=repo, stdin=message).strip()
    git("update-ref", "refs/heads/queue", parent, cwd=repo)
