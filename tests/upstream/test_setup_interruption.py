"""Set-up or an export that is killed, or an export on a full disk, loses no edit, and the next run completes it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import can_kill, killed_in_time, mark_nightly, on_small_disks
from setup_checkout import (  # noqa: F401 - fixtures
    ODD,
    UNPATCHED,
    change_queue,
    checkout,
    fresh,
    laid_down,
    ok,
    patch_of,
    pristine,
    queue,
    replace,
    run,
    snapshot,
    tree,
    wheel,
)

from _upstream.pin import Pin
from _upstream.queue.tree import list_edited_files, manifest, read_stamp, tree_sha256


def test_export_on_small_disks(checkout, tmp_path, often):
    """Edits stay in place until they are in the queue."""
    replace(checkout / "ultralytics/utils/checks.py", "# this fork is renewed", "# this fork is refreshed")
    edit(checkout, list(MINE))
    export = [sys.executable, "-B", "scripts/upstream.py", "export"]
    on_small_disks(checkout, tmp_path / "disk", export, export, often(5, 14))


KILL = """
import os, signal
original, calls = os.replace, []
def replace(source, target):
    calls.append(target)
    if len(calls) == {number} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)
    if len(calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


RENAMES = (1, True), (1, False), (2, False), (4, False)


@can_kill
@pytest.mark.parametrize("number, before", mark_nightly(RENAMES, {(1, True), (2, False)}))
def test_killed_half_way_through_a_renewal(checkout, laid_down, tmp_path, number, before):
    """The renames are: the stamp, utils/__init__.py and utils/checks.py of the changed patch, the stamp, the repo."""
    edited = checkout / UNPATCHED
    edited.write_text(edited.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    content = edited.read_bytes()
    patch = patch_of(checkout, "Never-advise")
    replace(patch, "'git pull' and if", "'git  pull' and if")
    change_queue(checkout, "# this fork is renewed", "# this fork is refreshed", "Never-advise")
    (tmp_path / "sitecustomize.py").write_text(KILL.format(number=number, before=before))
    done = run(checkout, "apply", PYTHONPATH=str(tmp_path))
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    if number < 4:
        assert ("older than the queue" if (number, before) == (1, True) else "interrupted") in ok(checkout, "status")
        assert "run `python scripts/upstream.py apply` first" in run(checkout, "export").stderr
    ok(checkout, "apply")
    pin, files = Pin.read(checkout), manifest(checkout)
    assert edited.read_bytes() == content
    assert list_edited_files(checkout, read_stamp(checkout)["files"]) == [UNPATCHED]
    files[UNPATCHED] = read_stamp(checkout)["files"][UNPATCHED]
    assert tree_sha256(files) == pin.tree_sha256
    assert not list((checkout / ".upstream").glob("stage-*"))
    name = patch_of(checkout, "Never-advise").name
    ok(checkout, "export", "-m", "Mine")  # from the repository of the new queue
    assert b"# this fork is refreshed" in queue(checkout)[name] and len(queue(checkout)) == len(queue(laid_down)) + 1


@can_kill
@pytest.mark.parametrize("number", mark_nightly((1, 2, 150), {1, 150}))
def test_killed_half_way_through_the_first_run(fresh, wheel, laid_down, tmp_path, number):
    (tmp_path / "sitecustomize.py").write_text(KILL.format(number=number, before=False))
    done = run(fresh, "apply", PYTHONPATH=str(tmp_path), ULTRALYTICS_WHEEL=str(wheel))
    assert done.returncode == -signal.SIGKILL
    ok(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel))
    assert tree(fresh) == tree(laid_down)


@can_kill
def test_killed_twice_between_three_queues(checkout, tmp_path, laid_down):
    """Files of the second queue are nobody's edits when the first is asked for again after a third."""
    original = queue(checkout)
    (tmp_path / "sitecustomize.py").write_text(KILL.format(number=2, before=False))
    for word in ("refreshed", "rejuvenated"):
        for name, content in original.items():
            (checkout / "patches" / name).write_bytes(content)
        text = original[patch_of(checkout, "Never-advise").name].decode()
        patch_of(checkout, "Never-advise").write_text(text.replace("'git pull' and", f"'git pull' {word}"), "utf-8")
        change_queue(checkout, "# this fork is renewed", f"# this fork is {word}", "Never-advise")
        assert run(checkout, "apply", PYTHONPATH=str(tmp_path)).returncode == -signal.SIGKILL
    for name, content in original.items():
        (checkout / "patches" / name).write_bytes(content)
    ok(checkout, "apply")
    assert tree(checkout) == tree(laid_down)


MINE = {UNPATCHED: "# mine\n", "ultralytics/nn/extra.py": "# new\n", "notes.txt": "a file of the user's\n"}


def edit(root: Path, names: list[str]) -> dict[str, bytes]:
    """Edit files of the user's in place, or make them; returns what they hold."""
    for name in names:
        before = (root / name).read_text(encoding="utf-8") if (root / name).is_file() else ""
        (root / name).write_text(before + MINE[name], encoding="utf-8")
    return contents(root, names)


def contents(root: Path, names) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in names}


def timed(root: Path, *command: str, **environment: str) -> float:
    """Run a command that succeeds; returns its seconds."""
    began = time.monotonic()
    ok(root, *command, **environment)
    return time.monotonic() - began


def killed_at_random(root: Path, command: str, seconds: float, chance, **environment: str) -> bool:
    """Kill a command at some moment of the seconds that it takes, half of the times with a set-up beside it."""
    script = [sys.executable, str(root / "scripts" / "upstream.py")]
    none, beside = subprocess.DEVNULL, None
    if chance.random() < 0.5:
        beside = subprocess.Popen([*script, "apply"], env={**os.environ, **environment}, stdout=none, stderr=none)
    killed = killed_in_time([*script, command], seconds, chance, **environment)
    assert beside is None or beside.wait() == 0, "the set-up beside the one that was killed failed"
    return killed


@can_kill
@pytest.mark.nightly  # tests above kill it at chosen moments
@pytest.mark.parametrize("due", ["first run", "renewal"])
def test_set_up_killed_at_random_moments(fresh, checkout, wheel, tmp_path, often, chance, due):
    """The run after it, and one beside it, end in the recorded state; what the user has edited stays."""
    settings = {"ULTRALYTICS_WHEEL": str(wheel)}
    if due == "first run":
        begin, content = fresh, edit(fresh, [name for name in MINE if name != UNPATCHED])
    else:
        change_queue(checkout, "# this fork is renewed", "# this fork is refreshed", "Never-advise")
        begin, content = checkout, edit(checkout, list(MINE))
    undisturbed = shutil.copytree(begin, tmp_path / "undisturbed", symlinks=True)
    seconds, killed = timed(undisturbed, "apply", **settings), 0
    while killed < often(2, 30):
        root = shutil.copytree(begin, tmp_path / ODD / "killed", symlinks=True)
        killed += killed_at_random(root, "apply", seconds, chance, **settings)
        assert contents(root, content) == content
        assert run(root, "apply", **settings).returncode == 0
        assert tree(root) == tree(undisturbed) and read_stamp(root) == read_stamp(undisturbed)
        assert contents(root, content) == content
        assert sorted(file.name for file in (root / ".upstream").iterdir()) == ["lock", "repo", "wheels"]
        shutil.rmtree(root)


@can_kill
def test_export_killed_at_random_moments(checkout, tmp_path, often, chance):
    """The edits stay as they are, and the run after it writes them into the queue."""
    replace(checkout / "ultralytics/utils/checks.py", "# this fork is renewed", "# this fork is refreshed")
    content = edit(checkout, list(MINE))
    undisturbed = shutil.copytree(checkout, tmp_path / "undisturbed", symlinks=True)
    seconds, killed = timed(undisturbed, "export"), 0
    while killed < often(3, 60):
        root = shutil.copytree(checkout, tmp_path / ODD / "killed", symlinks=True)
        killed += killed_at_random(root, "export", seconds, chance)
        assert tree(root) == tree(undisturbed) and contents(root, content) == content
        done = run(root, "export")
        assert done.returncode == 0, done.stderr
        assert snapshot(root) == snapshot(undisturbed)
        assert ok(root, "apply") == "ultralytics/ is up to date"
        shutil.rmtree(root)
