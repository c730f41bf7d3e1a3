"""Set-up that a wheel, a patch, the pin or the machine stops says which in one line, and changes nothing."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from conftest import mark_nightly
from setup_checkout import (  # noqa: F401 - fixtures
    NO_REGISTRY,
    TASKS,
    due,
    fresh,
    laid_down,
    patch_of,
    pristine,
    refused,
    replace,
    wheel,
)

from _upstream.pin import Pin


@pytest.mark.parametrize("setting", mark_nightly(("PIP_NO_INDEX", "PIP_INDEX_URL"), {"PIP_INDEX_URL"}))
def test_no_network(due, setting):
    settings = {**NO_REGISTRY, "PIP_RETRIES": "0"}
    if setting == "PIP_INDEX_URL":
        settings.pop("PIP_NO_INDEX")
        settings["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"  # nobody listens there
        settings["PIP_EXTRA_INDEX_URL"] = ""
    line = refused(due, "apply", **settings)
    release = Pin.read(due).release
    assert f"could not download ultralytics=={release}" in line and "ULTRALYTICS_WHEEL" in line


def test_no_pip(fresh, tmp_path):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("")
    assert "could not download" in refused(fresh, "apply", PYTHONPATH=str(tmp_path))


def test_wrong_hash(due, wheel, tmp_path):
    tampered = tmp_path / wheel.name
    tampered.write_bytes(wheel.read_bytes() + b"\0")
    line = refused(due, "apply", ULTRALYTICS_WHEEL=str(tmp_path))
    pin = Pin.read(due)
    assert hashlib.sha256(tampered.read_bytes()).hexdigest() in line and pin.wheel_sha256 in line


def test_no_such_wheel(fresh, tmp_path):
    assert "ULTRALYTICS_WHEEL=" in refused(fresh, "apply", ULTRALYTICS_WHEEL=str(tmp_path / "none.whl"))
    assert "ULTRALYTICS_WHEEL=" in refused(fresh, "apply", ULTRALYTICS_WHEEL=str(tmp_path))


def pin_to(root: Path, wheel: Path) -> None:
    """Pin a wheel whatever is in it."""
    file = root / "patches" / "upstream.toml"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    file.write_text(file.read_text().replace(Pin.read(root).wheel_sha256, digest))


@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_truncated_wheel(fresh, wheel, tmp_path, keep):
    short = tmp_path / wheel.name
    content = wheel.read_bytes()
    short.write_bytes(content[: int(keep * len(content))])
    assert "pinned is" in refused(fresh, "apply", ULTRALYTICS_WHEEL=str(short))
    pin_to(fresh, short)
    assert "damaged archive" in refused(fresh, "apply", ULTRALYTICS_WHEEL=str(short))


def test_damaged_wheel(fresh, wheel, tmp_path):
    damaged = tmp_path / wheel.name
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    pin_to(fresh, damaged)
    assert "damaged archive" in refused(fresh, "apply", ULTRALYTICS_WHEEL=str(damaged))


@pytest.mark.parametrize(
    "name", ["../evil.py", "ultralytics/../../evil.py", "/evil.py", "ultralytics\\..\\evil.py", "link"]
)
def test_unsafe_wheel(fresh, wheel, tmp_path, name):
    unsafe = tmp_path / wheel.name
    with zipfile.ZipFile(unsafe, "w") as archive:
        archive.writestr("ultralytics/__init__.py", "")
        entry = zipfile.ZipInfo("ultralytics/link" if name == "link" else name)
        entry.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        archive.writestr(entry, "../../evil.py")
    pin_to(fresh, unsafe)
    line = refused(fresh, "apply", ULTRALYTICS_WHEEL=str(unsafe))
    assert ("symbolic link 'ultralytics/link'" if name == "link" else "unsafe path") in line
    assert not list(tmp_path.rglob("evil.py"))


def break_patch(root: Path, subject: str, line: str) -> str:
    """Change a line of a patch so that it no longer fits; returns the patch's file name."""
    patch = patch_of(root, subject)
    replace(patch, f"\n{line}\n", f"\n{line} # not upstream's\n")
    return f"patches/{patch.name}"


@pytest.mark.parametrize(
    "subject, line, file, hunk",
    [
        ("Read-rows", "     v8SegmentationLoss,", TASKS, 1),
        ("Read-rows", "             if m is HGBlock:", TASKS, 2),
        ("Read-rows", " def yaml_model_load(path):", TASKS, 3),
        ("Run-multi-output-backbones.patch", "             if m.i in embed:", TASKS, None),
        ("Never-advise", " def check_pip_update_available():", "utils/checks.py", 1),
        ("YOLOEModel", "                 if cls_pe.shape[0] != b or m.export:", TASKS, 1),
    ],
)
def test_a_patch_that_does_not_apply(fresh, wheel, subject, line, file, hunk):
    if hunk is None:  # a line that several hunks have: the last of them
        patch = patch_of(fresh, subject)
        head, line, tail = patch.read_text(encoding="utf-8").rpartition(f"\n{line}\n")
        patch.write_text(f"{head}\n+{line.strip()} # not upstream's\n{tail}", encoding="utf-8")
        name, hunk = f"patches/{patch.name}", 3
    else:
        name = break_patch(fresh, subject, line)
    message = refused(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel))
    assert name in message and file in message and f"hunk {hunk} (@@ -" in message


def test_a_patch_of_a_file_that_upstream_has_not(fresh, wheel):
    patch = patch_of(fresh, "Never-advise")
    patch.write_text(patch.read_text(encoding="utf-8").replace("utils/checks.py", "utils/inspections.py"), "utf-8")
    line = refused(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel))
    assert f"patches/{patch.name} does not apply to ultralytics/utils/inspections.py: upstream has no such" in line


@pytest.mark.parametrize("text", [b"", b"no patch\n", b"\xff\xfe\n", None], ids=["empty", "text", "bytes", "cut"])
def test_a_patch_that_is_none(fresh, wheel, text):
    patch = patch_of(fresh, "YOLOEModel")
    patch.write_bytes(patch.read_bytes()[:-80] if text is None else text)
    assert f"patches/{patch.name}" in refused(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel))


@pytest.mark.parametrize("text", [None, b"release = ", b'release = "8.4.0"\n', b"\xff"])
def test_a_broken_pin(fresh, wheel, text):
    pin = fresh / "patches" / "upstream.toml"
    pin.unlink()
    if text is not None:
        pin.write_bytes(text)
    for command in ("apply", "status", "export"):
        assert "upstream.toml" in refused(fresh, command, ULTRALYTICS_WHEEL=str(wheel))


def test_a_queue_that_is_not_the_recorded_one(fresh, wheel):
    patch_of(fresh, "YOLOEModel").unlink()
    line = refused(fresh, "apply", ULTRALYTICS_WHEEL=str(wheel))
    assert "the patched tree has sha256" in line and "upstream.toml records" in line


def test_no_git(due, wheel, tmp_path):
    line = refused(due, "apply", ULTRALYTICS_WHEEL=str(wheel), PATH=str(tmp_path))
    assert "git was not found" in line
