"""A rebase keeps what the user commits, amends or edits while it waits, and says what it cannot keep."""

from __future__ import annotations

import re

import pytest
from rebase_checkout import (  # noqa: F401 - fixtures
    BUILD,
    BUILD_PATCH,
    CHECKS,
    FIND,
    FIND_PATCH,
    LOOK_ALIKE,
    MOVED,
    NEIGHBOUR,
    NEW,
    SESSION,
    TASKS,
    WALK,
    WALK_PATCH,
    changed,
    checkout,
    edit,
    git,
    go_on,
    patch,
    release,
    snapshot,
    stands,
    start,
    states,
    template,
)

from _upstream.pin import UpstreamError
from _upstream.queue import rebase, rebase_report
from _upstream.queue.rebase_report import describe_rebase
from _upstream.verify.build_models import Verdict

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
