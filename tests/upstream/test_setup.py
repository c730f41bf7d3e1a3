"""Set-up: what scripts/upstream.py lays down, what stops it, what survives it, and what it makes of edits in place."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import PYTHONS, can_kill, find_python, killed_in_time, mark_nightly, on_small_disks

from _upstream.fetch.wheel import download_wheel
from _upstream.pin import Pin, UpstreamError, queue_sha256
from _upstream.queue.apply import apply
from _upstream.queue.tree import list_edited_files, manifest, read_stamp, tree_sha256

ROOT = Path(__file__).resolve().parents[2]
WHOLE = [".gitignore", "LICENSE", "README.md", "cfg_custom", "hatch_build.py", "patches", "pyproject.toml", "scripts"]
OURS = "ultralytics/nn/AddModules/", "ultralytics/fork/"  # of the package
ODD = "my projects, größer 目录"  # a folder of each test's checkout: paths have spaces and letters beyond ASCII
TASKS = "ultralytics/nn/tasks.py"
UNPATCHED = "ultralytics/engine/results.py"  # in no patch
APPLY = "python scripts/upstream.py apply"
NO_REGISTRY = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def run(root: Path, *command: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess:
    """Run scripts/upstream.py of a checkout with the user's settings and these."""
    kept = {key: value for key, value in os.environ.items() if key != "ULTRALYTICS_WHEEL"}
    return subprocess.run(
        [python, str(root / "scripts" / "upstream.py"), *command],
        cwd=root.parent,
        env={**kept, **environment},
        capture_output=True,
        encoding="utf-8",
    )


def ok(root: Path, *command: str, **environment: str) -> str:
    """Run a command that succeeds; returns the line or lines it prints."""
    done = run(root, *command, **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.rstrip("\n")


def refused(root: Path, *command: str, **environment: str) -> str:
    """Run a command that fails in one line on stderr, with nothing in the checkout changed; returns the line."""
    before = snapshot(root)
    done = run(root, *command, **environment)
    assert done.returncode == 1 and not done.stdout
    assert one_line(done.stderr)
    assert snapshot(root) == before
    return done.stderr


def one_line(text: str) -> bool:
    return text.startswith("upstream.py: ") and text.count("\n") == 1 and "Traceback" not in text


def snapshot(root: Path) -> dict[str, bytes]:
    """Read every file of a checkout but the scratch folder and byte code."""
    files = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in {".upstream", "__pycache__", ".git"}]
        files.update({str(Path(folder, name).relative_to(root)): Path(folder, name).read_bytes() for name in names})
        files.update({str(Path(folder, name).relative_to(root)): b"" for name in folders})
    return files


def tree(root: Path) -> dict[str, bytes]:
    """Read the laid-down files: all under ultralytics/ but ours and the stamp."""
    files = snapshot(root)
    return {
        path: content
        for path, content in files.items()
        if path.startswith("ultralytics/") and not path.startswith(OURS) and path != "ultralytics/.addmodules.json"
    }


def queue(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (root / "patches").iterdir()}


def replace(file: Path, old: str, new: str) -> None:
    """Replace a text that occurs once."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def patch_of(root: Path, subject: str) -> Path:
    """Find a patch by the words of its file name."""
    (found,) = (root / "patches").glob(f"*-{subject}*")
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Upstream's wheel: the one that set-up has kept, else a download."""
    pin = Pin.read(ROOT)
    kept = ROOT / ".upstream" / "wheels" / pin.wheel
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == pin.wheel_sha256:
        return kept
    return download_wheel(pin.release, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """A checkout in which nothing is laid down, not to be written to."""
    root = tmp_path_factory.mktemp("pristine") / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in WHOLE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (root / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, root / name, **({"ignore": ignore} if copy is shutil.copytree else {}))
    for folder in OURS:
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    return root


@pytest.fixture(scope="session")
def laid_down(pristine, wheel, tmp_path_factory) -> Path:
    """A checkout after set-up, not to be written to."""
    root = tmp_path_factory.mktemp("laid-down") / "checkout"
    shutil.copytree(pristine, root)
    ok(root, "apply", ULTRALYTICS_WHEEL=str(wheel))
    subprocess.run(["git", "gc", "--quiet"], cwd=root / ".upstream" / "repo", check=True)  # fewer files to copy
    return root


@pytest.fixture
def fresh(pristine, tmp_path) -> Path:
    """A checkout of the test's own in which nothing is laid down."""
    return shutil.copytree(pristine, tmp_path / ODD / "fresh")


@pytest.fixture
def checkout(laid_down, tmp_path) -> Path:
    """A checkout of the test's own after set-up, which has kept the wheel."""
    return shutil.copytree(laid_down, tmp_path / ODD / "check out", symlinks=True)


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
def change_queue(root: Path, old: str, new: str, subject: str) -> None:
    """Change a line that a patch adds, and record the tree that follows."""
    replace(patch_of(root, subject), old, new)
    digest = re.search(r"patched tree has sha256 (\w+)", run(root, "apply").stderr)[1]
    pin = root / "patches" / "upstream.toml"
    pin.write_text(pin.read_text().replace(Pin.read(root).tree_sha256, digest))


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


# What stops set-up ----------------------------------------------------------------------------------------------------
@pytest.fixture(params=["fresh", "laid down"])
def due(request, pristine, laid_down, tmp_path) -> Path:
    """A checkout in which `apply` has work to do: all of it, or all but what a broken run would destroy."""
    root = tmp_path / "due"
    if request.param == "fresh":
        return shutil.copytree(pristine, root)
    shutil.copytree(laid_down, root, ignore=shutil.ignore_patterns(".upstream"))
    (root / "ultralytics" / "__init__.py").unlink()
    return root


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


# Errors of the operating system ---------------------------------------------------------------------------------------
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


def test_export_on_small_disks(checkout, tmp_path, often):
    """Edits stay in place until they are in the queue."""
    replace(checkout / "ultralytics/utils/checks.py", "# this fork is renewed", "# this fork is refreshed")
    edit(checkout, list(MINE))
    export = [sys.executable, "-B", "scripts/upstream.py", "export"]
    on_small_disks(checkout, tmp_path / "disk", export, export, often(5, 14))


# Killed half-way ------------------------------------------------------------------------------------------------------
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


# Export ---------------------------------------------------------------------------------------------------------------
def again(root: Path, pristine: Path, wheel: Path, tmp_path: Path) -> dict[str, bytes]:
    """Lay down the queue of a checkout in a fresh one, and export it there; returns the tree."""
    other = shutil.copytree(pristine, tmp_path / "again")
    shutil.rmtree(other / "patches")
    shutil.copytree(root / "patches", other / "patches")
    ok(other, "apply", ULTRALYTICS_WHEEL=str(wheel))
    assert tree_sha256(manifest(other)) == Pin.read(other).tree_sha256
    ok(other, "export")
    assert queue(other) == queue(root)
    return tree(other)


def exported(root: Path, *arguments: str) -> str:
    """Export; the edited tree is the recorded one afterwards, and stays as it is."""
    before = tree(root)
    line = ok(root, "export", *arguments)
    assert tree(root) == before
    assert ok(root, "apply") == "ultralytics/ is up to date"
    assert "as recorded, sha256" in ok(root, "status")
    return line


@pytest.mark.parametrize("scratch", ["kept", "lost"])
def test_export_of_no_edits_changes_not_one_byte(checkout, wheel, scratch):
    before = snapshot(checkout)
    if scratch == "lost":
        shutil.rmtree(checkout / ".upstream")
    assert ok(checkout, "export", ULTRALYTICS_WHEEL=str(wheel)).startswith("no edits under ultralytics/")
    assert snapshot(checkout) == before


def test_an_edit_of_a_patchs_line_is_folded_into_it(checkout, pristine, wheel, tmp_path):
    replace(checkout / "ultralytics/utils/checks.py", "# this fork is renewed", "# this fork is refreshed")
    before = queue(checkout)
    assert exported(checkout) == "1 edited file: 1 hunks folded into their patches, 0 in a new patch"
    after, name = queue(checkout), patch_of(checkout, "Never-advise").name
    text, now = ({n: re.sub(rb"(?m)^index .*$", b"", content) for n, content in q.items()} for q in (before, after))
    assert sorted(n for n in text if now[n] != text[n]) == [name, "upstream.toml"] and now.keys() == text.keys()
    assert after[name] == before[name].replace(b"renewed", b"refreshed").replace(*index_lines(before, after, name))
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def index_lines(before: dict, after: dict, name: str) -> tuple[bytes, bytes]:
    """Give the `index` line of the one file of a patch whose content differs, before and after."""
    pairs = zip(*(re.findall(rb"(?m)^index .*$", queue[name]) for queue in (before, after)))
    ((old, new),) = [(old, new) for old, new in pairs if old != new]
    return old, new


@pytest.mark.parametrize("where", mark_nightly(("before", "after"), {"before"}))
def test_an_edit_beside_a_patchs_line_is_folded_into_it(checkout, pristine, wheel, tmp_path, where):
    line = "@fork.install  # this fork is renewed by `git pull`\n"
    new = f"# mine\n{line}" if where == "before" else f"{line}# mine\n"
    replace(checkout / "ultralytics/utils/checks.py", line, new)
    assert "1 hunks folded" in exported(checkout)
    assert b"+# mine\n" in queue(checkout)[patch_of(checkout, "Never-advise").name]
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_an_edit_elsewhere_becomes_a_new_patch(checkout, pristine, wheel, tmp_path):
    edited = checkout / UNPATCHED
    edited.write_text("# mine\n" + edited.read_text(encoding="utf-8") + "# mine too\n", encoding="utf-8")
    before = queue(checkout)
    assert exported(checkout) == "1 edited file: 0 hunks folded into their patches, 2 in a new patch"
    (name,) = queue(checkout).keys() - before.keys()
    assert name == f"{len(before):04d}-Change-ultralytics-engine-results.py.patch"
    assert {n: queue(checkout)[n] for n in before if n != "upstream.toml"} == {
        n: content for n, content in before.items() if n != "upstream.toml"
    }
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_a_new_patch_takes_the_message(checkout):
    replace(checkout / "ultralytics/utils/checks.py", "# this fork is renewed", "# this fork is refreshed")
    before = queue(checkout)
    exported(checkout, "--new", "-m", "Say refreshed – not renewed\n\nWhy: a test.\n")
    (name,) = queue(checkout).keys() - before.keys()
    text = queue(checkout)[name].decode()
    assert "Why: a test." in text and "+@fork.install  # this fork is refreshed" in text


def test_edits_all_over(checkout, pristine, wheel, tmp_path):
    """Insertions above and below, in several patches' lines and outside of all: each at its own place in the end."""
    tasks, checks = checkout / TASKS, checkout / "ultralytics/utils/checks.py"
    text = tasks.read_text(encoding="utf-8")
    text = "# first\n# second\n" + text + "# last\n"
    text = text.replace("class RTDETRDetectionModel(", "# elsewhere\n\nclass RTDETRDetectionModel(")
    text = text.replace("elif m in fork.READERS:", "elif m in fork.READERS:  # rows of ours")
    text = text.replace("        fork.index_layer(m_,", "        # one\n        # two\n        fork.index_layer(m_,")
    tasks.write_text(text, encoding="utf-8")
    replace(checks, "# this fork is renewed", "# this fork is refreshed")
    checks.write_text(checks.read_text(encoding="utf-8") + "\n# no line end", encoding="utf-8")
    (checkout / "ultralytics/utils/triton.py").unlink()
    (checkout / UNPATCHED).write_text("# nothing left\n")
    (checkout / "ultralytics/nn/extra.py").write_text("# new\n")
    (checkout / "ultralytics/nn/notes.log").write_text("no source\n")
    line = exported(checkout)
    assert line.startswith("5 edited files: ")
    queued = {name: content.decode() for name, content in queue(checkout).items()}
    assert "# rows of ours" in queued[patch_of(checkout, "Read-rows").name]
    assert "+        # two" in queued[patch_of(checkout, "Run-multi-output-backbones.patch").name]
    assert "refreshed" in queued[patch_of(checkout, "Never-advise").name]
    mine = tree(checkout)
    del mine["ultralytics/nn/notes.log"]
    assert again(checkout, pristine, wheel, tmp_path) == mine
    shutil.rmtree(checkout / ".upstream" / "repo")
    before = queue(checkout)
    exported(checkout)
    assert queue(checkout) == before


def test_deleting_a_file(checkout, pristine, wheel, tmp_path):
    (checkout / "ultralytics/utils/triton.py").unlink()
    exported(checkout, "-m", "Drop triton")
    assert "deleted file mode" in patch_of(checkout, "Drop-triton").read_text(encoding="utf-8")
    assert "ultralytics/utils/triton.py" not in again(checkout, pristine, wheel, tmp_path)


def test_taking_a_patch_back_drops_it(checkout, pristine, wheel, tmp_path):
    checks, init = checkout / "ultralytics/utils/checks.py", checkout / "ultralytics/utils/__init__.py"
    hook = "from ultralytics.fork.hooks import checks as fork\n@fork.install  # this fork is renewed by `git pull`\n"
    replace(checks, hook, "")
    replace(init, "'git pull' and if", "'pip install -U ultralytics' and if")
    before = queue(checkout)
    exported(checkout)
    assert len(queue(checkout)) == len(before) - 1 and not list((checkout / "patches").glob("*Never-advise*"))
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_files_that_are_not_ascii(checkout, pristine, wheel, tmp_path):
    file = next(
        path for path in sorted((checkout / "ultralytics").rglob("*.py")) if "🚀".encode() in path.read_bytes()[200:]
    )
    text = file.read_text(encoding="utf-8").replace("🚀", "🛰️ é")
    file.write_text(text, encoding="utf-8")
    latin = checkout / UNPATCHED
    latin.write_bytes(latin.read_bytes() + "# é\n".encode("latin-1"))
    picture = checkout / "ultralytics/assets/bus.jpg"
    picture.write_bytes(picture.read_bytes()[::-1])
    exported(checkout, "-m", "Größe")
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_export_of_an_older_tree_is_refused(checkout):
    patch_of(checkout, "YOLOEModel").unlink()
    assert f"run `{APPLY}` first" in refused(checkout, "export")


def test_every_line_of_every_patch_edited_at_once(checkout, pristine, wheel, tmp_path):
    for path, added in added_lines(checkout).items():
        lines = (checkout / path).read_text(encoding="utf-8").split("\n")
        edited = [line + "  # edited" if line in added else line for line in lines]
        (checkout / path).write_text("\n".join(edited), encoding="utf-8")
    before = queue(checkout)
    assert "0 in a new patch" in exported(checkout)
    assert queue(checkout).keys() == before.keys()
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def added_lines(root: Path) -> dict[str, set[str]]:
    """Collect the lines that the queue adds, by file."""
    lines: dict[str, set[str]] = {}
    for patch in sorted((root / "patches").glob("*.patch")):
        for part in patch.read_text(encoding="utf-8").split("\ndiff --git a/")[1:]:
            path = part.split(" ", 1)[0]
            lines.setdefault(path, set()).update(re.findall(r"(?m)^\+(?!\+\+ )(.+)$", part))
    return lines


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
