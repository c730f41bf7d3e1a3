"""A rebase carries the queue to another release: what becomes of its patches, and what is written."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys

import pytest
from rebase_checkout import (  # noqa: F401 - fixtures
    BUILD,
    BUILD_PATCH,
    CHECKS,
    FILES,
    FIND,
    FIND_PATCH,
    LOOK_ALIKE,
    MOVED,
    NEIGHBOUR,
    NEW,
    OLD,
    PYPROJECT,
    SESSION,
    TASKS,
    WALK,
    WALK_PATCH,
    changed,
    checkout,
    edit,
    go_on,
    make_wheel,
    patch,
    release,
    snapshot,
    stands,
    start,
    states,
    template,
)

from _upstream.fetch.releases import RECORD, ReleaseRecord
from _upstream.pin import Pin
from _upstream.queue import rebase, rebase_report
from _upstream.queue.apply import apply
from _upstream.queue.export import export
from _upstream.queue.rebase_report import describe_rebase
from _upstream.queue.status import status
from _upstream.verify.build_models import Verdict


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


def test_a_renamed_file_is_followed(checkout):
    target = "ultralytics/utils/search.py"
    release(checkout, {CHECKS: None, target: FILES[CHECKS]})
    report = start(checkout)
    assert report.outcome == "rebased" and states(report) == ["clean", "clean", "moved"]
    assert report.patches[2].details == [f"{CHECKS} is {target} now"]
    assert f"+++ b/{target}" in patch(checkout, FIND_PATCH)
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
