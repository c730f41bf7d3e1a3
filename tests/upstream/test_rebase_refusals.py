"""A rebase that cannot begin, go on or end says why, and leaves the checkout as it was."""

from __future__ import annotations

import os

import pytest
from rebase_checkout import (  # noqa: F401 - fixtures
    BUILD,
    CHECKS,
    FILES,
    FIND,
    LOOK_ALIKE,
    NEIGHBOUR,
    NEW,
    OLD,
    SESSION,
    TASKS,
    changed,
    checkout,
    go_on,
    make_wheel,
    release,
    snapshot,
    stands,
    start,
    template,
)

from _upstream.pin import UpstreamError
from _upstream.queue.rebase_report import describe_rebase


def test_a_source_that_this_python_cannot_read(checkout):
    newer = "def later(:\n    pass\n"
    release(
        checkout, {TASKS: FILES[TASKS] + newer, "ultralytics/nn/block.py": FILES["ultralytics/nn/block.py"] + newer}
    )
    with pytest.raises(UpstreamError, match=rf"{TASKS} cannot be read by Python [\d.]+ \(.*\); run this with another"):
        start(checkout)


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


def test_a_damaged_session(checkout):
    release(checkout, NEIGHBOUR)
    before = snapshot(checkout)
    start(checkout)
    (checkout / SESSION / ".git" / "session.json").write_text("{")
    with pytest.raises(UpstreamError, match="damaged; .*--abort"):
        go_on(checkout)
    go_on(checkout, "abort")
    assert snapshot(checkout) == before


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
