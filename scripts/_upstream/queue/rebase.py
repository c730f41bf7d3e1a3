"""Rebase the queue onto another release, verify what comes out, and write it to the checkout, ready to commit."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from _upstream.fetch.releases import RECORD, Known
from _upstream.fetch.wheel import fetch_release, keep_wheel
from _upstream.pin import APPLY, PACKAGE, Pin, UpstreamError, applies, left_out, queue_sha256
from _upstream.queue import carry
from _upstream.queue.apply import lay_down_queue
from _upstream.queue.carry import REBASE, SESSION, Carried, Notes, Stop
from _upstream.queue.export import changed_patches, commit_edits
from _upstream.queue.git import git
from _upstream.queue.release_trees import patched_tree, untouched_tree
from _upstream.queue.repository import apply_queue, check_tree, format_queue, make_repository
from _upstream.queue.scratch_folder import clear_errors, locked, replace_files
from _upstream.queue.tree import edits, manifest, read_stamp, tree_sha256
from _upstream.verify import api_report
from _upstream.verify.build_models import Verdict, verify
from _upstream.verify.environment import requirements


@dataclass
class Report:
    """What a rebase did, for people as text and for machines as JSON."""

    outcome: str  # rebased, stopped, wrong, aborted, up to date
    old: str
    new: str
    dry_run: bool = False
    stop: Stop | None = None
    patches: list[Carried] = field(default_factory=list)
    range_diff: str = ""
    api_report: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    changed: list[str] = field(default_factory=list)
    wheel_sha256: str = ""
    tree_sha256: str = ""
    note: str = ""
    seconds: float = 0.0

    def json(self) -> str:
        message = commit_message(self) if self.outcome == "rebased" else ""
        return json.dumps({**asdict(self), "commit_message": message}, indent=1)


# Commands -------------------------------------------------------------------------------------------------------------
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
            carry.begin(root, pin, repo, new, wheel, queue)
            shutil.copyfile(wheel, repo / ".git" / wheel.name)
            if dry_run:
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


# By hand --------------------------------------------------------------------------------------------------------------
def skip(session: Path, notes: Notes, stop: Stop | None) -> None:
    """Drop the patch that the rebase waits at."""
    if stop is None:
        raise UpstreamError("the rebase waits at no patch that could be skipped")
    if stop.reason == "moved":
        new = carry.pairs(session, notes)[stop.patch]
        if carry.rebasing(session) and new == git("rev-parse", "HEAD", cwd=session).strip():
            git("reset", "--quiet", "--hard", "HEAD^", cwd=session)
        else:
            try:
                git("rebase", "--onto", f"{new}^", new, "queue", cwd=session)
            except UpstreamError:
                git("rebase", "--abort", cwd=session, check=False)
                raise UpstreamError(
                    f"other patches stand on patches/{stop.patch}: edit it in {SESSION} instead"
                ) from None
    elif carry.rebasing(session) and (carry.unmerged(session) or stop.reason == "taken" or carry.dirty(session)):
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
    carry.refuse_unresolved(session)
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
            message = carry.message_of(root / "patches" / stop.patch)
            git("commit", "--quiet", "-F", "-", cwd=session, stdin=message)
    else:
        new = carry.pairs(session, notes)[stop.patch]
        if edited and carry.rebasing(session):  # what was edited belongs to this patch
            git("commit", "--quiet", "--amend", "--no-edit", cwd=session)
        elif not edited and notes.shown == carry.digest_of(session, new):  # no edit says that the place is right
            notes.accepted.append(notes.shown)
            notes.write(session)


# The way --------------------------------------------------------------------------------------------------------------
def go_on(root: Path, repo: Path, done: Callable[[str], None], dry_run: bool = False) -> Report:
    """Run the rebase to its end, verify and write; or say where it waits."""
    notes = Notes.read(repo)
    pin = Pin(notes.new, notes.wheel_sha256, "")
    report = Report("stopped", notes.old, notes.new, dry_run, wheel_sha256=notes.wheel_sha256)
    if not carry.rebasing(repo) and carry.on_release(repo, notes.new) and carry.dirty(repo):
        carry.refuse_unresolved(repo)
        commit_edits(repo, pin, None, new=False)
    report.stop = carry.advance(root, repo)
    if report.stop:
        note_stop(repo, report)
        return report
    done("rebased")
    carry.normalize(repo, notes.new)
    report.patches, report.range_diff = carry.outcome(repo), carry.range_diff(repo)
    wheel = repo / ".git" / pin.wheel
    with tempfile.TemporaryDirectory(prefix="stage-", dir=root / ".upstream") as own:
        ours, theirs, before = (Path(own) / name for name in ("ours", "theirs", "before"))
        patched_tree(root, repo, ours)
        untouched_tree(repo, notes.new, theirs)
        untouched_tree(repo, notes.old, before)
        report.tree_sha256 = tree_sha256(manifest(ours))
        report.api = api_report.changes(root, before, theirs)
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
        notes.shown = carry.digest_of(repo, carry.pairs(repo, notes)[file])
        report.range_diff = carry.range_diff(repo, file)
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


def changed_files(root: Path, notes: Notes, pin: Pin, queue: dict[str, bytes], wheel: Path) -> dict[str, bytes | None]:
    """Give the checkout's files that change with the release, by path: the queue, what is recorded, and documents."""
    files = changed_patches(root, {**queue, "upstream.toml": pin.text().encode()})
    texts = {
        "pyproject.toml": lambda text: requires(own_version(text, notes), requirements(wheel)),
        "README.md": lambda text: own_version(text, notes).replace(f"**{notes.old}**", f"**{notes.new}**"),
        "CHANGELOG.md": lambda text: entry(text, notes),
        RECORD: lambda text: record(text, pin),
    }
    for name, change in texts.items():
        text = (root / name).read_text(encoding="utf-8") if (root / name).is_file() else ""
        if change(text) != text:
            files[name] = change(text).encode()
    return files


def own_version(text: str, notes: Notes) -> str:
    """Write our version for the new release wherever the one for the old release stands."""
    return text.replace(f"{notes.old}+addmodules.", f"{notes.new}+addmodules.")


def record(releases: str, pin: Pin) -> str:
    """Record the sha256 of the new release's wheel, where it is not known yet."""
    known = Known.parse(releases)
    return Known(known.refused, {pin.wheel: pin.wheel_sha256, **known.sha256}).text()


def entry(changelog: str, notes: Notes) -> str:
    """Begin a section for the new release, with our number as it was."""
    head = re.search(r"(?m)^## \S+\+addmodules\.(\d+)", changelog)
    if not head:
        return changelog
    title = f"## {notes.new}+addmodules.{head[1]}\n"
    if title in changelog:  # there and back again
        return changelog
    section = f"{title}\n- Follows upstream {notes.new}.\n\n"
    return changelog[: head.start()] + section + changelog[head.start() :]


def requires(pyproject: str, needs: list[str]) -> str:
    """Put upstream's requirements in place of the old release's, above our own."""
    block = re.search(r"(?ms)^dependencies = \[\n(  # Upstream's.*?\n)(.*?)(?=^  # Ours\n)", pyproject)
    if not block:
        raise UpstreamError('pyproject.toml has no dependencies between "# Upstream\'s" and "# Ours"')
    stands = {canonical(line): line for line in re.findall(r'(?m)^  "(.*)",$', block[2])}
    lines = [stands.get(canonical(need), need.replace('"', "'")) for need in needs]
    return pyproject[: block.start(2)] + "".join(f'  "{line}",\n' for line in lines) + pyproject[block.end(2) :]


def canonical(need: str) -> tuple:
    """Bring a requirement to a form in which the order of its limits and its quotes do not matter."""
    wanted, _, marker = need.replace('"', "'").partition(";")
    name, limits = re.match(r"\s*([\w.\[\]-]+)\s*(.*)", wanted).groups()
    return name, frozenset(re.split(r"\s*,\s*", limits.strip(" ()"))), marker.strip()


# As text --------------------------------------------------------------------------------------------------------------
def describe(report: Report) -> str:
    """Write a report for people."""
    way = f"{PACKAGE} {report.old} -> {report.new}"
    if report.outcome == "up to date":
        return f"{PACKAGE}/ is on {report.new} already"
    if report.outcome == "aborted":
        return f"{way}: given up; everything is as it was"
    if report.outcome == "stopped":
        return describe_stop(report)
    lines = [way, "", report.range_diff.rstrip(), ""]
    lines += [f"  {carried.state:<17} {carried.patch}{details(carried)}" for carried in report.patches]
    verdict = report.verdict
    lines += [
        "",
        f"{verdict.models} of {verdict.of_models} shipped models right, {verdict.vanilla} of {verdict.of_vanilla} "
        f"vanilla models equal to the untouched release's ({report.seconds:.0f} s)",
    ]
    if verdict.problems:
        lines += [f"  {problem}" for problem in verdict.problems]
        lines += [
            "",
            f"edit {SESSION}/ and `{REBASE} --continue`, which folds edits into their patches; or `{REBASE} --abort`"
            if not report.dry_run
            else "a dry run: nothing was changed",
        ]
        return "\n".join(lines)
    lines += ["", "would change" if report.dry_run else "changed, ready to commit after `uv run pytest`:"]
    lines += [f"  {path}" for path in report.changed]
    lines += [report.note] if report.note else []
    lines += ["", "for the commit message:", "", commit_message(report)]
    return "\n".join(lines)


def details(carried: Carried) -> str:
    return f"  ({'; '.join(carried.details)})" if carried.details else ""


def commit_message(report: Report) -> str:
    """Summarise a rebase as a commit message."""
    lines = [f"Follow upstream {report.new}", "", f"The queue, from {report.old}:"]
    lines += [f"- {carried.state}: {carried.patch}{details(carried)}" for carried in report.patches]
    lines += ["", "Upstream's public API that our modules use:"]
    lines += [f"- {line}" for line in report.api or ["unchanged"]]
    return "\n".join(lines)


def describe_stop(report: Report) -> str:
    """Say where a rebase waits, why, and what to do."""
    stop, release = report.stop, f"{PACKAGE} {report.new}"
    head = {
        "conflict": f"patches/{stop.patch} conflicts with {release}:",
        "taken": f"patches/{stop.patch} is in {release} already; it is dropped when you say so:",
        "lost": f"patches/{stop.patch} is not on {release}; it is dropped when you say so:",
        "moved": f"patches/{stop.patch} applies to {release}, but not where it was:",
        "later": f"patches/{stop.patch} is for {release} again, and does not apply:",
    }[stop.reason]
    lines = [head, *(f"  {line}" for line in stop.lines)]
    if report.range_diff:
        lines += ["", report.range_diff.rstrip(), ""]
    if report.dry_run:
        return "\n".join([*lines, "a dry run: nothing was changed"])
    edit = f"edit the files in {SESSION}"
    lines += {
        "conflict": [
            f"{edit}; in markers, {release} stands above |||||||, the patch below =======",
            f"{REBASE} --continue   when no marker is left",
        ],
        "taken": [],
        "lost": [],
        "moved": [
            f"{edit} if the place is wrong",
            f"{REBASE} --continue   to go on, with what you edited; without edits, with the new place",
        ],
        "later": [f"{edit}", f"{REBASE} --continue   to make the patch of what you edited"],
    }[stop.reason]
    lines += [f"{REBASE} --skip       to drop the patch", f"{REBASE} --abort      to leave everything as it was"]
    return "\n".join(lines)
