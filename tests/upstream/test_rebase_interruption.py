"""A rebase that is killed or runs out of disk space loses nothing, and the next run completes it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import can_kill, killed_in_time, on_small_disks
from rebase_checkout import (  # noqa: F401 - fixtures
    CHECKS,
    FILES,
    FIND,
    LOOK_ALIKE,
    NEIGHBOUR,
    NEW,
    OLD,
    ROOT,
    SESSION,
    TASKS,
    WALK_PATCH,
    changed,
    checkout,
    edit,
    git,
    go_on,
    release,
    snapshot,
    stands,
    start,
    template,
)

from _upstream.pin import Pin
from _upstream.queue.apply import apply
from _upstream.queue.rebase_report import describe_rebase

RUN = """
import os, signal, subprocess, sys
sys.path.insert(0, {scripts!r})
from pathlib import Path
from _upstream.queue import rebase
from _upstream.verify.build_models import Verdict
rebase.verify_tree = lambda *_: Verdict(1, 1, 2, 2, [])
steps, limit, before = [], {limit}, {before}
def counted(original):
    def call(*args, **kwargs):
        steps.append(args)
        if len(steps) == limit and before:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(steps) == limit and original is run:
            kept, none = {{k: kwargs[k] for k in ("cwd", "env")}}, subprocess.DEVNULL
            subprocess.Popen(*args, **kept, stdin=none, stdout=none, stderr=none, close_fds=False)
            os.kill(os.getpid(), signal.SIGKILL)  # git goes on by itself
        done = original(*args, **kwargs)
        if len(steps) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call
run = subprocess.run
subprocess.run, os.replace = counted(run), counted(os.replace)
root = Path({root!r})
report = rebase.resume_rebase(root, "continue", print) if {resume} else rebase.rebase(root, {new!r}, print)
print("STEPS", len(steps))
"""


NEVER = 10**6


def command(root: Path, limit: int = NEVER, before: bool = False, resume: bool = False) -> list[str]:
    """Give the command line of a rebase that is killed at its `limit`th call of git or rename."""
    code = RUN.format(scripts=str(ROOT / "scripts"), root=str(root), new=NEW, limit=limit, before=before, resume=resume)
    return [sys.executable, "-c", code]


def killed(root: Path, limit: int, before: bool = False, resume: bool = False) -> int:
    """Run a rebase that is killed at its `limit`th call of git or rename; returns the calls of one that is not."""
    done = subprocess.run(command(root, limit, before, resume), capture_output=True, text=True)
    if "STEPS" in done.stdout:
        return int(done.stdout.rpartition("STEPS ")[2])
    assert done.returncode == -signal.SIGKILL, done.stderr
    return 0


def finish(root: Path) -> None:
    """Go on with what a run that was killed has left, as far as to the new release."""
    waits = (root / SESSION).is_dir() and Pin.read(root).release == OLD
    report = go_on(root) if waits else start(root) if Pin.read(root).release == OLD else None
    if report and report.outcome == "stopped":
        (root / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
        report = go_on(root)
    assert report is None or report.outcome == "rebased"


@can_kill
@pytest.mark.parametrize("conflict", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_killed_at_any_step(checkout, tmp_path, often, conflict):
    """The old state is usable after it, and what follows ends as if nothing had been."""
    files = NEIGHBOUR if conflict else {TASKS: FILES[TASKS].replace("class Network:", "LIMIT = 3\n\n\nclass Network:")}

    release(checkout, files)
    undisturbed = shutil.copytree(checkout, tmp_path / "undisturbed", symlinks=True)
    resolved = shutil.copytree(checkout, tmp_path / "resolved", symlinks=True)
    steps = killed(shutil.copytree(checkout, tmp_path / "count", symlinks=True), NEVER)
    finish(undisturbed)
    stands(undisturbed)
    if conflict:
        start(resolved)
        (resolved / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
        steps = killed(shutil.copytree(resolved, tmp_path / "count-2", symlinks=True), NEVER, resume=True)
    assert steps > 20
    begin = resolved if conflict else checkout
    for limit in range(1, steps + 1, often(9, 1)):  # odd, so that kills before and after a step take turns
        root = shutil.copytree(begin, tmp_path / f"killed-{limit}", symlinks=True)
        old = snapshot(root)
        killed(root, limit, before=limit % 2 == 0, resume=conflict)
        untouched, line = snapshot(root) == old, apply(root)
        if Pin.read(root).release == OLD:
            assert untouched and line == "ultralytics/ is up to date", f"step {limit}"
        else:  # only in the last steps, in which any next command ends what was begun
            assert limit > steps / 2, f"step {limit}"
        finish(root)
        assert snapshot(root) == snapshot(undisturbed), f"step {limit} of {steps}"
        stands(root)
        shutil.rmtree(root)


def test_a_git_that_was_killed_leaves_its_locks(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    for name in ("index", "HEAD", "CHERRY_PICK_HEAD", "refs/heads/queue"):
        (checkout / SESSION / ".git" / f"{name}.lock").touch()
    assert go_on(checkout).outcome == "rebased"
    stands(checkout)


@can_kill
def test_a_git_that_was_killed_before_it_checked_out_the_release(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    git(checkout, "rebase", "--abort")
    onto = ["--onto", f"release/{NEW}", f"release/{OLD}", "queue"]
    git(checkout, "-c", "sequence.editor=kill -9 $PPID; true", "rebase", "--interactive", *onto)
    assert (checkout / SESSION / ".git" / "rebase-merge").is_dir()
    assert go_on(checkout).stop.reason == "conflict"
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    assert go_on(checkout).outcome == "rebased"
    stands(checkout)


def test_a_git_that_was_killed_between_its_two_lists(checkout):
    """A pick that is in neither is made all the same."""
    release(checkout, {TASKS: LOOK_ALIKE})
    assert start(checkout).stop.patch == WALK_PATCH
    todo = checkout / SESSION / ".git" / "rebase-merge" / "git-rebase-todo"
    text = todo.read_text()
    todo.write_text(re.sub(r"pick .*\n", "", text, count=1))
    assert todo.read_text() != text
    assert go_on(checkout).outcome == "rebased"
    stands(checkout)


def test_a_git_that_was_killed_after_its_commit(checkout):
    release(checkout, {TASKS: LOOK_ALIKE})
    assert start(checkout).stop.patch == WALK_PATCH
    notes = json.loads((checkout / SESSION / ".git" / "session.json").read_text())
    (checkout / SESSION / ".git" / "CHERRY_PICK_HEAD").write_text(notes["order"][WALK_PATCH] + "\n")
    assert go_on(checkout).outcome == "rebased"
    stands(checkout)


AGAIN = f"""
{RUN.rpartition("report = ")[0]}
session = root / {SESSION!r}
report = rebase.resume_rebase(root, "continue", print) if session.is_dir() else rebase.rebase(root, {NEW!r}, print)
"""


@pytest.mark.parametrize("conflict", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_on_small_disks(checkout, tmp_path, often, conflict):
    """What was carried so far, and a conflict that was resolved, are kept for the next run."""
    release(checkout, NEIGHBOUR if conflict else {})
    if conflict:
        assert start(checkout).outcome == "stopped"
        (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    disk = tmp_path / "disk"
    code = AGAIN.format(scripts=str(ROOT / "scripts"), root=str(disk), limit=NEVER, before=False)
    on_small_disks(checkout, disk, command(disk, resume=conflict), [sys.executable, "-c", code], often(5, 14))


@can_kill
@pytest.mark.nightly  # the test above kills it at chosen steps
@pytest.mark.parametrize("conflict", [False, True])
def test_killed_at_random_moments(checkout, tmp_path, often, chance, conflict):
    """What follows ends as if nothing had been; a conflict that was resolved need not be resolved again."""
    release(
        checkout,
        NEIGHBOUR if conflict else {TASKS: FILES[TASKS].replace("class Network:", "LIMIT = 3\n\n\nclass Network:")},
    )
    edit(checkout / "README.md", ("once it was", "and a line of the user's; once it was"))
    (checkout / "notes.txt").write_text("a file of the user's")
    if conflict:
        assert start(checkout).outcome == "stopped"
        (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    undisturbed = shutil.copytree(checkout, tmp_path / "undisturbed", symlinks=True)
    began = time.monotonic()
    subprocess.run(command(undisturbed, resume=conflict), check=True, capture_output=True)
    seconds, count = time.monotonic() - began, 0
    while count < often(2, 30):
        root = shutil.copytree(checkout, tmp_path / "größer 目录" / "killed", symlinks=True)
        count += killed_in_time(command(root, resume=conflict), seconds, chance)
        apply(root)
        if Pin.read(root).release == OLD:
            report = go_on(root) if (root / SESSION).is_dir() else start(root)
            assert report.outcome == "rebased", describe_rebase(report)
        assert snapshot(root) == snapshot(undisturbed)
        stands(root)
        shutil.rmtree(root)
