"""Rebase the queue onto another release, verify the result, and write it to the checkout, ready to commit."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from _upstream.fetch.wheel import fetch_release, keep_wheel
from _upstream.pin import (
    APPLY,
    PACKAGE,
    Pin,
    UpstreamError,
    hash_file,
    is_for_release,
    list_later_patches,
    queue_sha256,
)
from _upstream.queue import carry, conflicts, patch_states, rebase_session
from _upstream.queue.apply import lay_down_queue
from _upstream.queue.export import commit_edits
from _upstream.queue.git import git
from _upstream.queue.rebase_report import RebaseReport
from _upstream.queue.rebase_session import REBASE, SESSION, Notes, Stop
from _upstream.queue.release_files import list_changed_files
from _upstream.queue.release_trees import write_patched_tree, write_untouched_tree
from _upstream.queue.repository import apply_queue, check_tree, format_queue, make_repository
from _upstream.queue.scratch_folder import explain_os_errors, lock_checkout, replace_files
from _upstream.queue.tree import list_edited_files, manifest, read_stamp, tree_sha256
from _upstream.verify.api_report import api_changes
from _upstream.verify.build_models import verify_tree
from _upstream.verify.overrides import missing_overrides


def rebase(root: Path, release: str | None, done: Callable[[str], None], dry_run: bool = False) -> RebaseReport:
    """Rebase the queue onto a release, verify the result and write it.

    Args:
        root: The checkout.
        release: The release, the newest without it.
        done: Called after each step with its name, for a progress bar.
        dry_run: Change nothing.

    Raises:
        UpstreamError: If it cannot begin; then the checkout stays as it was.
    """
    began = time.monotonic()
    with explain_os_errors(root), lock_checkout(root):
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
                return RebaseReport("up to date", pin.release, new, dry_run)
            repo = stage / "rebase"
            rebase_session.start_session(root, pin, repo, new, wheel, queue)
            shutil.copyfile(wheel, repo / ".git" / wheel.name)
            write_untouched_tree(repo, new, stage / "untouched")
            missing = missing_overrides(root, stage / "untouched", new)
            if missing:  # nothing outside of the stage has changed, and the stage is removed
                report = RebaseReport(
                    "stopped", pin.release, new, dry_run, overrides=missing, wheel_sha256=hash_file(wheel)
                )
                report.stop = carry.run_rebase(root, repo)
                report.patches = [] if report.stop else patch_states.list_patch_states(repo)
            elif dry_run:
                report = finish_rebase(root, repo, done, dry_run=True)
            else:
                os.replace(repo, session)
                report = finish_rebase(root, session, done)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return replace(report, seconds=round(time.monotonic() - began, 1))


def resume_rebase(root: Path, action: str, done: Callable[[str], None]) -> RebaseReport:
    """Continue, skip or abort a rebase that waits for a decision.

    Args:
        root: The checkout.
        action: `continue` with the resolution, or with a hunk's new place; `skip` the patch; `abort` the rebase.
        done: Called after each step with its name, for a progress bar.
    """
    began = time.monotonic()
    with explain_os_errors(root), lock_checkout(root):
        session = root / SESSION
        if not session.is_dir():
            raise UpstreamError(f"no rebase is waiting; `{REBASE} [VERSION]` starts one")
        notes = read_notes(session)
        if action == "abort":
            remove_session(root, session)
            return RebaseReport("aborted", notes.old if notes else "?", notes.new if notes else "?")
        if notes is None:
            raise UpstreamError(f"{SESSION} is damaged; `{REBASE} --abort`, and start again")
        if notes.queue_sha256 != queue_sha256(root):
            raise UpstreamError(f"patches/ is not what the rebase began with; `{REBASE} --abort`, and start again")
        carry.repair_killed_rebase(session, notes)
        stop = carry.find_current_stop(root, session)
        notes = Notes.read(session)
        if action == "skip":
            skip_patch(session, notes, stop)
        elif stop:
            commit_resolution(root, session, notes, stop)
        report = finish_rebase(root, session, done)
    return replace(report, seconds=round(time.monotonic() - began, 1))


def refuse_edits(root: Path) -> None:
    """Raise an error if the tree has edits that are in no patch, as a rebase would leave them behind."""
    stamp = read_stamp(root)
    edited = list_edited_files(root, stamp.get("files", {}), *stamp.get("pending", []))
    if edited:
        raise UpstreamError(
            f"{', '.join(edited)} {'was' if len(edited) == 1 else 'were'} edited and would stay behind; "
            f"`python scripts/upstream.py export` makes patches of edits, `{APPLY} --discard-edits` drops them"
        )


def read_notes(session: Path) -> Notes | None:
    """Read a session's notes, or return None if they are damaged."""
    try:
        return Notes.read(session)
    except (OSError, ValueError, TypeError):
        return None


def remove_session(root: Path, session: Path) -> None:
    """Remove the session; it is renamed first, so that a killed run leaves no partial session."""
    gone = Path(tempfile.mkdtemp(prefix="stage-", dir=root / ".upstream"))
    os.replace(session, gone / "rebase")
    shutil.rmtree(gone, ignore_errors=True)


def skip_patch(session: Path, notes: Notes, stop: Stop | None) -> None:
    """Drop the patch at which the rebase waits."""
    if stop is None:
        raise UpstreamError("the rebase waits at no patch that could be skipped")
    if stop.reason == "moved":
        new = rebase_session.map_patches_to_commits(session, notes)[stop.patch]
        if rebase_session.is_rebasing(session) and new == git("rev-parse", "HEAD", cwd=session).strip():
            git("reset", "--quiet", "--hard", "HEAD^", cwd=session)
        else:
            try:
                git("rebase", "--onto", f"{new}^", new, "queue", cwd=session)
            except UpstreamError:
                git("rebase", "--abort", cwd=session, check=False)
                raise UpstreamError(
                    f"other patches stand on patches/{stop.patch}: edit it in {SESSION} instead"
                ) from None
    elif rebase_session.is_rebasing(session) and (
        rebase_session.list_unmerged_paths(session) or stop.reason == "taken" or rebase_session.has_changes(session)
    ):
        git("rebase", "--skip", cwd=session, check=False, GIT_EDITOR=":")
    taken = "taken" in (stop.reason, notes.stopped.get(stop.patch)) and stop.patch not in notes.resolved
    notes.dropped[stop.patch] = "upstream's" if taken else "dropped"
    notes.write(session)


def commit_resolution(root: Path, session: Path, notes: Notes, stop: Stop) -> None:
    """Commit what the maintainer resolved into the patch at which the rebase waits."""
    if stop.reason in ("taken", "lost"):
        raise UpstreamError(
            f"nothing of patches/{stop.patch} is left on {notes.new}: `{REBASE} --skip` drops it, `--abort` ends this"
        )
    conflicts.refuse_unresolved(session)
    git("add", "--update", cwd=session)  # tracked files only, as git itself does
    edited = git("diff", "--cached", "--name-only", "HEAD", cwd=session)
    if stop.reason == "conflict":
        if not edited:
            raise UpstreamError(
                f"nothing of patches/{stop.patch} is left: `{REBASE} --skip` drops it, or edit the files again"
            )
        git("commit", "--quiet", f"--reuse-message={notes.order[stop.patch]}", cwd=session)
    elif stop.reason == "later":
        if edited:
            message = rebase_session.read_patch_message(root / "patches" / stop.patch)
            git("commit", "--quiet", "-F", "-", cwd=session, stdin=message)
    else:
        new = rebase_session.map_patches_to_commits(session, notes)[stop.patch]
        if edited and rebase_session.is_rebasing(session):  # the edit belongs to this patch
            git("commit", "--quiet", "--amend", "--no-edit", cwd=session)
        elif not edited and notes.shown == patch_states.hash_diff(
            session, new
        ):  # the maintainer saw the place and left it
            notes.accepted.append(notes.shown)
            notes.write(session)


def finish_rebase(root: Path, repo: Path, done: Callable[[str], None], dry_run: bool = False) -> RebaseReport:
    """Run the rebase to its end, verify and write the result; or report where it waits."""
    notes = Notes.read(repo)
    pin = Pin(notes.new, notes.wheel_sha256, "")
    report = RebaseReport("stopped", notes.old, notes.new, dry_run, wheel_sha256=notes.wheel_sha256)
    if (
        not rebase_session.is_rebasing(repo)
        and rebase_session.is_on_release(repo, notes.new)
        and rebase_session.has_changes(repo)
    ):
        conflicts.refuse_unresolved(repo)
        commit_edits(repo, pin, None, new=False)
    report.stop = carry.run_rebase(root, repo)
    if report.stop:
        record_stop(repo, report)
        return report
    done("rebased")
    carry.rewrite_identities(repo, notes.new)
    report.patches, report.range_diff = patch_states.list_patch_states(repo), patch_states.range_diff(repo)
    wheel = repo / ".git" / pin.wheel
    with tempfile.TemporaryDirectory(prefix="stage-", dir=root / ".upstream") as own:
        ours, theirs, before = (Path(own) / name for name in ("ours", "theirs", "before"))
        write_patched_tree(root, repo, ours)
        write_untouched_tree(repo, notes.new, theirs)
        write_untouched_tree(repo, notes.old, before)
        report.tree_sha256 = tree_sha256(manifest(ours))
        report.api = api_changes(root, before, theirs)
        report.overrides = missing_overrides(root, theirs, notes.new)
        if report.overrides:
            return replace(report, outcome="wrong")
        report.verdict = verify_tree(root, notes.new, wheel, ours, theirs, done)
        if report.verdict.problems:
            return replace(report, outcome="wrong")
        pin = replace(pin, tree_sha256=report.tree_sha256)
        queue = format_queue(repo, notes.new, list_later_patches(root, notes.new), Path(own) / "patches")
        files = list_changed_files(root, notes, pin, queue, wheel)
        check_written_queue(Path(own), queue, pin, wheel)
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


def record_stop(repo: Path, report: RebaseReport) -> None:
    """Record what was shown, so that `--continue` accepts only a new place that the maintainer has seen."""
    notes, file = Notes.read(repo), report.stop.patch
    notes.stopped[file] = report.stop.reason
    if report.stop.reason == "moved":
        notes.shown = patch_states.hash_diff(repo, rebase_session.map_patches_to_commits(repo, notes)[file])
        report.range_diff = patch_states.range_diff(repo, file)
    notes.write(repo)


def check_written_queue(folder: Path, queue: dict[str, bytes], pin: Pin, wheel: Path) -> None:
    """Check that the patches, as they will be written, produce the recorded tree."""
    written = folder / "written"
    written.mkdir()
    for name, content in queue.items():
        (written / name).write_bytes(content)
    make_repository(folder / "again", wheel, pin.release)
    apply_queue(
        folder / "again", [file for file in sorted(written.glob("*.patch")) if is_for_release(file, pin.release)]
    )
    check_tree(manifest(folder / "again"), pin)
