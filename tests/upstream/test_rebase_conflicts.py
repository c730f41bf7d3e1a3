"""A rebase stops where a patch conflicts, and goes on once the conflict is resolved, skipped or dropped."""

from __future__ import annotations

import re

import pytest
from rebase_checkout import (  # noqa: F401 - fixtures
    BUILD,
    BUILD_PATCH,
    CHECKS,
    FILES,
    FIND,
    FIND_PATCH,
    NEIGHBOUR,
    NEW,
    OLD,
    SESSION,
    TASKS,
    WALK,
    WALK_PATCH,
    changed,
    checkout,
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
from _upstream.queue import rebase_report
from _upstream.queue.rebase_report import describe_rebase
from _upstream.queue.status import status


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


@pytest.mark.parametrize("action", ["continue", "skip"])
def test_a_conflicting_file_that_was_removed(checkout, action):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).unlink()
    report = go_on(checkout, action)
    assert report.outcome == "rebased" and (checkout / CHECKS).exists() == (action == "skip")
    stands(checkout)


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


def test_the_queue_on_both_releases_is_compared(checkout):
    release(checkout, NEIGHBOUR)
    start(checkout)
    (checkout / SESSION / CHECKS).write_text(changed(NEIGHBOUR[CHECKS], ("here or there\n", "here or ours\n")))
    report = go_on(checkout)
    assert re.search(r"1: +\w+ = +1: +\w+ Walk over ours", report.range_diff)
    assert re.search(r"3: +\w+ ! +3: +\w+ Find ours", report.range_diff)
    assert report.range_diff.strip() in describe_rebase(report)
