"""Run the pinned release's own test suite on the untouched release and on ours, and compare.

Both sides run at once, each in a folder of its own with the same checkpoints and data sets, in one environment and
without a network. A test that passes untouched and not on ours is run again on both sides before it counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from _upstream.fetch.sdist import fetch_sdist, unpack_tests
from _upstream.fetch.wheel import fetch_wheel, unpack_wheel
from _upstream.pin import APPLY, PACKAGE, Pin, UpstreamError, queue_sha256
from _upstream.processes import run_logged, stop_on_terminate
from _upstream.queue.scratch_folder import explain_os_errors, lock_checkout
from _upstream.queue.tree import list_edited_files, list_missing_files, read_stamp
from _upstream.tests.outcomes import (
    ABSENT,
    Difference,
    Outcome,
    count_outcomes,
    passes_only_here,
    passes_only_there,
    read_junit,
)
from _upstream.tests.run_progress import print_message, show_progress
from _upstream.verify.environment import OUR_REQUIREMENTS, make_interpreter, read_requirements

SCRIPTS = Path(__file__).resolve().parents[2]
LOGS = ".upstream/test"  # folder of the logs and pytest's results of the last run
# What the tests import beyond the release's requirements. Text prompts need the module `clip`, whose packaged form
# needs pkg_resources, which setuptools has dropped.
TOOLS = ["pytest>=8.2", "pytest-xdist", "pytest-timeout", "lap", "shapely", "aiohttp", "clip-anytorch", "setuptools<82"]
EXPORTERS = ["onnx", "onnxruntime", "onnxslim", "openvino"]
TEST_SECONDS = 300  # limit of a test, so that none blocks the run; alone on a core the longest takes one minute
PYTEST = [
    *("-m", "pytest", "--verbose", "--color=no", "--override-ini=addopts=", "-p", "no:cacheprovider"),
    *("--override-ini=junit_family=xunit1", "--continue-on-collection-errors", f"--timeout={TEST_SECONDS}"),
    "--max-worker-restart=20",  # a crashed one is replaced: the tests after it still count
]
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "SYSTEMROOT")
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses connections, so that no request waits for an answer


@dataclass(frozen=True)
class Side:
    """The untouched release or ours, and its folder; `log` and `results` belong to one run of pytest."""

    name: str
    folder: Path
    turn: str = ""

    @property
    def repo(self) -> Path:
        return self.folder / "repo"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}{self.turn}.log"

    @property
    def results(self) -> Path:
        return self.folder / f"{self.name}{self.turn}.xml"


@dataclass
class SuiteReport:
    """The result of both sides."""

    release: str
    edited: list[str]
    totals: dict[str, dict[str, int]]
    regressions: list[Difference]  # at both tries
    flaky: list[Difference]  # at the first try only
    only_here: list[Difference]
    seconds: dict[str, float] = field(default_factory=dict)

    def json(self) -> str:
        """Format the report as JSON."""
        return json.dumps(asdict(self), indent=1)


def test(root: Path, select: str | None = None, workers: int = 1) -> SuiteReport:
    """Run upstream's tests on both sides.

    Args:
        root: The checkout, laid down.
        select: Run only the tests that match this expression, as pytest's -k reads it.
        workers: How many tests of a side run at once.

    Raises:
        UpstreamError: If the tests cannot be downloaded or run, but not if tests fail.
    """
    began = time.monotonic()
    pin, stamp = Pin.read(root), read_stamp(root)
    if stamp.get("queue") != queue_sha256(root) or "pending" in stamp or list_missing_files(root, stamp["files"]):
        raise UpstreamError(f"{PACKAGE}/ was not laid down from this queue; run `{APPLY}` first")
    with explain_os_errors(root), stop_on_terminate(), make_scratch_folder(root) as folder:
        untouched, ours = sides = [Side(name, folder / name) for name in ("untouched", "ours")]
        with lock_checkout(root):
            wheel = fetch_wheel(root, pin, folder)
            sdist = fetch_sdist(root, pin, wheel, folder)
            unpack_wheel(wheel, untouched.repo)
            copy_ours(root, ours.repo)
            edited = list_edited_files(root, stamp["files"])
        try:
            with make_interpreter([*read_requirements(wheel), *OUR_REQUIREMENTS, *TOOLS, *EXPORTERS], folder) as python:
                for side in sides:
                    unpack_tests(sdist, side.repo)
                    add_installation_files(side, wheel, python)
                if select:
                    check_expression(python, untouched, select)
                make_files(python, untouched, folder / "files")
                for side in sides:
                    shutil.copytree(folder / "files" / "weights", side.repo / "weights")
                    shutil.copytree(folder / "files" / "datasets", side.folder / "datasets")
                prepared = time.monotonic()
                report = compare_sides(pin, edited, python, sides, select, workers)
        finally:
            keep_logs(root, folder)
    report.seconds = {"preparation": round(prepared - began, 1), "tests": round(time.monotonic() - prepared, 1)}
    return report


def compare_sides(
    pin: Pin, edited: list[str], python: str, sides: list[Side], select: str | None, workers: int
) -> SuiteReport:
    """Run the tests, then run again those whose outcome is worse on ours."""
    options = [f"--numprocesses={workers}"]
    arguments = [*options, *(["-k", select] if select else []), "tests"]
    untouched, ours = run_pytest(python, dict.fromkeys(sides, arguments))
    if not untouched:
        raise UpstreamError(f"no test of {PACKAGE} {pin.release} matches {select!r}")
    suspects = passes_only_there(untouched, ours)
    confirmed = []
    if suspects:
        print_message(f"{len(suspects)} pass untouched and not on ours: running them again on both sides")
        turns = {}
        for side in sides:
            # A test that was not collected would make pytest refuse the others
            ids = [s.test for s in suspects if side.name == "untouched" or s.ours.state != ABSENT]
            if ids:
                file = side.folder / "again.txt"
                file.write_text("\n".join(ids), encoding="utf-8")
                turns[Side(side.name, side.folder, "-again")] = [*options, f"@{file}"]
        confirmed = passes_only_there(*[*run_pytest(python, turns), {}][:2])
    first = {suspect.test: suspect for suspect in suspects}
    confirmed = [first[again.test] if again.ours.state == ABSENT else again for again in confirmed]
    flaky = [suspect for suspect in suspects if suspect.test not in {again.test for again in confirmed}]
    counts = {side.name: count_outcomes(outcomes) for side, outcomes in zip(sides, (untouched, ours))}
    return SuiteReport(pin.release, edited, counts, confirmed, flaky, passes_only_here(untouched, ours))


def describe_suite(report: SuiteReport) -> str:
    """Format a report as text."""
    seconds = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in report.seconds.items())
    lines = [f"the tests of {PACKAGE} {report.release}, without a network ({seconds})"]
    for side, counts in report.totals.items():
        lines.append(f"  {side:<10} " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    if report.edited:
        lines.append(f"  ours is with what was edited in place: {', '.join(report.edited)}")
    for title, differences in (
        ("failed here and, run again, did as untouched: by chance, it seems", report.flaky),
        ("pass here and not untouched", report.only_here),
        ("pass untouched and not here, run twice", report.regressions),
    ):
        if differences:
            lines += ["", f"{title} ({len(differences)})", *(f"  {difference}" for difference in differences)]
    if report.regressions:
        lines += ["", f"{len(report.regressions)} tests that pass untouched fail here; the logs are in {LOGS}/"]
    else:
        lines += ["", "no test that passes untouched fails here"]
    return "\n".join(lines)


# Folders --------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def make_scratch_folder(root: Path) -> Iterator[Path]:
    """Make a folder for this run. A folder of a killed run is removed after a day, as it may still be in use before."""
    for left in (root / ".upstream").glob("test-*"):
        if time.time() - left.stat().st_mtime > 86400:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="test-", dir=root / ".upstream", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def copy_ours(root: Path, repo: Path) -> None:
    """Copy the patched tree as it is, with what stands beside it in a checkout."""
    for name in (PACKAGE, "cfg_custom", "patches"):
        if (root / name).is_dir():
            shutil.copytree(root / name, repo / name, ignore=shutil.ignore_patterns("__pycache__"))


def add_installation_files(side: Side, wheel: Path, python: str) -> None:
    """Add the metadata and the command of an installed package, and the mark of a repository's root.

    Upstream's default folders for weights and runs lie under that root, and the one for data sets beside it. Some tests
    reset the settings, and must not find this checkout there.
    """
    (side.repo / ".git").mkdir()
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        archive.extract(metadata, side.repo)
    for name in ("home", "config", "bin"):
        (side.folder / name).mkdir()
    main = side.folder / "yolo.py"
    main.write_text("from ultralytics.cfg import entrypoint\n\nif __name__ == '__main__':\n    entrypoint()\n")
    command = side.folder / "bin" / "yolo"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} {shlex.quote(str(main))} "$@"\n')
    command.chmod(0o755)


def keep_logs(root: Path, folder: Path) -> None:
    """Replace the logs and results of the last run by those of this run, where the report says."""
    kept, staged = root / LOGS, folder / "logs"
    staged.mkdir()
    for file in [*folder.glob("*.log"), *folder.glob("*/*.log"), *folder.glob("*/*.xml")]:
        shutil.copyfile(file, staged / file.name)
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(staged, kept)


# Runs -----------------------------------------------------------------------------------------------------------------
def environment_variables(side: Side, python: str) -> dict[str, str]:
    """Return the environment variables of a side, without the user's settings and without a network."""
    kept = {key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ}
    proxies = {f"{kind}_proxy": NOWHERE for kind in ("http", "https", "all")} | {"no_proxy": "127.0.0.1,localhost"}
    return {
        **kept,
        **proxies,
        **{key.upper(): value for key, value in proxies.items()},
        "PATH": os.pathsep.join([str(side.folder / "bin"), str(Path(python).parent), kept.get("PATH", "")]),
        "HOME": str(side.folder / "home"),
        "USERPROFILE": str(side.folder / "home"),
        "PYTHONPATH": str(side.repo),
        "PYTHONHASHSEED": "0",
        "TORCH_HOME": str(side.folder.parent / "files" / "torch"),
        "YOLO_CONFIG_DIR": str(side.folder / "config"),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "CUDA_VISIBLE_DEVICES": "",  # the verdict is the same with and without a GPU
        "MPLBACKEND": "agg",
    }


def check_expression(python: str, side: Side, select: str) -> None:
    """Raise an error for an expression that -k cannot read, which pytest's workers ignore."""
    log = side.folder / "expression.log"
    command = [python, *PYTEST, "-k", select, str(side.folder / "home")]  # a folder without tests
    with run_logged(command, log, side.folder, environment_variables(side, python)) as process:
        if process.wait() != 5:
            raise UpstreamError(f"{select!r} is not an expression that -k reads: {find_error_line(log)}")


def make_files(python: str, side: Side, files: Path) -> None:
    """Make the checkpoints and data sets with the untouched release."""
    print_message("making checkpoints and data sets")
    environment = environment_variables(side, python)
    environment["PYTHONPATH"] += os.pathsep + str(SCRIPTS)
    log = files.parent / "checkpoints.log"
    with run_logged([python, "-m", "_upstream.tests.assets", str(files)], log, side.repo, environment) as process:
        if process.wait():
            raise UpstreamError(f"{LOGS}/{log.name}: the checkpoints could not be made: {find_error_line(log)}")


def run_pytest(python: str, turns: dict[Side, list[str]]) -> list[dict[str, Outcome]]:
    """Run pytest on each side with its arguments at once; return the outcome of each test on each side."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for side, arguments in turns.items():
            command = [python, *PYTEST, f"--junitxml={side.results}", f"--basetemp={side.folder / 'tmp'}", *arguments]
            process = stack.enter_context(run_logged(command, side.log, side.repo, environment_variables(side, python)))
            processes[side.name] = (process, side.log)
        show_progress(processes)
    for side, (process, log) in zip(turns, processes.values()):
        # 0: all passed, 1: some failed, 5: no test. On ours, too many crashes are a result
        if not side.results.is_file() or (side.name == "untouched" and process.returncode not in (0, 1, 5)):
            status = process.returncode
            raise UpstreamError(f"{LOGS}/{log.name}: pytest ended with status {status}: {find_error_line(log)}")
    return [read_junit(side.results) for side in turns]


def find_error_line(log: Path) -> str:
    """Return the line of a log that names the error: the one that pytest marks, else the last."""
    lines = [line.strip("= ") for line in log.read_text(errors="replace").splitlines()]
    marked = [line.partition("ERROR: ")[2] for line in lines if "ERROR: " in line]
    return next((line for line in [*marked[:1], *reversed(lines)] if line), "no message")
