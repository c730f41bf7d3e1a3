"""Rebase the queue onto another release, verify what comes out, and write it to the checkout, ready to commit."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from _upstream.fetch.wheel import fetch_release, keep_wheel
from _upstream.pin import APPLY, PACKAGE, Pin, UpstreamError, applies, left_out, queue_sha256, sha256
from _upstream.queue import carry, conflicts, patch_states, rebase_session
from _upstream.queue.apply import lay_down_queue
from _upstream.queue.export import commit_edits
from _upstream.queue.git import git
from _upstream.queue.rebase_report import Report
from _upstream.queue.rebase_session import REBASE, SESSION, Notes, Stop
from _upstream.queue.release_files import changed_files
from _upstream.queue.release_trees import patched_tree, untouched_tree
from _upstream.queue.repository import apply_queue, check_tree, format_queue, make_repository
from _upstream.queue.scratch_folder import clear_errors, locked, replace_files
from _upstream.queue.tree import edits, manifest, read_stamp, tree_sha256
from _upstream.verify.api_report import api_changes
from _upstream.verify.build_models import verify
from _upstream.verify.overrides import missing_overrides


def rebase(root: Path, release: str | None, done: Callable[[str], None], dry_run: bool = False) -> Report:
    """Rebase the queue onto a release; verify it; write it.

    Args:
        root: The checkout.
        release: The release, the newest without it.
        done: Is called with what was done last, for a progress bar.
        dry_run: Change nothing.

    Raises:
        UpstreamError: Where it cannot begin, and the checkout is as it was.
    """
    began = time.monotonic()
    with clear_errors(root), locked(root):
        pin, queue = Pin.read(root), queue_sha256(root)
        session = root / SESSION
        if session.is_dir() and not dry_run:
            notes = read_notes(session)
            way = f" from {notes.old} to {notes.new}" if notes else ""
            raise UpstreamError(f"a rebase{way} waits in {SESSION}; `{REBASE} --continue`, or `--abort`")
        refuse_edits(root)
        stage = Path(tempfile.mkdtemp(prefix="stage-", dir=root / ".upstream"))
        try:
            new, wheel = fetch_release(root, release, stage)
            done(f"{PACKAGE} {new}")
            if new == pin.release:
                return Report("up to date", pin.release, new, dry_run)
            repo = stage / "rebase"
            rebase_session.begin(root, pin, repo, new, wheel, queue)
            shutil.copyfile(wheel, repo / ".git" / wheel.name)
            untouched_tree(repo, new, stage / "untouched")
            missing = missing_overrides(root, stage / "untouched", new)
            if missing:  # everything stays as it was: the stage goes
                report = Report("stopped", pin.release, new, dry_run, overrides=missing, wheel_sha256=sha256(wheel))
                report.stop = carry.advance(root, repo)
                report.patches = [] if report.stop else patch_states.outcome(repo)
            elif dry_run:
                report = go_on(root, repo, done, dry_run=True)
            else:
                os.replace(repo, session)
                report = go_on(root, session, done)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return replace(report, seconds=round(time.monotonic() - began, 1))


def resume(root: Path, action: str, done: Callable[[str], None]) -> Report:
    """Go on with a rebase that waits for a hand.

    Args:
        root: The checkout.
        action: `continue` with what was resolved, or with a hunk's new place; `skip` the patch; `abort` the rebase.
        done: Is called with what was done last, for a progress bar.
    """
    began = time.monotonic()
    with clear_errors(root), locked(root):
        session = root / SESSION
        if not session.is_dir():
            raise UpstreamError(f"no rebase is waiting; `{REBASE} [VERSION]` starts one")
        notes = read_notes(session)
        if action == "abort":
            discard(root, session)
            return Report("aborted", notes.old if notes else "?", notes.new if notes else "?")
        if notes is None:
            raise UpstreamError(f"{SESSION} is damaged; `{REBASE} --abort`, and start again")
        if notes.queue_sha256 != queue_sha256(root):
            raise UpstreamError(f"patches/ is not what the rebase began with; `{REBASE} --abort`, and start again")
        carry.mend(session, notes)
        stop = carry.examine_now(root, session)
        notes = Notes.read(session)
        if action == "skip":
            skip(session, notes, stop)
        elif stop:
            settle(root, session, notes, stop)
        report = go_on(root, session, done)
    return replace(report, seconds=round(time.monotonic() - began, 1))


def refuse_edits(root: Path) -> None:
    """Refuse to leave behind what was edited and is in no patch."""
    stamp = read_stamp(root)
    edited = edits(root, stamp.get("files", {}), *stamp.get("pending", []))
    if edited:
        raise UpstreamError(
            f"{', '.join(edited)} {'was' if len(edited) == 1 else 'were'} edited and would stay behind; "
            f"`python scripts/upstream.py export` makes patches of edits, `{APPLY} --discard-edits` drops them"
        )


def read_notes(session: Path) -> Notes | None:
    try:
        return Notes.read(session)
    except (OSError, ValueError, TypeError):
        return None


def discard(root: Path, session: Path) -> None:
    """Remove the session at once: renamed first, so that a run that is killed leaves no half of it."""
    gone = Path(tempfile.mkdtemp(prefix="stage-", dir=root / ".upstream"))
    os.replace(session, gone / "rebase")
    shutil.rmtree(gone, ignore_errors=True)


def skip(session: Path, notes: Notes, stop: Stop | None) -> None:
    """Drop the patch that the rebase waits at."""
    if stop is None:
        raise UpstreamError("the rebase waits at no patch that could be skipped")
    if stop.reason == "moved":
        new = rebase_session.pairs(session, notes)[stop.patch]
        if rebase_session.rebasing(session) and new == git("rev-parse", "HEAD", cwd=session).strip():
            git("reset", "--quiet", "--hard", "HEAD^", cwd=session)
        else:
            try:
                git("rebase", "--onto", f"{new}^", new, "queue", cwd=session)
            except UpstreamError:
                git("rebase", "--abort", cwd=session, check=False)
                raise UpstreamError(
                    f"other patches stand on patches/{stop.patch}: edit it in {SESSION} instead"
                ) from None
    elif rebase_session.rebasing(session) and (
        rebase_session.unmerged(session) or stop.reason == "taken" or rebase_session.dirty(session)
    ):
        git("rebase", "--skip", cwd=session, check=False, GIT_EDITOR=":")
    taken = "taken" in (stop.reason, notes.stopped.get(stop.patch)) and stop.patch not in notes.resolved
    notes.dropped[stop.patch] = "upstream's" if taken else "dropped"
    notes.write(session)


def settle(root: Path, session: Path, notes: Notes, stop: Stop) -> None:
    """Take what was resolved by hand into the patch that the rebase waits at."""
    if stop.reason in ("taken", "lost"):
        raise UpstreamError(
            f"nothing of patches/{stop.patch} is left on {notes.new}: say `{REBASE} --skip` to drop it, or `--abort`"
        )
    conflicts.refuse_unresolved(session)
    git("add", "--update", cwd=session)  # as git does: what the user has not added does not belong to it
    edited = git("diff", "--cached", "--name-only", "HEAD", cwd=session)
    if stop.reason == "conflict":
        if not edited:
            raise UpstreamError(
                f"nothing of patches/{stop.patch} is left: say `{REBASE} --skip` to drop it, or edit the files again"
            )
        git("commit", "--quiet", f"--reuse-message={notes.order[stop.patch]}", cwd=session)
    elif stop.reason == "later":
        if edited:
            message = rebase_session.message_of(root / "patches" / stop.patch)
            git("commit", "--quiet", "-F", "-", cwd=session, stdin=message)
    else:
        new = rebase_session.pairs(session, notes)[stop.patch]
        if edited and rebase_session.rebasing(session):  # what was edited belongs to this patch
            git("commit", "--quiet", "--amend", "--no-edit", cwd=session)
        elif not edited and notes.shown == patch_states.digest_of(session, new):  # no edit says that the place is right
            notes.accepted.append(notes.shown)
            notes.write(session)


def go_on(root: Path, repo: Path, done: Callable[[str], None], dry_run: bool = False) -> Report:
    """Run the rebase to its end, verify and write; or say where it waits."""
    notes = Notes.read(repo)
    pin = Pin(notes.new, notes.wheel_sha256, "")
    report = Report("stopped", notes.old, notes.new, dry_run, wheel_sha256=notes.wheel_sha256)
    if not rebase_session.rebasing(repo) and rebase_session.on_release(repo, notes.new) and rebase_session.dirty(repo):
        conflicts.refuse_unresolved(repo)
        commit_edits(repo, pin, None, new=False)
    report.stop = carry.advance(root, repo)
    if report.stop:
        note_stop(repo, report)
        return report
    done("rebased")
    carry.normalize(repo, notes.new)
    report.patches, report.range_diff = patch_states.outcome(repo), patch_states.range_diff(repo)
    wheel = repo / ".git" / pin.wheel
    with tempfile.TemporaryDirectory(prefix="stage-", dir=root / ".upstream") as own:
        ours, theirs, before = (Path(own) / name for name in ("ours", "theirs", "before"))
        patched_tree(root, repo, ours)
        untouched_tree(repo, notes.new, theirs)
        untouched_tree(repo, notes.old, before)
        report.tree_sha256 = tree_sha256(manifest(ours))
        report.api = api_changes(root, before, theirs)
        report.overrides = missing_overrides(root, theirs, notes.new)
        if report.overrides:
            return replace(report, outcome="wrong")
        report.verdict = verify(root, notes.new, wheel, ours, theirs, done)
        if report.verdict.problems:
            return replace(report, outcome="wrong")
        pin = replace(pin, tree_sha256=report.tree_sha256)
        queue = format_queue(repo, notes.new, left_out(root, notes.new), Path(own) / "patches")
        files = changed_files(root, notes, pin, queue, wheel)
        check_queue(Path(own), queue, pin, wheel)
        report.changed = sorted(files)
        if not dry_run:
            keep_wheel(root, wheel)
            replace_files(root, files, finished=SESSION)
            done("written")
            try:
                lay_down_queue(root)
            except UpstreamError as e:
                report.note = f"{PACKAGE}/ is still on {notes.old}: {e}"
    return replace(report, outcome="rebased")


def note_stop(repo: Path, report: Report) -> None:
    """Note what was shown, so that `--continue` accepts no place that nobody has seen."""
    notes, file = Notes.read(repo), report.stop.patch
    notes.stopped[file] = report.stop.reason
    if report.stop.reason == "moved":
        notes.shown = patch_states.digest_of(repo, rebase_session.pairs(repo, notes)[file])
        report.range_diff = patch_states.range_diff(repo, file)
    notes.write(repo)


def check_queue(folder: Path, queue: dict[str, bytes], pin: Pin, wheel: Path) -> None:
    """Prove that the patches as they are to be written give the recorded tree."""
    written = folder / "written"
    written.mkdir()
    for name, content in queue.items():
        (written / name).write_bytes(content)
    make_repository(folder / "again", wheel, pin.release)
    apply_queue(folder / "again", [file for file in sorted(written.glob("*.patch")) if applies(file, pin.release)])
    check_tree(manifest(folder / "again"), pin)
