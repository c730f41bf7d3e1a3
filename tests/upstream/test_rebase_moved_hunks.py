"""A rebase stops where a patch applies, but in another function than before."""

from __future__ import annotations

import re
import shutil

import pytest
from rebase_checkout import (  # noqa: F401 - fixtures
    BUILD_PATCH,
    FILES,
    LOOK_ALIKE,
    MOVED,
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

from _upstream.queue.export import export
from _upstream.queue.rebase_report import describe_rebase


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
