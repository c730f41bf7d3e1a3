"""An error of the operating system in the middle of set-up, such as a full disk, puts everything back."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest
from setup_checkout import (  # noqa: F401 - fixtures
    TASKS,
    UNPATCHED,
    due,
    fresh,
    laid_down,
    ok,
    one_line,
    pristine,
    queue,
    snapshot,
    tree,
    wheel,
)

from _upstream.pin import Pin, UpstreamError
from _upstream.queue.apply import apply
from _upstream.queue.tree import list_edited_files, manifest, read_stamp, tree_sha256


def fail_at(monkeypatch, module, name: str, number: int, code: int, only: str = "") -> None:
    """Let a function of a module raise an OSError at its `number`th call that has `only` in its arguments."""
    original, calls = getattr(module, name), []

    def stub(*args, **kwargs):
        if only in " ".join(map(str, args)):
            calls.append(args)
            if len(calls) == number:
                raise OSError(code, os.strerror(code), str(args[-1]))
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, stub)


FULL = ("the disk is full", errno.ENOSPC)
READ_ONLY = ("set-up needs a writable checkout", errno.EROFS)
DENIED = ("set-up needs a writable checkout", errno.EACCES)


@pytest.mark.parametrize(
    "says, code, where, name, number, only",
    [
        (*FULL, "os", "mkdir", 1, "stage-"),  # making the stage
        (*FULL, "subprocess", "run", 3, " 'am', "),  # in the middle of the queue
        pytest.param(*FULL, "shutil", "copyfile", 3, "stage-", marks=pytest.mark.nightly),  # staging the tree
        (*FULL, "os", "replace", 1, ".addmodules.part"),  # the stamp that says "pending"
        pytest.param(*FULL, "os", "replace", 3, "__init__.py", marks=pytest.mark.nightly),
        pytest.param(*FULL, "os", "replace", 2, ".addmodules.part", marks=pytest.mark.nightly),  # after all files
        (*READ_ONLY, "os", "mkdir", 1, ".upstream"),
        pytest.param(*READ_ONLY, "os", "replace", 1, ".addmodules.part", marks=pytest.mark.nightly),
        (*DENIED, "os", "replace", 3, "__init__.py"),
    ],
)
def test_an_error_half_way_puts_everything_back(due, wheel, monkeypatch, says, code, where, name, number, only):
    if due.joinpath(TASKS).exists():  # some twenty files to renew, and one to keep
        for file in sorted((due / "ultralytics").glob("*/__init__.py")):
            file.unlink()
        (due / UNPATCHED).write_bytes(b"# mine\n")
    before = snapshot(due)
    monkeypatch.setenv("ULTRALYTICS_WHEEL", str(wheel))
    with monkeypatch.context() as patch:
        fail_at(patch, sys.modules[where], name, number, code, only)
        with pytest.raises(UpstreamError, match=says) as e:
            apply(due)
    assert "\n" not in str(e.value)
    assert snapshot(due) == before
    assert [file.name for file in (due / ".upstream").glob("stage-*")] == []
    apply(due)
    pin, files = Pin.read(due), manifest(due)
    if UNPATCHED in list_edited_files(due, read_stamp(due)["files"]):
        assert (due / UNPATCHED).read_bytes() == b"# mine\n"
    else:
        assert tree_sha256(files) == pin.tree_sha256


def test_what_is_kept_for_the_next_run_is_no_condition(fresh, wheel, monkeypatch, laid_down):
    """The disk fills up after the last file of the tree."""
    monkeypatch.setenv("ULTRALYTICS_WHEEL", str(wheel))
    fail_at(monkeypatch, os, "replace", 1, errno.ENOSPC, ".upstream/repo")
    apply(fresh)
    assert tree(fresh) == tree(laid_down)
    assert not (fresh / ".upstream" / "repo").exists()
    ok(fresh, "export", ULTRALYTICS_WHEEL=str(wheel))
    assert queue(fresh) == queue(laid_down)


@pytest.mark.parametrize("mount", ["read-only", "256k", "6m", "10m"])
def test_a_real_file_system(pristine, wheel, tmp_path, mount):
    """A read-only mount, and disks with little space left, full early and late, in a mount name space of their own."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    left = {"k": 1, "m": 1024}.get(mount[-1], 0) * int(mount[:-1]) if mount != "read-only" else 0  # KiB
    option = "ro" if mount == "read-only" else f"size=$(($(du -sk . | cut -f1) + {left}))k"
    script = f"""
        mount -t tmpfs -o size=100m none {tmp_path} && cp -r {pristine}/. {tmp_path} && cd {tmp_path} || exit 9
        mount -o remount,{option} {tmp_path} || exit 9
        find . -path ./.upstream -prune -o -type f -exec sha256sum {{}} + | sort > /dev/shm/$$.before
        "$PYTHON" -B scripts/upstream.py apply; status=$?
        find . -path ./.upstream -prune -o -type f -exec sha256sum {{}} + | sort > /dev/shm/$$.after
        cmp /dev/shm/$$.before /dev/shm/$$.after || status=8
        rm /dev/shm/$$.before /dev/shm/$$.after
        exit $status
    """
    environment = {**os.environ, "ULTRALYTICS_WHEEL": str(wheel), "PYTHON": sys.executable}
    command = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 9:
        pytest.fail(done.stderr)
    assert done.returncode == 1 and one_line(done.stderr), done.stderr + done.stdout
    assert ("writable checkout" if mount == "read-only" else "the disk is full") in done.stderr
