"""Sorts the tests into tiers by their recorded processor time, as a plugin of pytest.

    uv run pytest                    the fast tier
    uv run pytest -m slow            the rest
    uv run pytest -m "" --measure    both; writes tests/durations.json

A test is slow if its recorded time is above `SLOW`. A test that is marked `end_to_end` is in the fast tier whatever it
takes: each promise of the README has at least one.
"""

import json
import resource
from pathlib import Path

import pytest

DURATIONS = Path(__file__).with_name("durations.json")  # seconds of processor time by test, children included
SLOW = 1.5  # seconds
FAST_BUDGET = 10 * 60  # seconds of processor time of the fast tier
RECORDED = 0.2  # seconds from which a test's time is kept
PROMISES = (  # of the README; each has a test that is marked end_to_end with its name
    *("train", "val", "predict", "export", "resume", "restricted loading", "transfer", "rebase", "two processes"),
)

collected = pytest.StashKey[set]()
promises = pytest.StashKey[list]()
measured: dict[str, float] = {}


def read_durations() -> dict[str, float]:
    """Read the recorded times."""
    return json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {}


def is_slow(item: pytest.Item, durations: dict[str, float]) -> bool:
    """Whether a test belongs to the slow tier."""
    return durations.get(item.nodeid, 0) > SLOW and item.get_closest_marker("end_to_end") is None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow tests, and let the files with the most work begin first."""
    durations = read_durations()
    config.stash[collected] = {item.nodeid for item in items}
    marks = [mark for item in items for mark in item.iter_markers("end_to_end")]
    config.stash[promises] = sorted({promise for mark in marks for promise in mark.args})
    work: dict[Path, float] = {}
    for item in items:
        if is_slow(item, durations):
            item.add_marker(pytest.mark.slow)
        work[item.path] = work.get(item.path, 0) + durations.get(item.nodeid, 0)
    items.sort(key=lambda item: -work[item.path])


def processor_time() -> float:
    """Give the seconds of processor time of this process and its finished children."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Note when a test begins."""
    item.began = processor_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Send a test's processor time to the process that writes it down."""
    report = yield
    if report.when == "teardown":
        report.user_properties.append(("processor_time", processor_time() - item.began))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the times."""
    times = dict(report.user_properties)
    if report.when == "teardown" and "processor_time" in times:
        measured[report.nodeid] = times["processor_time"]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say how much processor time the run took, and write the times down if that was asked for."""
    if hasattr(config, "workerinput") or not measured:
        return
    terminalreporter.write_line(f"processor time: {sum(measured.values()) / 60:.1f} min")
    if config.getoption("--measure"):
        times = {name: round(seconds, 2) for name, seconds in sorted(measured.items()) if seconds >= RECORDED}
        DURATIONS.write_text(json.dumps(times, indent=0) + "\n", encoding="utf-8")
