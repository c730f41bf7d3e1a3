"""A checkout whose queue of patches is on a made-up release, and what the tests of the rebase do with it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from _upstream.pin import Pin
from _upstream.queue import rebase, rebase_report
from _upstream.queue.apply import apply
from _upstream.queue.export import export
from _upstream.queue.rebase import resume_rebase
from _upstream.queue.tree import manifest, tree_sha256
from _upstream.verify.build_models import Verdict

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "9.0.0", "9.1.0"
TASKS, CHECKS = "ultralytics/nn/tasks.py", "ultralytics/utils/checks.py"
SESSION = ".upstream/rebase"

# The made-up upstream. Names and lines are its own; three patches change one line each, in three functions
FILES = {
    "ultralytics/__init__.py": '__version__ = "9.0.0"\n',
    "ultralytics/nn/__init__.py": "",
    "ultralytics/nn/block.py": "class Block:\n    def forward(self, x):\n        return x\n",
    TASKS: """\
from ultralytics.nn.block import Block


class Network:
    \"\"\"A list of layers.\"\"\"

    def walk(self, x):
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        return seen

    def merge(self):
        for layer in self.layers:
            layer.merge()
        return self

    def measure(self):
        total = 0
        for layer in self.layers:
            total += layer.size
        return total


def build(rows):
    layers = []
    for row in rows:
        name, count = row
        layers += [Block()] * count
    return layers
""",
    CHECKS: """\
import glob


def find(name):
    here = glob.glob(name)
    there = glob.glob("share/" + name)
    found = here or there
    return found


def count(names):
    return len(names)
""",
}
WALK = ("            x = layer(x)\n", "            x = ours(layer, x)\n")
BUILD = ("        name, count = row\n", "        name, count = row\n        name = ours_too(name)\n")
FIND = ("    found = here or there\n", '    found = here or there or glob.glob("ours/" + name)\n')
PATCHES = [("Walk over ours", TASKS, WALK), ("Build ours", TASKS, BUILD), ("Find ours", CHECKS, FIND)]
WALK_PATCH, BUILD_PATCH, FIND_PATCH = "0001-Walk-over-ours.patch", "0002-Build-ours.patch", "0003-Find-ours.patch"

PYPROJECT = f"""\
[project]
version = "{OLD}+addmodules.3"
dependencies = [
  # Upstream's own
  "alpha>=1,!=1.5; platform_system == 'Darwin'",
  "beta>=2",
  # Ours
  "einops>=0.7",
]
"""
NEEDS = {
    OLD: ['alpha!=1.5,>=1; platform_system == "Darwin"', "beta>=2"],
    NEW: ['alpha!=1.5,>=1; platform_system == "Darwin"', "beta>=3", "gamma", 'delta; extra == "export"'],
}


def make_wheel(folder: Path, release: str, files: dict[str, str]) -> Path:
    """Write a release's wheel."""
    wheel = folder / f"ultralytics-{release}-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {need}\n" for need in NEEDS.get(release, []))
    metadata = f"Metadata-Version: 2.1\nName: ultralytics\nVersion: {release}\n{needs}"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    folder.mkdir(exist_ok=True)
    info = f"ultralytics-{release}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": kind}.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return wheel


def changed(text: str, *changes: tuple[str, str]) -> str:
    """Replace texts that each occur once."""
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    return text


def edit(file: Path, *changes: tuple[str, str]) -> None:
    file.write_text(changed(file.read_text(encoding="utf-8"), *changes), encoding="utf-8")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A checkout whose queue of three patches is laid down on the old release."""
    root = tmp_path_factory.mktemp("template") / "checkout"
    (root / "patches").mkdir(parents=True)
    ours = root / "ultralytics" / "nn" / "AddModules"
    ours.mkdir(parents=True)
    (ours / "mine.py").write_text("from ultralytics.nn.block import Block\n")
    (root / "cfg_custom" / "models").mkdir(parents=True)
    (root / "cfg_custom" / "models" / "tiny.yaml").write_text("nc: 1\n")
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "scripts/_upstream/verify/parameters.json").write_text('{"tiny": 7}')
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "README.md").write_text(f"On **{OLD}**, version `{OLD}+addmodules.3`; once it was 9.0.00.\n")
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n## {OLD}+addmodules.3\n\n- Began.\n")
    wheel = make_wheel(root / "wheels", OLD, FILES)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "unpacked", [name for name in archive.namelist() if "dist-info" not in name])
    digests = hashlib.sha256(wheel.read_bytes()).hexdigest(), tree_sha256(manifest(root / "unpacked"))
    shutil.rmtree(root / "unpacked")
    (root / "patches" / "upstream.toml").write_text(Pin(OLD, *digests).text())
    apply(root)
    for subject, path, change in PATCHES:
        edit(root / path, change)
        export(root, f"{subject}\n\nWhy: it is ours.\nFails without it: a test", new=True)
    return root


@pytest.fixture
def checkout(template, tmp_path, monkeypatch) -> Path:
    """A checkout of the test's own; models are not built, and no registry is asked."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("ULTRALYTICS_WHEEL", raising=False)
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: Verdict(1, 1, 2, 2, []))
    return shutil.copytree(template, tmp_path / "my projects, größer 目录" / "checkout", symlinks=True)


def release(root: Path, files: dict[str, str | None]) -> None:
    """Publish the new release, which differs from the old one in these files."""
    new = {**FILES, "ultralytics/__init__.py": f'__version__ = "{NEW}"\n', **files}
    make_wheel(root / "wheels", NEW, {name: text for name, text in new.items() if text is not None})


def snapshot(root: Path, scratch: bool = False) -> dict[str, bytes]:
    """Read every file but the scratch folder's; with it, its names too."""
    files: dict[str, bytes] = {}
    for folder, below, names in os.walk(root):  # not rglob: a git that outlived its parent still writes in the scratch
        below[:] = [name for name in below if name not in (".upstream", "__pycache__")]
        files |= {str((path := Path(folder, name)).relative_to(root)): path.read_bytes() for name in names}
    return files | ({f".upstream/{path.name}": b"" for path in (root / ".upstream").iterdir()} if scratch else {})


def start(root: Path, version: str | None = NEW, **options) -> rebase_report.RebaseReport:
    return rebase.rebase(root, version, lambda _: None, **options)


def go_on(root: Path, action: str = "continue") -> rebase_report.RebaseReport:
    return resume_rebase(root, action, lambda _: None)


def states(report: rebase_report.RebaseReport) -> list[str]:
    return [carried.state for carried in report.patches]


def patch(root: Path, name: str) -> str:
    return (root / "patches" / name).read_text(encoding="utf-8")


def stands(root: Path) -> None:
    """The checkout is on the new release, whole: queue, tree, pin and what is laid down agree."""
    pin = Pin.read(root)
    assert pin.release == NEW and tree_sha256(manifest(root)) == pin.tree_sha256
    assert not (root / SESSION).exists()
    before = snapshot(root)
    assert apply(root) == "ultralytics/ is up to date"
    assert "no edits" in export(root) and snapshot(root) == before
    assert {path.name for path in (root / ".upstream").iterdir()} <= {"lock", "repo", "wheels"}


def git(root: Path, *args: str) -> str:
    """Run git in the waiting rebase, as a user would."""
    who = ["-c", "user.name=Someone", "-c", "user.email=someone@example.invalid", "-c", "core.editor=true"]
    return subprocess.run(["git", *who, *args], cwd=root / SESSION, capture_output=True, text=True, check=False).stdout


NEIGHBOUR = {CHECKS: changed(FILES[CHECKS], ('    there = glob.glob("share/" + name)\n', "    there = []\n"))}

MOVED = changed(FILES[TASKS], ("    def walk(self, x):\n", "    def stroll(self, x):\n"))
# The body that the patch was for is elsewhere and looks different; git finds its lines in a look-alike
LOOK_ALIKE = changed(
    FILES[TASKS],
    (
        "    def walk(self, x):\n",
        "    def walk(self, x):\n        return run(self.layers, x)\n\n    def profile(self, x):\n",
    ),
)
