"""Upstream's own tests on both sides: what is compared, what counts, and what is left behind, on made-up releases."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from _upstream.fetch import sdist
from _upstream.pin import Pin, UpstreamError, queue_sha256
from _upstream.queue.tree import manifest, write_stamp
from _upstream.tests import assets, outcomes, run_progress, suite
from _upstream.tests.outcomes import ABSENT, ERROR, FAILED, PASSED, SKIPPED, Difference, Outcome
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data import utils as data_utils
from ultralytics.data.build import build_yolo_dataset
from ultralytics.utils import ASSETS

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RELEASE = "9.9.9"
PACKAGE = {"ultralytics/__init__.py": "answer = 42\nflavour = 'theirs'\n", "ultralytics/cfg/default.yaml": "a: 1\n"}
PYPROJECT = '[tool.pytest.ini_options]\naddopts = "--no-such-option"\n'
RUNNERS = ["pytest>=8.2", "pytest-xdist", "pytest-timeout"]


# A made-up release ----------------------------------------------------------------------------------------------------
def make_wheel(file: Path, package: dict[str, str] = PACKAGE) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in package.items():
            archive.writestr(path, text)
        archive.writestr(f"ultralytics-{RELEASE}.dist-info/METADATA", f"Name: ultralytics\nVersion: {RELEASE}\n")
    return file


def make_sdist(file: Path, tests: dict[str, str], package: dict[str, str] = PACKAGE, folder: str | None = None) -> Path:
    folder = f"ultralytics-{RELEASE}" if folder is None else folder
    with tarfile.open(file, "w:gz") as archive:
        for path, text in {**package, "pyproject.toml": PYPROJECT, "setup.py": "", **tests}.items():
            member = tarfile.TarInfo(f"{folder}/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return file


def make_checkout(root: Path, tests: dict[str, str], ours: dict[str, str]) -> Path:
    """Make a checkout of a made-up release: `ours` is what is laid down in it, over the release's files."""
    for name in ("wheels", "patches", ".upstream"):
        (root / name).mkdir(parents=True)
    wheel = make_wheel(root / "wheels" / f"ultralytics-{RELEASE}-py3-none-any.whl")
    make_sdist(root / "wheels" / f"ultralytics-{RELEASE}.tar.gz", tests)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (root / "patches" / "upstream.toml").write_text(
        f'release = "{RELEASE}"\nwheel-sha256 = "{digest}"\ntree-sha256 = "{"0" * 64}"\n'
    )
    for path, text in {**PACKAGE, **ours}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    write_stamp(root, {"release": RELEASE, "queue": queue_sha256(root), "files": manifest(root)})
    return root


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


# Source distributions -------------------------------------------------------------------------------------------------
@pytest.fixture
def release(tmp_path) -> Path:
    return make_wheel(tmp_path / f"ultralytics-{RELEASE}-py3-none-any.whl")


@pytest.mark.parametrize(
    "package, named",
    [
        ({**PACKAGE, "ultralytics/__init__.py": "answer = 41\n"}, "ultralytics/__init__.py"),
        ({**PACKAGE, "ultralytics/more.py": ""}, "ultralytics/more.py"),
        ({"ultralytics/__init__.py": PACKAGE["ultralytics/__init__.py"]}, "ultralytics/cfg/default.yaml"),
    ],
)
def test_an_sdist_of_another_release_is_refused(tmp_path, release, package, named):
    (tmp_path / "wheels").mkdir()
    make_sdist(tmp_path / "wheels" / f"ultralytics-{RELEASE}.tar.gz", {}, package)
    with pytest.raises(UpstreamError, match=f"{named} not as in {release.name}.*remove the file"):
        sdist.fetch_sdist(tmp_path, Pin(RELEASE, "", ""), release, tmp_path)


@pytest.mark.parametrize("folder", ["../evil", "/evil", "..\\evil"])
def test_an_sdist_with_an_unsafe_path_is_refused(tmp_path, release, folder):
    with pytest.raises(UpstreamError, match="unsafe path"):
        sdist.read_members(make_sdist(tmp_path / "a.tar.gz", {}, folder=folder))


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_broken_sdist_is_named(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(UpstreamError, match="a.tar.gz .*damaged archive.*run this again"):
        sdist.read_members(tmp_path / "a.tar.gz")


def test_a_downloaded_sdist_is_kept(tmp_path, release, monkeypatch):
    """It is whole or not there, and asked for once."""
    (tmp_path / ".upstream").mkdir()
    (tmp_path / "download").mkdir()
    downloads = []

    def download(pin, folder):
        downloads.append(pin.release)
        return make_sdist(folder / f"ultralytics-{pin.release}.tar.gz", {"tests/test_a.py": ""})

    monkeypatch.setattr(sdist, "download_sdist", download)
    for _ in range(2):
        found = sdist.fetch_sdist(tmp_path, Pin(RELEASE, "", ""), release, tmp_path / "download")
    kept = tmp_path / ".upstream" / "sdists"
    assert downloads == [RELEASE] and found == kept / f"ultralytics-{RELEASE}.tar.gz"
    assert [file.name for file in kept.iterdir()] == [found.name]
    sdist.unpack_tests(found, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pyproject.toml", "tests"]


def test_an_sdist_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UpstreamError, match=rf"could not download ultralytics-{RELEASE}.tar.gz: .*into wheels/"):
        sdist.download_sdist(Pin(RELEASE, "", ""), tmp_path)


# Checkpoints ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, size", [("yolo26n", 160), ("yolo11n-grayscale", 320), ("yoloe-26n-seg", 160)])
def test_a_random_checkpoint_sees_something(tmp_path, name, size):
    """It loads as upstream's do, and its output depends on its input."""
    torch.manual_seed(0)
    assets.save_checkpoint(assets.make_model(name), tmp_path / f"{name}.pt")
    model = YOLO(tmp_path / f"{name}.pt")
    *_, data, task, _channels = assets.CHECKPOINTS[name]
    assert model.task == task and model.ckpt["train_args"]["data"] == f"{data}.yaml" and model.names[0] == "person"
    assert next(model.model.parameters()).dtype == torch.float32  # loaded, from half precision
    found = [model(ASSETS / picture, imgsz=size, verbose=False)[0].boxes for picture in ("bus.jpg", "zidane.jpg")]
    assert all(0 < len(boxes) < 300 for boxes in found) and not torch.equal(found[0].conf[:1], found[1].conf[:1])


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_the_text_encoder_gives_unit_vectors(tmp_path):
    assets.make_text_encoder(tmp_path / "encoder.ts")
    vectors = torch.jit.load(tmp_path / "encoder.ts")(torch.randint(49408, (3, 77)))
    assert vectors.shape == (3, 512) and torch.allclose(vectors.norm(dim=1), torch.ones(3))


def test_drawn_data_sets(tmp_path, monkeypatch):
    """Upstream finds each by its own YAML, and reads every picture, label and map of it without a complaint."""
    assets.make_datasets(tmp_path)
    monkeypatch.setattr(data_utils, "DATASETS_DIR", tmp_path)
    for name, task in (("coco8", "detect"), ("coco8-seg", "segment"), ("coco8-pose", "pose"), ("dota8", "obb")):
        dataset = read(name, task)
        assert len(dataset) == 4 and all(len(label["cls"]) == 3 for label in dataset.labels)
    assert read("coco128-seg", "segment")[0]["masks"].any()
    assert read("coco8-multispectral", "detect")[0]["img"].shape[0] == 10
    assert set(np.unique(read("cityscapes8", "semantic").load_mask(0))) <= {0, 2, 11, 13}
    depth = data_utils.load_depth(tmp_path / "depth8-png" / "depth" / "val" / "0.png")
    assert set(np.unique(depth)) <= {1.0, 2.0, 3.0, 4.0}
    assert data_utils.check_cls_dataset("imagenet10")["nc"] == 10


def read(name: str, task: str):
    """Give a data set's training pictures as upstream loads them."""
    data = data_utils.check_det_dataset(f"{name}.yaml", autodownload=False)
    args = get_cfg(overrides={"task": task, "imgsz": 64})
    return build_yolo_dataset(args, data["train"], batch=1, data=data)


def test_films_can_be_read(tmp_path):
    assets.make_film(tmp_path / "film.mp4", (64, 48))
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    frames = [film.read()[1] for _ in range(assets.FRAMES)]
    assert all(frame.shape == (48, 64, 3) for frame in frames) and not film.read()[0]


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
