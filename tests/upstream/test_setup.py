"""Set-up lays down the recorded tree, keeps what the user has edited, and says what is laid down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import PYTHONS, find_python, mark_nightly
from setup_checkout import (  # noqa: F401 - fixtures
    APPLY,
    NO_REGISTRY,
    TASKS,
    UNPATCHED,
    change_queue,
    checkout,
    fresh,
    laid_down,
    ok,
    patch_of,
    pristine,
    queue,
    refused,
    snapshot,
    tree,
    wheel,
)

from _upstream.pin import Pin, queue_sha256
from _upstream.queue.tree import manifest, tree_sha256


# Apply ----------------------------------------------------------------------------------------------------------------
def test_apply_lays_down_the_recorded_tree(laid_down, pristine):
    pin = Pin.read(laid_down)
    assert tree_sha256(manifest(laid_down)) == pin.tree_sha256
    before, after = snapshot(pristine), snapshot(laid_down)
    assert {path: after[path] for path in before} == before, "set-up changed a tracked file"
    assert "ultralytics/__init__.py" in after and len(tree(laid_down)) > 300


def test_the_tree_is_upstream_but_for_the_patched_files(laid_down, wheel):
    patched = set(re.findall(r"(?m)^\+\+\+ b/(\S+)", "".join(t.decode() for t in queue(laid_down).values())))
    with zipfile.ZipFile(wheel) as archive:
        theirs = {name: archive.read(name) for name in archive.namelist() if name.startswith("ultralytics/")}
    mine = {path: content for path, content in tree(laid_down).items() if not (laid_down / path).is_dir()}
    assert mine.keys() == theirs.keys()
    assert {path for path in mine if mine[path] != theirs[path]} == patched


def test_apply_is_idempotent(checkout):
    before, times = snapshot(checkout), (checkout / TASKS).stat().st_mtime_ns
    assert ok(checkout, "apply") == "ultralytics/ is up to date"
    assert snapshot(checkout) == before and (checkout / TASKS).stat().st_mtime_ns == times


def test_apply_leaves_no_scratch(checkout):
    assert sorted(file.name for file in (checkout / ".upstream").iterdir()) == ["lock", "repo", "wheels"]


def test_the_wheel_is_found_where_the_user_puts_it(fresh, wheel, laid_down, tmp_path):
    (fresh / "wheels").mkdir()
    shutil.copyfile(wheel, fresh / "wheels" / wheel.name)
    ok(fresh, "apply", **NO_REGISTRY)
    assert tree(fresh) == tree(laid_down)
    shutil.rmtree(fresh / ".upstream")
    shutil.rmtree(fresh / "wheels")
    (fresh / "ultralytics" / "__init__.py").unlink()
    other = shutil.copyfile(wheel, tmp_path / "renamed.whl")
    ok(fresh, "apply", ULTRALYTICS_WHEEL=str(other), **NO_REGISTRY)
    (fresh / "ultralytics" / "__init__.py").unlink()
    other.unlink()
    ok(fresh, "apply", **NO_REGISTRY)  # from the wheel that the run before kept
    assert tree(fresh) == tree(laid_down)


def test_a_file_that_was_deleted_is_laid_down_again(checkout, laid_down):
    (checkout / "ultralytics" / "__init__.py").unlink()
    shutil.rmtree(checkout / "ultralytics" / "utils")
    assert "missing ultralytics/__init__.py" in ok(checkout, "status")
    ok(checkout, "apply", **NO_REGISTRY)
    assert tree(checkout) == tree(laid_down)


def test_a_changed_queue_is_laid_down_again(checkout, laid_down):
    """A pull that drops the last patch; then one that brings it back."""
    patch, pin = sorted((checkout / "patches").glob("*.patch"))[-1], checkout / "patches" / "upstream.toml"
    text, recorded = patch.read_bytes(), pin.read_text()
    patch.unlink()
    assert "is older than" not in ok(checkout, "status") and "older than the queue" in ok(checkout, "status")
    line = refused(checkout, "apply", **NO_REGISTRY)  # upstream.toml records another tree
    pin.write_text(recorded.replace(Pin.read(checkout).tree_sha256, re.search("sha256 (\\w+)", line)[1]))
    ok(checkout, "apply", **NO_REGISTRY)
    paths = re.findall(r"(?m)^\+\+\+ b/(\S+)", text.decode())
    old, new = tree(laid_down), tree(checkout)
    assert old.keys() == new.keys() and {name for name in old if old[name] != new[name]} == set(paths)
    patch.write_bytes(text)
    pin.write_text(recorded)
    ok(checkout, "apply", **NO_REGISTRY)
    assert tree(checkout) == tree(laid_down)


def test_line_ends_do_not_matter(fresh, wheel, laid_down):
    """All files as git checks them out on Windows where nothing tells it otherwise."""
    for file in filter(Path.is_file, fresh.rglob("*")):
        content = file.read_bytes()
        if b"\0" not in content:
            file.write_bytes(content.replace(b"\n", b"\r\n"))
    ok(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel))
    assert tree(fresh) == tree(laid_down)
    assert queue_sha256(fresh) == queue_sha256(laid_down)
    ok(fresh, "export")
    assert queue(fresh) == queue(laid_down)


@pytest.mark.parametrize("version", mark_nightly(PYTHONS, (PYTHONS[0], PYTHONS[-1])))
def test_each_python(fresh, wheel, laid_down, version):
    python = find_python(version)
    ok(fresh, "apply", python=python, ULTRALYTICS_WHEEL=str(wheel))
    assert tree(fresh) == tree(laid_down)
    assert "as recorded, sha256" in ok(fresh, "status", python=python)
    ok(fresh, "export", python=python)
    assert queue(fresh) == queue(laid_down)


def test_the_users_git_settings_do_not_matter(fresh, wheel, laid_down, tmp_path):
    config = tmp_path / "gitconfig"
    config.write_text("[core]\n\tautocrlf = true\n[commit]\n\tgpgsign = true\n[diff]\n\tnoprefix = true\n[user]\n")
    environment = {"GIT_CONFIG_GLOBAL": str(config), "GIT_DIR": str(tmp_path), "GIT_INDEX_FILE": str(config)}
    ok(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel), **environment)
    assert tree(fresh) == tree(laid_down)
    ok(fresh, "export", **environment)
    assert queue(fresh) == queue(laid_down)


def test_two_at_once(fresh, wheel, laid_down):
    command = [sys.executable, str(fresh / "scripts" / "upstream.py"), "apply"]
    environment = {**os.environ, "ULTRALYTICS_WHEEL": str(wheel)}
    both = [subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    done = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], done
    assert sorted("up to date" in out for out, _ in done) == [False, True]
    assert tree(fresh) == tree(laid_down)


# Edits of the user ----------------------------------------------------------------------------------------------------
def test_an_edit_that_the_queue_does_not_touch_is_kept(checkout):
    edited = checkout / UNPATCHED
    edited.write_text(edited.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    content = edited.read_bytes()
    assert "kept 1 edited file: " in ok(checkout, "apply")
    change_queue(checkout, "# this fork is renewed", "# this fork is refreshed", "Never-advise")
    assert ok(checkout, "apply").endswith(f"kept 1 edited file: {UNPATCHED}")
    assert edited.read_bytes() == content
    assert "# this fork is refreshed" in (checkout / "ultralytics/utils/checks.py").read_text(encoding="utf-8")
    assert f"edited {UNPATCHED}" in ok(checkout, "status")


def test_an_edit_that_the_queue_would_overwrite_is_refused_by_name(checkout):
    edited = checkout / "ultralytics/utils/checks.py"
    edited.write_text(edited.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    change_queue(checkout, "# this fork is renewed", "# this fork is refreshed", "Never-advise")
    line = refused(checkout, "apply")
    assert "ultralytics/utils/checks.py was edited" in line and f"{APPLY} --discard-edits" in line
    ok(checkout, "apply", "--discard-edits")
    assert "# mine" not in edited.read_text(encoding="utf-8")
    assert "# this fork is refreshed" in edited.read_text(encoding="utf-8")


def test_discarding_edits(checkout, laid_down):
    edited = checkout / UNPATCHED
    edited.write_text("", encoding="utf-8")
    ok(checkout, "apply", "--discard-edits")
    assert tree(checkout) == tree(laid_down)


def test_a_file_that_is_in_the_way_is_refused_by_name(fresh, wheel):
    """One of the user's own, where upstream has one."""
    (fresh / "ultralytics" / "__init__.py").write_text("mine = True\n")
    assert "ultralytics/__init__.py was edited" in refused(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel))


# Status ---------------------------------------------------------------------------------------------------------------
def test_status_counts_the_changed_lines(laid_down):
    text = ok(laid_down, "status")
    total = int(re.search(r"(\d+) lines changed in all", text)[1])
    patches = sorted((laid_down / "patches").glob("*.patch"))
    counts = {}
    for patch in patches:
        numbers = subprocess.run(["git", "apply", "--numstat", str(patch)], capture_output=True, text=True).stdout
        counts[patch.name] = sum(int(n) for row in numbers.splitlines() for n in row.split("\t")[:2])
    assert {name: int(n) for n, name in re.findall(r"(?m)^ +(\d+) lines  (\S+)$", text)} == counts
    assert total == sum(counts.values())
    modules = [n for name, n in counts.items() if name < "0010"]  # hooks for modules; those behind are for training
    assert sum(modules) < 40 and max(counts.values()) <= 15


def test_status_of_nothing_laid_down(fresh):
    assert f"missing; `{APPLY}`" in ok(fresh, "status")


# What the user sees ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", mark_nightly(("model", "checks"), {"checks"}))
def test_a_stale_tree_says_so_in_one_line(checkout, tmp_path, how):
    patch = patch_of(checkout, "YOLOEModel")
    patch.write_text(patch.read_text(encoding="utf-8").replace("Why:", "Because:"), encoding="utf-8")
    code = {
        "model": "from ultralytics import YOLO",
        "checks": "import sys; sys.argv[1:] = ['checks']; from ultralytics.cfg import entrypoint; entrypoint()",
    }[how]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "YOLO_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if f"`{APPLY}`" in line]
    assert len(lines) == 1  # of `yolo checks`, where it describes the fork
    assert all(str(checkout) in line for line in lines)
