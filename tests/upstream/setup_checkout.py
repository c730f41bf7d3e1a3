"""A checkout before and after set-up, the commands that are run in it, and what they print and leave."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from _upstream.fetch.wheel import download_wheel
from _upstream.pin import Pin

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


def change_queue(root: Path, old: str, new: str, subject: str) -> None:
    """Change a line that a patch adds, and record the tree that follows."""
    replace(patch_of(root, subject), old, new)
    digest = re.search(r"patched tree has sha256 (\w+)", run(root, "apply").stderr)[1]
    pin = root / "patches" / "upstream.toml"
    pin.write_text(pin.read_text().replace(Pin.read(root).tree_sha256, digest))


@pytest.fixture(params=["fresh", "laid down"])
def due(request, pristine, laid_down, tmp_path) -> Path:
    """A checkout in which `apply` has work to do: all of it, or all but what a broken run would destroy."""
    root = tmp_path / "due"
    if request.param == "fresh":
        return shutil.copytree(pristine, root)
    shutil.copytree(laid_down, root, ignore=shutil.ignore_patterns(".upstream"))
    (root / "ultralytics" / "__init__.py").unlink()
    return root
