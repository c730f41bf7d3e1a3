"""Carrying the queue to another release: each outcome and each message, on small made-up upstreams."""

from __future__ import annotations

import hashlib
import json
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
from conftest import can_kill, killed_in_time, on_small_disks

from _upstream.fetch.releases import RECORD, ReleaseRecord
from _upstream.pin import Pin, UpstreamError
from _upstream.queue import rebase, rebase_report
from _upstream.queue.apply import apply
from _upstream.queue.export import export
from _upstream.queue.rebase import resume_rebase
from _upstream.queue.rebase_report import describe_rebase
from _upstream.queue.status import status
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


# What can become of a patch -------------------------------------------------------------------------------------------
@pytest.mark.end_to_end("rebase")
def test_clean(checkout):
    release(checkout, {})
    report = start(checkout)
    assert report.outcome == "rebased" and states(report) == ["clean"] * 3
    stands(checkout)


def test_offset(checkout):
    release(checkout, {TASKS: FILES[TASKS].replace("class Network:", "LIMIT = 3\n\n\nclass Network:")})
    report = start(checkout)
    assert states(report) == ["offset", "offset", "clean"] and [c.details for c in report.patches] == [[], [], []]
    assert "@@ -10,7 +10,7 @@" in patch(checkout, WALK_PATCH)
    stands(checkout)


def test_a_changed_line_with_one_in_between_is_merged(checkout):
    release(
        checkout, {CHECKS: changed(FILES[CHECKS], ("    here = glob.glob(name)\n", "    here = glob.iglob(name)\n"))}
    )
    report = start(checkout)
    assert states(report) == ["clean", "clean", "offset"]
    assert report.patches[2].details == ["lines beside it changed"] and "iglob" in patch(checkout, FIND_PATCH)
    stands(checkout)


NEIGHBOUR = {CHECKS: changed(FILES[CHECKS], ('    there = glob.glob("share/" + name)\n', "    there = []\n"))}


def test_a_changed_neighbour_conflicts_in_place(checkout):
    release(checkout, NEIGHBOUR)
    before = snapshot(checkout)
    report = start(checkout)
    assert report.outcome == "stopped" and report.stop.reason == "conflict" and report.stop.patch == FIND_PATCH
    assert report.stop.lines == [f"{CHECKS}, line 6 (find)"]
    text = describe_rebase(report)
    assert f"patches/{FIND_PATCH} conflicts with ultralytics {NEW}:" in text
    assert all(f"rebase --{way}" in text for way in ("continue", "skip", "abort"))
    assert snapshot(checkout) == before, "a rebase that waits has changed the checkout"
    assert f"rebase     waits in {SESSION}" in status(checkout) and "as recorded" in status(checkout)

    file = checkout / SESSION / CHECKS
    marked = file.read_text()
    for side in (f"<<<<<<< ultralytics {NEW}\n", f"||||||| ultralytics {OLD}\n", f">>>>>>> patches/{FIND_PATCH}\n"):
        assert marked.count(side) == 1
    assert f"both modified:   {CHECKS}" in git(checkout, "status")
    with pytest.raises(UpstreamError, match=f"{SESSION}/{CHECKS}, line 6 still has a conflict marker"):
        go_on(checkout)
    assert file.read_text() == marked

    file.write_text(changed(NEIGHBOUR[CHECKS], ("here or there\n", 'here or glob.glob("ours/" + name)\n')))
    report = go_on(checkout)
    assert report.outcome == "rebased" and states(report) == ["clean", "clean", "conflict resolved"]
    assert '+    found = here or glob.glob("ours/" + name)\n' in patch(checkout, FIND_PATCH)
    assert "Why: it is ours." in patch(checkout, FIND_PATCH)
    stands(checkout)


def test_a_conflict_resolved_with_git_alone(checkout):
    """`git add` and `git rebase --continue` in the folder do as well."""
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], ("here or there", "here or there or None")))
    git(checkout, "add", "--all")
    while (checkout / SESSION / ".git" / "rebase-merge").exists():
        git(checkout, "rebase", "--continue")
    report = go_on(checkout)
    assert states(report) == ["clean", "clean", "conflict resolved"]
    assert "From: ultralytics-addmodules <addmodules@example.invalid>" in patch(checkout, FIND_PATCH)
    stands(checkout)


def test_a_conflict_skipped(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    report = go_on(checkout, "skip")
    assert states(report) == ["clean", "clean", "dropped"]
    assert not (checkout / "patches" / FIND_PATCH).exists()
    assert (checkout / CHECKS).read_text() == NEIGHBOUR[CHECKS]
    stands(checkout)


def test_several_conflicts_one_after_another(checkout):
    tasks = changed(FILES[TASKS], ("            seen.append(x)\n", "            seen += [x]\n"))
    release(checkout, {**NEIGHBOUR, TASKS: tasks})
    assert start(checkout).stop.patch == WALK_PATCH
    (checkout / SESSION / TASKS).write_text(changed(tasks, WALK))
    report = go_on(checkout)
    assert report.stop.patch == FIND_PATCH
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    report = go_on(checkout)
    assert states(report) == ["conflict resolved", "clean", "conflict resolved"]
    stands(checkout)


def test_a_patch_that_upstream_took(checkout):
    release(checkout, {TASKS: changed(FILES[TASKS], BUILD)})
    report = start(checkout)
    assert (report.stop.reason, report.stop.patch) == ("taken", BUILD_PATCH)
    assert f"patches/{BUILD_PATCH} is in ultralytics {NEW} already" in describe_rebase(report)
    with pytest.raises(UpstreamError, match="`.*rebase --skip` drops it"):
        go_on(checkout)
    report = go_on(checkout, "skip")
    assert states(report) == ["clean", "upstream's", "offset"] or states(report) == ["clean", "upstream's", "clean"]
    assert [file.name for file in sorted((checkout / "patches").glob("*.patch"))] == [
        WALK_PATCH,
        "0002-Find-ours.patch",
    ]
    assert f"- upstream's: {BUILD_PATCH}" in rebase_report.commit_message(report)
    stands(checkout)


def test_a_conflict_resolved_to_nothing_is_dropped_only_when_told_so(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(NEIGHBOUR[CHECKS])
    for _ in range(2):
        with pytest.raises(UpstreamError, match="nothing of patches/0003-Find-ours.patch is left"):
            go_on(checkout)
    assert go_on(checkout, "skip").outcome == "rebased"
    stands(checkout)


def test_a_deleted_file(checkout):
    release(checkout, {CHECKS: None})
    report = start(checkout)
    assert report.stop.reason == "conflict"
    (line,) = report.stop.lines
    assert line.startswith(f"{CHECKS}: ultralytics {NEW} has no such file any more; `git -C {SESSION} rm {CHECKS}`")
    with pytest.raises(UpstreamError, match=f"git -C {SESSION} rm {CHECKS}"):
        go_on(checkout)
    git(checkout, "rm", CHECKS)
    with pytest.raises(UpstreamError, match="`.*rebase --skip` drops it"):
        go_on(checkout)
    report = go_on(checkout, "skip")
    assert report.outcome == "rebased" and not (checkout / CHECKS).exists()
    stands(checkout)


def test_a_deleted_file_that_is_kept(checkout):
    release(checkout, {CHECKS: None})
    start(checkout)
    git(checkout, "add", CHECKS)
    report = go_on(checkout)
    assert states(report)[2] == "conflict resolved" and "new file mode" in patch(checkout, FIND_PATCH)
    stands(checkout)


def test_a_renamed_file_is_followed(checkout):
    target = "ultralytics/utils/search.py"
    release(checkout, {CHECKS: None, target: FILES[CHECKS]})
    report = start(checkout)
    assert report.outcome == "rebased" and states(report) == ["clean", "clean", "moved"]
    assert report.patches[2].details == [f"{CHECKS} is {target} now"]
    assert f"+++ b/{target}" in patch(checkout, FIND_PATCH)
    stands(checkout)


# Applied is not yet right ---------------------------------------------------------------------------------------------
MOVED = changed(FILES[TASKS], ("    def walk(self, x):\n", "    def stroll(self, x):\n"))
# The body that the patch was for is elsewhere and looks different; git finds its lines in a look-alike
LOOK_ALIKE = changed(
    FILES[TASKS],
    (
        "    def walk(self, x):\n",
        "    def walk(self, x):\n        return run(self.layers, x)\n\n    def profile(self, x):\n",
    ),
)


@pytest.mark.parametrize("text, function", [(MOVED, "Network.stroll"), (LOOK_ALIKE, "Network.profile")])
def test_a_hunk_in_another_function_stops_the_command(checkout, text, function):
    release(checkout, {TASKS: text})
    before = snapshot(checkout)
    report = start(checkout)
    assert (report.stop.reason, report.stop.patch) == ("moved", WALK_PATCH)
    assert report.stop.lines == [f"{TASKS}: a hunk was in Network.walk, is in {function}"]
    text = describe_rebase(report)
    assert "applies to ultralytics 9.1.0, but not where it was" in text
    shown = re.search(r"(?m)^1: +\w+ ! 1: +\w+ Walk over ours$", text)
    assert shown and re.search(rf"(?m)^    \+ +def {function.partition('.')[2]}\(self, x\):$", text)
    assert snapshot(checkout) == before
    report = go_on(checkout)  # the new place is right
    assert report.outcome == "rebased" and states(report)[0] == "moved"
    assert report.patches[0].details == [f"{TASKS}: a hunk was in Network.walk, is in {function}"]
    stands(checkout)


def test_a_hunk_in_another_function_put_right_by_hand(checkout):
    release(checkout, {TASKS: LOOK_ALIKE})
    start(checkout)
    right = ("        return run(self.layers, x)\n", "        return run(ours(self.layers), x)\n")
    edit(checkout / SESSION / TASKS, WALK[::-1], right)
    report = go_on(checkout)
    assert report.outcome == "rebased" and states(report)[0] in ("offset", "clean")
    assert "+        return run(ours(self.layers), x)\n" in patch(checkout, WALK_PATCH)
    assert "ours(layer, x)" not in patch(checkout, WALK_PATCH)
    stands(checkout)


def test_a_hunk_in_another_function_edited_and_still_elsewhere_stops_again(checkout):
    release(checkout, {TASKS: LOOK_ALIKE})
    start(checkout)
    edit(checkout / SESSION / TASKS, ("ours(layer, x)", "ours(layer, x, 1)"))
    assert go_on(checkout).stop.reason == "moved"
    assert states(go_on(checkout))[0] == "moved"
    assert "ours(layer, x, 1)" in patch(checkout, WALK_PATCH)
    stands(checkout)


def test_a_hunk_in_another_function_skipped(checkout):
    release(checkout, {TASKS: LOOK_ALIKE})
    start(checkout)
    report = go_on(checkout, "skip")
    assert report.outcome == "rebased" and states(report)[0] == "dropped"
    assert not (checkout / "patches" / WALK_PATCH).exists()
    stands(checkout)


def test_a_move_that_git_went_past_is_shown_and_not_accepted(checkout):
    """git's own `rebase --continue` says nothing of a hunk's place: ours does, before anything is written."""
    tasks = changed(
        FILES[TASKS],
        ("        for layer in self.layers:\n            x =", "        for layer in self:\n            x ="),
    )
    tasks = changed(tasks, ("def build(rows):\n", "def construct(rows):\n"))
    release(checkout, {TASKS: tasks})
    assert start(checkout).stop.reason == "conflict"
    (checkout / SESSION / TASKS).write_text(changed(tasks, WALK))
    git(checkout, "add", "--all")
    while (checkout / SESSION / ".git" / "rebase-merge").exists():
        git(checkout, "rebase", "--continue")
    report = go_on(checkout)
    assert (report.stop.reason, report.stop.patch) == ("moved", BUILD_PATCH)
    report = go_on(checkout)
    assert states(report) == ["conflict resolved", "moved", "clean"]
    stands(checkout)


def test_a_move_at_the_end_can_be_edited_or_skipped(checkout, tmp_path):
    tasks = changed(FILES[TASKS], ("def build(rows):\n", "def construct(rows):\n"))
    release(checkout, {TASKS: tasks})
    start(checkout)
    while (checkout / SESSION / ".git" / "rebase-merge").exists():
        git(checkout, "rebase", "--continue")
    other = shutil.copytree(checkout, tmp_path / "other", symlinks=True)
    edit(checkout / SESSION / TASKS, ("ours_too(name)", "ours_too(name, 1)"))
    assert go_on(checkout).stop.reason == "moved"
    assert states(go_on(checkout)) == ["clean", "moved", "clean"] and "name, 1" in patch(checkout, BUILD_PATCH)
    stands(checkout)
    assert states(go_on(other, "skip")) == ["clean", "dropped", "clean"]
    stands(other)


def test_one_of_several_hunks_that_moves(checkout):
    """The function that it leaves keeps another hunk, and the one that it enters has one already."""
    hunks = [("measure(self)", "measure(self, start=0)"), ("        return total\n", "        return total + start\n")]
    edit(checkout / TASKS, *hunks, ("            layer.merge()\n", "            layer.merge(1)\n"))
    export(checkout, "Three hunks", new=True)
    rest = "        total = 0\n        return self.merge(total)\n\n    def merge(self, total):\n"
    release(checkout, {TASKS: changed(FILES[TASKS], ("        total = 0\n", rest))})
    report = start(checkout)
    assert (report.stop.reason, report.stop.patch) == ("moved", "0004-Three-hunks.patch")
    assert report.stop.lines == [f"{TASKS}: a hunk was in Network.measure, is in Network.merge"]


# In the user's hands --------------------------------------------------------------------------------------------------
RIGHT = ("        return run(self.layers, x)\n", "        return run(ours(self.layers), x)\n")


def test_a_commit_of_the_users_own_is_kept(checkout):
    release(checkout, {TASKS: LOOK_ALIKE})
    start(checkout)
    edit(checkout / SESSION / TASKS, WALK[::-1], RIGHT)
    git(checkout, "commit", "-am", "Put it right")
    edit(checkout / SESSION / TASKS, ("total = 0", "total = 0 + 0"))  # and an edit that is not committed
    assert go_on(checkout).stop.patch == WALK_PATCH  # which is in the wrong place still
    assert "total = 0 + 0" in (checkout / SESSION / TASKS).read_text()
    report = go_on(checkout)
    assert states(report)[0] == "moved" and (report.patches[-1].patch, report.patches[-1].state) == (
        "Put it right",
        "new",
    )
    assert "total = 0 + 0" in (checkout / TASKS).read_text() and RIGHT[1] in (checkout / TASKS).read_text()
    stands(checkout)


def test_an_amended_subject_is_kept(checkout):
    release(checkout, {TASKS: LOOK_ALIKE})
    start(checkout)
    edit(checkout / SESSION / TASKS, WALK[::-1], RIGHT)
    git(checkout, "commit", "--all", "--amend", "-m", "Better subject")
    report = go_on(checkout)
    assert states(report) == ["offset", "clean", "clean"] or states(report) == ["offset", "offset", "clean"]
    assert RIGHT[1] in patch(checkout, "0001-Better-subject.patch").replace("+", "")
    stands(checkout)


def test_a_conflict_committed_under_another_subject(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    git(checkout, "commit", "-am", "Find ours, better")
    report = go_on(checkout)
    assert states(report) == ["clean", "clean", "conflict resolved"]
    text = patch(checkout, "0003-Find-ours-better.patch")
    assert "From: ultralytics-addmodules <addmodules@example.invalid>\nDate: Thu, 1 Jan 2026" in text
    stands(checkout)


def test_a_rebase_that_git_aborted_begins_anew(checkout):
    """Also what was said before: a patch that was skipped then is there now."""
    release(checkout, {TASKS: MOVED, **NEIGHBOUR})
    start(checkout)
    assert go_on(checkout, "skip").stop.patch == FIND_PATCH
    git(checkout, "rebase", "--abort")
    assert go_on(checkout).stop.patch == WALK_PATCH
    assert go_on(checkout).stop.patch == FIND_PATCH
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    report = go_on(checkout)
    assert states(report) == ["moved", "clean", "conflict resolved"] and (checkout / "patches" / WALK_PATCH).exists()
    stands(checkout)


def test_a_patch_that_git_skipped_is_dropped_only_when_told_so(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    git(checkout, "rebase", "--skip")
    for _ in range(2):
        with pytest.raises(UpstreamError, match="`.*--skip` drops it"):
            go_on(checkout)
    report = go_on(checkout, "skip")
    assert states(report) == ["clean", "clean", "dropped"]
    stands(checkout)


def test_what_was_not_added_is_not_taken(checkout):
    """Merge tools leave .orig files, Python byte code."""
    release(checkout, NEIGHBOUR)
    start(checkout)
    folder = checkout / SESSION / "ultralytics" / "utils"
    (folder / "checks.py.orig").write_text("left")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "checks.pyc").write_bytes(b"\0")
    (folder / "wanted.py").write_text("WANTED = 1\n")
    git(checkout, "add", "ultralytics/utils/wanted.py")
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    assert go_on(checkout).outcome == "rebased"
    assert set(re.findall(r"(?m)^\+\+\+ b/(.*)$", patch(checkout, FIND_PATCH))) == {
        CHECKS,
        "ultralytics/utils/wanted.py",
    }
    stands(checkout)


@pytest.mark.parametrize("action", ["continue", "skip"])
def test_a_conflicting_file_that_was_removed(checkout, action):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).unlink()
    report = go_on(checkout, action)
    assert report.outcome == "rebased" and (checkout / CHECKS).exists() == (action == "skip")
    stands(checkout)


@pytest.mark.parametrize(
    "commands, says",
    [
        ([["checkout", "--quiet", f"release/{NEW}"]], "is not on its branch"),
        ([["checkout", "--quiet", "-b", "mine"]], "is not on its branch"),
        ([["stash"]], "has a stash that would be lost"),
    ],
)
def test_a_session_in_another_state(checkout, monkeypatch, commands, says):
    release(checkout, {})
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: Verdict(0, 1, 2, 2, ["tiny: was not built"]))
    start(checkout)
    if commands == [["stash"]]:
        edit(checkout / SESSION / TASKS, ("ours(layer, x)", "ours(layer, x, 2)"))
    before = snapshot(checkout)
    for command in commands:
        git(checkout, *command)
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: Verdict(1, 1, 2, 2, []))
    with pytest.raises(UpstreamError, match=says):
        go_on(checkout)
    assert snapshot(checkout) == before


def test_an_edit_that_takes_a_patch_back_after_the_verdict(checkout, monkeypatch):
    release(checkout, {})
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: Verdict(0, 1, 2, 2, ["tiny: was not built"]))
    start(checkout)
    edit(checkout / SESSION / TASKS, BUILD[::-1], ("        total = 0\n", "        total = 0\n        more()\n"))
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: Verdict(1, 1, 2, 2, []))
    report = go_on(checkout)
    assert (report.stop.reason, report.stop.patch) == ("lost", BUILD_PATCH)
    report = go_on(checkout, "skip")
    assert states(report)[:3] == ["clean", "dropped", "clean"] and report.patches[3].state == "new"
    assert f"- new: {report.patches[3].patch}" in rebase_report.commit_message(report)
    stands(checkout)


def test_a_source_that_this_python_cannot_read(checkout):
    newer = "def later(:\n    pass\n"
    release(
        checkout, {TASKS: FILES[TASKS] + newer, "ultralytics/nn/block.py": FILES["ultralytics/nn/block.py"] + newer}
    )
    with pytest.raises(UpstreamError, match=rf"{TASKS} cannot be read by Python [\d.]+ \(.*\); run this with another"):
        start(checkout)


def test_upstreams_own_line_ends_are_kept(checkout):
    tasks = FILES[TASKS].replace("\n", "\r\n")
    release(checkout, {TASKS: tasks})
    report = start(checkout)
    assert report.stop.reason == "conflict"
    resolved = tasks.replace(WALK[0].replace("\n", "\r\n"), WALK[1].replace("\n", "\r\n")).encode()
    (checkout / SESSION / TASKS).write_bytes(resolved)
    report = go_on(checkout)
    resolved = resolved.replace(*(text.replace("\n", "\r\n").encode() for text in BUILD))
    if report.stop.reason == "conflict":
        (checkout / SESSION / TASKS).write_bytes(resolved)
        report = go_on(checkout)
    assert report.outcome == "rebased" and (checkout / TASKS).read_bytes() == resolved
    stands(checkout)


def test_an_empty_queue(checkout):
    release(checkout, NEIGHBOUR)
    for path, change in ((TASKS, WALK), (TASKS, BUILD), (CHECKS, FIND)):
        edit(checkout / path, change[::-1])
    export(checkout)
    assert not list(checkout.glob("patches/*.patch"))
    report = start(checkout)
    assert report.outcome == "rebased" and report.patches == [] and report.range_diff == ""
    stands(checkout)


def test_a_patch_for_this_release_on_that_does_not_apply(checkout):
    """It was left out before, and has nothing to be merged with: by hand, or not at all."""
    file = checkout / "patches" / FIND_PATCH
    file.write_text(file.read_text().replace("Why: it is ours.", f"Why: it is ours.\nApplies from: {NEW}"))
    recorded = re.search(
        r"tree has sha256 (\w+)",
        subprocess.run(
            [sys.executable, str(checkout / "scripts" / "upstream.py"), "apply"], capture_output=True, text=True
        ).stderr,
    )[1]
    edit(checkout / "patches" / "upstream.toml", (Pin.read(checkout).tree_sha256, recorded))
    apply(checkout)
    release(checkout, NEIGHBOUR)
    report = start(checkout)
    assert (report.stop.reason, report.stop.patch) == ("later", FIND_PATCH) and "hunk 1" in report.stop.lines[0]
    edit(checkout / SESSION / CHECKS, ("here or there\n", "here or ours\n"))
    report = go_on(checkout)
    assert report.outcome == "rebased" and "+    found = here or ours" in patch(checkout, FIND_PATCH)
    assert f"Applies from: {NEW}" in patch(checkout, FIND_PATCH)
    stands(checkout)


def test_the_queue_on_both_releases_is_compared(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], ("here or there\n", "here or ours\n")))
    report = go_on(checkout)
    assert re.search(r"1: +\w+ = +1: +\w+ Walk over ours", report.range_diff)
    assert re.search(r"3: +\w+ ! +3: +\w+ Find ours", report.range_diff)
    assert report.range_diff.strip() in describe_rebase(report)


def test_wrong_models_stop_the_command_and_can_be_mended(checkout, monkeypatch):
    release(checkout, {})
    before = snapshot(checkout)
    verdict = Verdict(0, 1, 1, 2, ["tiny: has 6 parameters, not 7"])
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: verdict)
    report = start(checkout)
    assert report.outcome == "wrong" and "tiny: has 6 parameters, not 7" in describe_rebase(report)
    assert "0 of 1 shipped models right, 1 of 2 vanilla models equal" in describe_rebase(report)
    assert snapshot(checkout) == before
    edit(checkout / SESSION / TASKS, ("ours(layer, x)", "ours(layer, x, 2)"))
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: Verdict(1, 1, 2, 2, []))
    report = go_on(checkout)
    assert report.outcome == "rebased" and "ours(layer, x, 2)" in patch(checkout, WALK_PATCH)
    stands(checkout)


# What is written ------------------------------------------------------------------------------------------------------
def test_pin_version_dependencies_and_documents(checkout):
    release(
        checkout, {"ultralytics/nn/block.py": FILES["ultralytics/nn/block.py"].replace("(self, x)", "(self, x, y=1)")}
    )
    before = snapshot(checkout)
    report = start(checkout)
    pyproject = (checkout / "pyproject.toml").read_text()
    assert pyproject == changed(PYPROJECT, (f'"{OLD}+', f'"{NEW}+'), ('"beta>=2",\n', '"beta>=3",\n  "gamma",\n')), (
        "the lines that did not change stay as they were written"
    )
    assert (checkout / "README.md").read_text() == f"On **{NEW}**, version `{NEW}+addmodules.3`; once it was 9.0.00.\n"
    assert (checkout / "CHANGELOG.md").read_text() == (
        f"# Changelog\n\n## {NEW}+addmodules.3\n\n- Follows upstream {NEW}.\n\n## {OLD}+addmodules.3\n\n- Began.\n"
    )
    pin = Pin.read(checkout)
    wheel = checkout / "wheels" / pin.wheel
    assert pin.wheel_sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest() == report.wheel_sha256
    assert pin.tree_sha256 == report.tree_sha256
    known = ReleaseRecord.parse((checkout / RECORD).read_text(encoding="utf-8"))
    assert known.sha256[pin.wheel] == pin.wheel_sha256 and len(known.sha256) > 800
    after = snapshot(checkout)
    tracked = sorted(name for name in after if after[name] != before.get(name) and not name.startswith("ultralytics/"))
    assert report.changed == tracked
    message = rebase_report.commit_message(report)
    assert message.startswith(f"Follow upstream {NEW}\n")
    assert (
        "- ultralytics.nn.block.Block.forward(self, x) -> ultralytics.nn.block.Block.forward(self, x, y=1)" in message
    )


def test_json(checkout):
    release(checkout, NEIGHBOUR)
    report = json.loads(start(checkout).json())
    assert report["outcome"] == "stopped" and report["stop"]["reason"] == "conflict"
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    report = json.loads(go_on(checkout).json())
    assert (report["old"], report["new"], report["outcome"]) == (OLD, NEW, "rebased")
    assert [p["state"] for p in report["patches"]] == ["clean", "clean", "conflict resolved"]
    assert report["verdict"]["models"] == 1 and report["changed"] and report["wheel_sha256"]
    assert report["commit_message"].startswith(f"Follow upstream {NEW}")


@pytest.mark.parametrize("files, outcome", [({}, "rebased"), (NEIGHBOUR, "stopped"), ({TASKS: LOOK_ALIKE}, "stopped")])
def test_a_dry_run_changes_nothing(checkout, files, outcome):
    release(checkout, files)
    before = snapshot(checkout, scratch=True)
    report = start(checkout, dry_run=True)
    assert report.outcome == outcome and report.dry_run
    assert ("nothing was changed" if outcome == "stopped" else "would change") in describe_rebase(report)
    assert snapshot(checkout, scratch=True) == before


def test_the_same_input_gives_the_same_bytes_whatever_the_users_settings(checkout, tmp_path, monkeypatch):
    other = shutil.copytree(checkout, tmp_path / "plain" / "checkout", symlinks=True)
    for root in (checkout, other):
        release(root, {**NEIGHBOUR, TASKS: MOVED})
        start(root)
        go_on(root)
        (root / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
        go_on(root)
        (tmp_path / "home").mkdir(exist_ok=True)
        (tmp_path / "home" / ".gitconfig").write_text(
            "[user]\nname = Other\nemail = other@example.invalid\n[diff]\nalgorithm = histogram\nnoprefix = true\n"
            "context = 9\n[core]\nautocrlf = true\nabbrev = 12\n[merge]\nconflictStyle = merge\nrenames = false\n"
            "[rebase]\nautosquash = true\nabbreviateCommands = true\n[commit]\ngpgsign = true\n[rerere]\n"
            "enabled = true\n"
        )
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        monkeypatch.setenv("GIT_AUTHOR_NAME", "Other")
        monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=9")
    assert dict(snapshot(checkout).items()) == dict(snapshot(other).items())


def test_there_and_back_again(checkout, template):
    release(checkout, {TASKS: MOVED})
    start(checkout)
    go_on(checkout)
    assert start(checkout, OLD).stop.reason == "moved"
    assert go_on(checkout).outcome == "rebased"
    for name in ("patches/upstream.toml", *(f"patches/{name}" for name in (WALK_PATCH, BUILD_PATCH, FIND_PATCH))):
        assert (checkout / name).read_bytes() == (template / name).read_bytes()


@pytest.mark.parametrize("name", [WALK_PATCH, FIND_PATCH])
def test_a_patch_for_later_releases_is_left_out_and_comes_back(checkout, name):
    """On an older release its file stays as it is, and is not applied."""
    release(checkout, {})
    start(checkout)
    repo = checkout / ".upstream" / "repo"
    git_in = lambda *args: subprocess.run(["git", *args], cwd=repo, capture_output=True, text=True, check=True)  # noqa: E731
    assert git_in("log", "-1", "--format=%s").stdout.strip() == "Find ours"
    file = checkout / "patches" / name
    text = file.read_text().replace("Why: it is ours.", f"Why: it is ours.\nApplies from: {NEW}")
    file.write_text(text)
    apply(checkout)
    report = start(checkout, OLD)
    assert report.outcome == "rebased"
    assert {c.patch: c.state for c in report.patches}[name] == "left out"
    assert file.read_text() == text
    assert f"{name}  (left out: for later releases)" in status(checkout)
    path, (plain, ours) = {p: (t, c) for p, t, c in [(WALK_PATCH, TASKS, WALK), (FIND_PATCH, CHECKS, FIND)]}[name]
    assert ours not in (checkout / path).read_text() and plain in (checkout / path).read_text()
    assert "no edits" in export(checkout) and file.read_text() == text
    report = start(checkout, NEW)
    assert report.outcome == "rebased" and ours in (checkout / path).read_text()
    stands(checkout)


# What stops it, and giving up -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "files", [NEIGHBOUR, {TASKS: LOOK_ALIKE}, {TASKS: changed(FILES[TASKS], BUILD)}, {CHECKS: None}]
)
def test_abort_restores_every_byte(checkout, files):
    release(checkout, files)
    before = snapshot(checkout, scratch=True)
    assert start(checkout).outcome == "stopped"
    (checkout / SESSION / TASKS).write_text("edited")
    report = go_on(checkout, "abort")
    assert describe_rebase(report) == f"ultralytics {OLD} -> {NEW}: aborted; everything is as it was"
    assert snapshot(checkout, scratch=True) == before
    with pytest.raises(UpstreamError, match="no rebase is waiting"):
        go_on(checkout, "abort")
    assert start(checkout).outcome == "stopped"  # and it can begin anew


def test_a_rebase_that_waits_is_not_started_over(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    with pytest.raises(UpstreamError, match=f"a rebase from {OLD} to {NEW} waits in {SESSION}"):
        start(checkout)


def test_edits_are_exported_first(checkout):
    release(checkout, {})
    edit(checkout / CHECKS, ("len(names)", "len(list(names))"))
    before = snapshot(checkout)
    with pytest.raises(UpstreamError, match=f"{CHECKS} was edited and would stay behind; .*export"):
        start(checkout)
    assert snapshot(checkout) == before


def test_edits_made_while_it_waits_are_kept(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    edit(checkout / CHECKS, ("len(names)", "len(list(names))"))
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    report = go_on(checkout)
    assert report.outcome == "rebased" and "was edited" in report.note
    assert "len(list(names))" in (checkout / CHECKS).read_text() and report.note in describe_rebase(report)


def test_a_queue_that_changed_while_it_waits(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / "patches" / WALK_PATCH).unlink()
    with pytest.raises(UpstreamError, match="patches/ is not what the rebase began with; .*--abort"):
        go_on(checkout)


def test_a_git_that_cannot_go_on_says_why(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    (checkout / SESSION / ".git" / "refs" / "heads" / "queue.lock").mkdir()  # no lock that a git has left
    with pytest.raises(UpstreamError, match="git rebase failed: .*"):
        go_on(checkout)
    (checkout / SESSION / ".git" / "refs" / "heads" / "queue.lock").rmdir()
    assert go_on(checkout).outcome == "rebased"
    stands(checkout)


def test_two_patches_of_the_same_subject(checkout):
    edit(checkout / CHECKS, ("len(names)", "len(list(names))"))
    export(checkout, "Find ours", new=True)
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], FIND))
    report = go_on(checkout)
    assert states(report) == ["clean", "clean", "conflict resolved", "clean"]
    assert len(list((checkout / "patches").glob("*-Find-ours.patch"))) == 2
    stands(checkout)


def test_a_damaged_session(checkout):
    release(checkout, NEIGHBOUR)
    before = snapshot(checkout)
    start(checkout)
    (checkout / SESSION / ".git" / "session.json").write_text("{")
    with pytest.raises(UpstreamError, match="damaged; .*--abort"):
        go_on(checkout)
    go_on(checkout, "abort")
    assert snapshot(checkout) == before


def test_up_to_date(checkout):
    before = snapshot(checkout)
    assert start(checkout, OLD).outcome == "up to date"
    assert snapshot(checkout) == before


def test_the_newest_is_the_default(checkout, monkeypatch):
    release(checkout, {})
    make_wheel(checkout / "wheels", "9.2.0rc1", FILES)
    monkeypatch.setenv("PIP_FIND_LINKS", (checkout / "wheels").as_uri())  # pip splits a path at its spaces
    assert start(checkout, None).new == NEW
    stands(checkout)


@pytest.mark.parametrize(
    "version, says",
    [
        *((v, f"ultralytics {v} carried malware") for v in ("8.3.41", "8.3.42", "8.3.45", "8.3.46")),
        ("8.3.041", "ultralytics 8.3.41 carried malware"),
        *((v, f"'{v}' is not a release of ultralytics: one looks like 8.3.50") for v in ("newest", "9.1", "9.1.0.0")),
        ("9.7.0", "could not download ultralytics==9.7.0: .*connect to the network, or set ULTRALYTICS_WHEEL"),
        ("9.3.0", r"ultralytics==9.3.0 was yanked by its authors \(it eats data\)"),
    ],
)
def test_releases_that_are_refused(checkout, tmp_path, monkeypatch, version, says):
    wheel = make_wheel(tmp_path / "files", "9.3.0", FILES)
    page = tmp_path / "index" / "ultralytics"
    page.mkdir(parents=True)
    (page / "index.html").write_text(f'<a href="{wheel.as_uri()}" data-yanked="it eats data">{wheel.name}</a>')
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    for name in ("8.3.41", "8.3.42"):
        make_wheel(checkout / "wheels", name, FILES)  # not even from disk
    before = snapshot(checkout, scratch=True)
    with pytest.raises(UpstreamError, match=says) as e:
        start(checkout, version)
    assert "\n" not in str(e.value)
    assert snapshot(checkout, scratch=True) == before


def test_a_broken_wheel(checkout):
    (checkout / "wheels" / f"ultralytics-{NEW}-py3-none-any.whl").write_bytes(b"PK no archive")
    before = snapshot(checkout, scratch=True)
    with pytest.raises(UpstreamError, match="damaged archive"):
        start(checkout)
    assert snapshot(checkout, scratch=True) == before


# Killed ---------------------------------------------------------------------------------------------------------------
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
