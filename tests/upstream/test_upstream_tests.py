"""Upstream's own tests on both sides: what is compared, what counts, and what is left behind, on made-up releases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_release import RELEASE, make_checkout

from _upstream.pin import Pin, UpstreamError
from _upstream.tests import outcomes, run_progress, suite
from _upstream.tests.outcomes import ABSENT, ERROR, FAILED, PASSED, SKIPPED, Difference, Outcome

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

RUNNERS = ["pytest>=8.2", "pytest-xdist", "pytest-timeout"]


@pytest.fixture
def small(monkeypatch):
    """What a made-up release does without: most of the environment, and checkpoints."""

    def make_files(python, side, files):
        for name in ("weights", "datasets"):
            (files / name).mkdir(parents=True)

    monkeypatch.delenv("ULTRALYTICS_WHEEL", raising=False)
    monkeypatch.setattr(suite, "TOOLS", RUNNERS)
    monkeypatch.setattr(suite, "EXPORTERS", [])
    monkeypatch.setattr(suite, "OUR_REQUIREMENTS", [])
    monkeypatch.setattr(suite, "make_files", make_files)


# Results --------------------------------------------------------------------------------------------------------------
JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest">
<testcase classname="tests.test_a" name="test_good" file="tests/test_a.py" line="3" time="0.1" />
<testcase classname="tests.test_a.TestB" name="test_c[x/y::z]" file="tests/test_a.py"><failure
message="ValueError: no&#10;and more">tests/test_a.py:5: ValueError</failure></testcase>
<testcase classname="tests.test_a" name="test_skipped" file="tests/test_a.py"><skipped message="GPU" /></testcase>
<testcase classname="tests.test_a" name="test_setup" file="tests/test_a.py"><error
message="failed on setup with &quot;KeyError: 'a'&quot;">E   KeyError: 'a'</error></testcase>
<testcase classname="tests.test_a" name="test_teardown" file="tests/test_a.py" />
<testcase classname="tests.test_a" name="test_teardown" file="tests/test_a.py"><error message="failed on teardown" />
</testcase>
<testcase classname="tests.test_a" name="test_crash" file="tests/test_a.py"><error
message="worker 'gw0' crashed while running 'tests/test_a.py::test_crash'">worker 'gw0' crashed</error></testcase>
<testcase classname="" name="tests.test_b" file="tests/test_b.py"><error message="collection failure">
import ultralytics.gone
E   ModuleNotFoundError: No module named 'ultralytics.gone'</error></testcase>
</testsuite></testsuites>"""


def test_results_are_read(tmp_path):
    (tmp_path / "a.xml").write_text(JUNIT)
    assert outcomes.read_junit(tmp_path / "a.xml") == {
        "tests/test_a.py::test_good": Outcome(PASSED),
        "tests/test_a.py::TestB::test_c[x/y::z]": Outcome(FAILED, "ValueError: no"),
        "tests/test_a.py::test_skipped": Outcome(SKIPPED, "GPU"),
        "tests/test_a.py::test_setup": Outcome(ERROR, "failed on setup with \"KeyError: 'a'\""),
        "tests/test_a.py::test_teardown": Outcome(ERROR, "failed on teardown"),
        "tests/test_a.py::test_crash": Outcome(
            ERROR, "worker 'gw0' crashed while running 'tests/test_a.py::test_crash'"
        ),
        "tests/test_b.py": Outcome(ERROR, "ModuleNotFoundError: No module named 'ultralytics.gone'"),
    }


def test_what_does_not_pass_is_a_difference():
    """Whether it failed, broke, was skipped, or did not run as its file could not be imported."""
    states = {f"t.py::{state}": Outcome(state) for state in (PASSED, FAILED, ERROR, SKIPPED)}
    untouched = dict.fromkeys([*states, "t.py::gone", "u.py::test"], Outcome(PASSED))
    ours = {**states, "u.py": Outcome(ERROR, "ImportError: x"), "t.py::new": Outcome(PASSED)}
    found = {difference.test: difference.ours for difference in outcomes.passes_only_there(untouched, ours)}
    assert found == {
        "t.py::failed": Outcome(FAILED),
        "t.py::error": Outcome(ERROR),
        "t.py::skipped": Outcome(SKIPPED),
        "t.py::gone": Outcome(ABSENT),
        "u.py::test": Outcome(ABSENT, "ImportError: x"),
    }
    (new,) = outcomes.passes_only_here(untouched, ours)
    assert new == Difference("t.py::new", Outcome(ABSENT), Outcome(PASSED))
    assert outcomes.passes_only_there(states, states) == []


def test_a_test_counts_when_it_fails_twice(tmp_path, monkeypatch, capsys):
    """Those that come out as untouched when run again, or fail there too, are listed apart."""
    names = ["t.py::broken", "t.py::flaky", "t.py::flaky_there", "t.py::absent", "t.py::good"]
    good, bad = Outcome(PASSED), Outcome(FAILED, "ValueError: no")
    first = [dict.fromkeys(names, good), {**dict.fromkeys(names[:3], bad), "t.py::good": good}]
    second = [
        {**dict.fromkeys(names[:4], good), "t.py::flaky_there": bad},
        {**dict.fromkeys(names[:3], bad), "t.py::flaky": good},
    ]
    results, asked = [first, second], []

    def run(python, turns):
        asked.append({side.name: arguments[-1] for side, arguments in turns.items()})
        return results.pop(0)

    monkeypatch.setattr(suite, "run_pytest", run)
    sides = [suite.Side(name, tmp_path / name) for name in ("untouched", "ours")]
    for side in sides:
        side.folder.mkdir()
    report = suite.compare_sides(Pin(RELEASE, "", ""), [], "python", sides, None, 1)
    assert [difference.test for difference in report.regressions] == ["t.py::broken", "t.py::absent"]
    assert [difference.test for difference in report.flaky] == ["t.py::flaky", "t.py::flaky_there"]
    assert asked[0] == {"untouched": "tests", "ours": "tests"}
    ids = {side: Path(argument[1:]).read_text().splitlines() for side, argument in asked[1].items()}
    assert ids == {"untouched": names[:4], "ours": names[:3]}  # pytest would refuse all for one that is not there
    assert "4 pass untouched and not on ours: running them again on both sides" in capsys.readouterr().err
    text = suite.describe_suite(report)
    assert "t.py::broken\n      failed here: ValueError: no" in text and "t.py::absent\n      not run here" in text
    assert text.endswith("2 tests that pass untouched fail here; the logs are in .upstream/test/")


def test_without_a_difference_nothing_is_run_again(tmp_path, monkeypatch):
    same = {"t.py::a": Outcome(PASSED), "t.py::b": Outcome(FAILED, "x")}
    results = [[same, {**same, "t.py::b": Outcome(PASSED)}]]
    monkeypatch.setattr(suite, "run_pytest", lambda python, turns: results.pop())
    sides = [suite.Side(name, tmp_path) for name in ("untouched", "ours")]
    report = suite.compare_sides(Pin(RELEASE, "", ""), [], "python", sides, None, 1)
    assert report.regressions == report.flaky == [] and [d.test for d in report.only_here] == ["t.py::b"]
    assert report.totals["untouched"] == {"passed": 1, "failed": 1, "error": 0, "skipped": 0}
    text = suite.describe_suite(report)
    assert "pass here and not untouched (1)\n  t.py::b\n      failed untouched: x" in text
    assert text.endswith("no test that passes untouched fails here")


def test_progress_is_read_from_the_log(tmp_path, capsys):
    log = tmp_path / "log"
    assert run_progress.count_finished_tests(log) == "starting"
    log.write_text("1 worker [4 items]\n\ntests/a.py::b \n[gw0] [ 25%] PASSED tests/a.py::b \n[gw0] [ 50%] ERROR a \n")
    assert run_progress.count_finished_tests(log) == "2 of 4, 1 failed"
    display = run_progress.ProgressLine()
    display.show("no line yet")
    display.show("the last line", last=True)
    assert capsys.readouterr().err.startswith("the last line  0:0")


# Whole runs -----------------------------------------------------------------------------------------------------------
TESTS = {
    "tests/__init__.py": "",
    "tests/test_ends.py": """
import os
import ultralytics
def test_crashes_ours():
    if ultralytics.flavour == "ours":
        os._exit(1)
def test_after_the_crash():
    pass
""",
    "tests/test_imports.py": "from ultralytics import answer\n\ndef test_answer():\n    assert answer == 42\n",
    "tests/test_sides.py": """
import os, shutil, subprocess
from importlib.metadata import version
from pathlib import Path
import pytest
import ultralytics
HOME = Path.home()
def test_good():
    assert version("ultralytics") == "9.9.9" and shutil.which("yolo").startswith(str(HOME.parent))
def test_own_folder():
    assert Path(ultralytics.__file__).parents[1] == Path.cwd() == HOME.parent / "repo"
    assert os.environ["YOLO_CONFIG_DIR"].startswith(str(HOME.parent)) and "SECRET" not in os.environ
def test_bad():
    assert False
def test_ours_alone():
    assert ultralytics.flavour == "ours"
@pytest.mark.parametrize("flavour", ["theirs"])
def test_theirs_alone(flavour):
    assert ultralytics.flavour == flavour
def test_now_and_then():
    mark = HOME / "mark"
    if ultralytics.flavour == "ours" and not mark.exists():
        mark.touch()
        raise ValueError("the first time")
""",
}


def test_a_whole_run(tmp_path, monkeypatch, small, capfd):
    """Regressions are those of our side alone: a failure, a crash, a file that does not import."""
    monkeypatch.setenv("SECRET", "1")
    root = make_checkout(tmp_path, TESTS, {"ultralytics/__init__.py": "flavour = 'ours'\n"})
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report = suite.test(root)
    assert {difference.test: difference.ours.state for difference in report.regressions} == {
        "tests/test_ends.py::test_crashes_ours": ERROR,
        "tests/test_imports.py::test_answer": ABSENT,
        "tests/test_sides.py::test_theirs_alone[theirs]": FAILED,
    }
    reasons = [difference.ours.reason for difference in report.regressions]
    assert "crashed" in reasons[0] and reasons[1].startswith("ImportError: cannot import name 'answer'")
    assert [difference.test for difference in report.flaky] == ["tests/test_sides.py::test_now_and_then"]
    assert [difference.test for difference in report.only_here] == ["tests/test_sides.py::test_ours_alone"]
    assert report.totals["untouched"] == {"passed": 7, "failed": 2, "error": 0, "skipped": 0}
    assert report.totals["ours"] == {"passed": 4, "failed": 3, "error": 2, "skipped": 0}
    assert "untouched 9 of 9, 2 failed | ours " in capfd.readouterr().err
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    logs = {path.name for path in after.keys() - before.keys() if path.parent == root / ".upstream" / "test"}
    assert {"untouched.log", "untouched.xml", "ours.log", "ours.xml", "ours-again.log"} <= logs
    assert after.keys() - before.keys() == {root / ".upstream" / "lock", *(root / suite.LOGS / name for name in logs)}
    assert all(after[path] == content for path, content in before.items())


def test_an_edited_tree_is_run_as_it_is(tmp_path, small):
    root = make_checkout(tmp_path, TESTS, {})
    (root / "ultralytics" / "__init__.py").write_text("answer = 42\nflavour = 'ours'\n")
    report = suite.test(root, "ours_alone")
    assert report.edited == ["ultralytics/__init__.py"] and report.totals["ours"]["passed"] == 1
    assert "ours is with what was edited in place: ultralytics/__init__.py" in suite.describe_suite(report)


def test_an_expression_that_matches_nothing_is_named(tmp_path, small):
    with pytest.raises(UpstreamError, match=f"no test of ultralytics {RELEASE} matches 'nothing'"):
        suite.test(make_checkout(tmp_path, TESTS, {}), "nothing")


def test_an_expression_that_is_none_is_named(tmp_path, small):
    with pytest.raises(UpstreamError, match=r"'\(' is not an expression that -k reads: Wrong expression"):
        suite.test(make_checkout(tmp_path, TESTS, {}), "(")


def test_a_run_that_gives_no_results_is_named(tmp_path, small):
    root = make_checkout(tmp_path, {**TESTS, "tests/conftest.py": "raise SystemExit('no tests today')\n"}, {})
    with pytest.raises(
        UpstreamError, match=r"\.upstream/test/untouched\.log: pytest ended with status 1: no tests today"
    ):
        suite.test(root)
    assert "no tests today" in (root / suite.LOGS / "untouched.log").read_text()


@pytest.mark.parametrize("state", ["never laid down", "older", "a file is gone"])
def test_a_tree_that_is_not_laid_down_is_named(tmp_path, state):
    root = make_checkout(tmp_path, TESTS, {})
    if state == "older":
        (root / "patches" / "0001-new.patch").write_text("")
    else:
        (root / "ultralytics" / {"never laid down": ".addmodules.json"}.get(state, "__init__.py")).unlink()
    with pytest.raises(UpstreamError, match="run `python scripts/upstream.py apply` first"):
        suite.test(root)


HANGING = """
import os, subprocess, sys, time
from pathlib import Path
def test_hangs():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["HOME"], "pids").write_text(f"{os.getpid()} {child.pid} ")
    time.sleep(600)
"""
HARNESS = """
import sys
from pathlib import Path
from _upstream.tests import suite
suite.TOOLS, suite.EXPORTERS, suite.OUR_REQUIREMENTS = {runners}, [], []
suite.make_files = lambda python, side, files: [(files / n).mkdir(parents=True) for n in ("weights", "datasets")]
try:
    suite.test(Path({root!r}))
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(tmp_path, number):
    """Neither processes, those that a test has started among them, nor files of a run that is over."""
    root = make_checkout(tmp_path, {"tests/test_a.py": HANGING}, {})
    harness = HARNESS.format(runners=RUNNERS, root=str(root))
    variables = {key: value for key, value in os.environ.items() if key != "ULTRALYTICS_WHEEL"}
    process = subprocess.Popen(
        [sys.executable, "-c", harness],
        env={**variables, "PYTHONPATH": str(SCRIPTS)},
        stderr=subprocess.PIPE,
        text=True,
    )
    files = []
    while len(files) < 2 and process.poll() is None:
        files = [file for file in (root / ".upstream").glob("test-*/*/home/pids") if file.read_text().endswith(" ")]
        time.sleep(0.1)
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    process.send_signal(number)
    _, errors = process.communicate()
    assert len(pids) == 4 and process.returncode == 1 and errors.rstrip().endswith("interrupted"), errors
    assert not any(is_running(pid) for pid in pids)
    assert sorted(path.name for path in (root / ".upstream").iterdir()) == ["lock", "test"]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended and that nobody has waited for yet is there, too
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not done.stdout.startswith("Z") and bool(done.stdout.strip())
