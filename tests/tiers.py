"""Sorts the tests into tiers by their recorded processor time, as a plugin of pytest.

    uv run pytest                    the fast tier
    uv run pytest -m slow            the rest
    uv run pytest -m "" --measure    both; writes tests/durations.json, of the files that were run. With -k or one tier,
                                     the times of the tests that did not run stay

A test is slow if its recorded time, with that of the fixtures that it shares with others, is above `SLOW`. A test
marked `end_to_end` is in the fast tier whatever it takes: each promise of the README has at least one. A test marked
`nightly` runs only with --nightly, which runs all.
"""

import json
import resource
from collections.abc import Iterable
from pathlib import Path

import pytest

DURATIONS = Path(__file__).with_name("durations.json")  # seconds of processor time by test, children included
SLOW = 0.5  # seconds
FAST_BUDGET, SLOW_BUDGET = 10 * 60, 35 * 60  # seconds of processor time of a tier
RECORDED = 0.2  # seconds from which a test's time is kept
PROMISES = (  # of the README; each has a test that is marked end_to_end with its name
    *("train", "val", "predict", "export", "resume", "restricted loading", "transfer", "rebase", "two processes"),
)

collected = pytest.StashKey[set]()
end_to_end = pytest.StashKey[set]()
promises = pytest.StashKey[list]()
fixture_times = pytest.StashKey[dict]()
measured: dict[str, dict[str, float]] = {"tests": {}, "fixtures": {}}


def read_durations() -> dict[str, dict[str, float]]:
    """Read the recorded times, of tests by themselves and of the fixtures that several tests share."""
    return json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {"tests": {}, "fixtures": {}}


def list_shared_fixtures(item: pytest.Item) -> list[str]:
    """List the fixtures of an item that are set up once for several tests, as they are recorded."""
    indices = {**item.callspec.indices, **item.callspec.params} if hasattr(item, "callspec") else {}
    found = [item._fixtureinfo.name2fixturedefs.get(name, ())[-1:] for name in item.fixturenames]
    return [
        fixture_name(definition, indices.get(definition.argname, 0))
        for (definition,) in filter(None, found)
        if definition.scope != "function"
    ]


def fixture_name(definition: pytest.FixtureDef, parameter: object) -> str:
    """Name a fixture, with its parameter if that is a text or a number."""
    known = parameter if isinstance(parameter, (str, int)) else 0
    return f"{definition.baseid}::{definition.argname}[{known}]"


def is_slow(item: pytest.Item, durations: dict[str, dict[str, float]]) -> bool:
    """Whether a test belongs to the slow tier."""
    shared = sum(durations["fixtures"].get(name, 0) for name in list_shared_fixtures(item))
    return durations["tests"].get(item.nodeid, 0) + shared > SLOW and item.get_closest_marker("end_to_end") is None


def sum_durations(items: Iterable[pytest.Item], durations: dict[str, dict[str, float]]) -> float:
    """Add up what tests take, each shared fixture once."""
    items = list(items)
    fixtures = {name for item in items for name in list_shared_fixtures(item)}
    own = sum(durations["tests"].get(item.nodeid, RECORDED) for item in items)  # at most, where none is kept
    return own + sum(durations["fixtures"].get(name, 0) for name in fixtures)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow tests, and let the files with the most work begin first."""
    durations = read_durations()
    config.stash[collected] = {item.nodeid for item in items}
    config.stash[end_to_end] = {item.nodeid for item in items if item.get_closest_marker("end_to_end")}
    marks = [mark for item in items for mark in item.iter_markers("end_to_end")]
    config.stash[promises] = sorted({promise for mark in marks for promise in mark.args})
    work: dict[Path, float] = {}
    for item in items:
        if is_slow(item, durations) and not config.getoption("--nightly"):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("nightly") and not config.getoption("--nightly"):
            item.add_marker(pytest.mark.skip(reason="with --nightly"))
        work[item.path] = work.get(item.path, 0) + durations["tests"].get(item.nodeid, 0)
    items.sort(key=lambda item: -work[item.path])


def processor_time() -> float:
    """Give the seconds of processor time of this process and its finished children."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Note when a test begins."""
    item.stash[fixture_times] = {}
    item.began = processor_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest):
    """Note what a shared fixture takes, at the test that is the first to need it."""
    began = processor_time()
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            name = fixture_name(fixturedef, getattr(request, "param", request.param_index))
            request._pyfuncitem.stash[fixture_times][name] = processor_time() - began


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Send a test's processor time to the process that writes it down."""
    report = yield
    if report.when == "teardown":
        shared = item.stash[fixture_times]
        own = processor_time() - item.began - sum(shared.values())
        report.user_properties += [("processor_time", own), ("fixture_times", shared)]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the times."""
    times = dict(report.user_properties)
    if report.when == "teardown" and "processor_time" in times:
        measured["tests"][report.nodeid] = times["processor_time"]
        measured["fixtures"].update(times["fixture_times"])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say how much processor time the run took, and write the times down if that was asked for."""
    if hasattr(config, "workerinput") or not measured["tests"]:
        return
    total = sum(sum(times.values()) for times in measured.values())
    terminalreporter.write_line(f"processor time: {total / 60:.1f} min")
    if config.getoption("--measure"):
        names = {name.partition("::")[0] for found in measured.values() for name in found}
        all_tests = not (config.option.keyword or config.option.markexpr)  # of each file, and not one tier
        run = {name for name in names if name.endswith(".py") and all_tests}
        times = {  # those of files that did not run stay, and of conftest.py, of which a run needs some
            kind: {
                **{name: seconds for name, seconds in recorded.items() if name.partition("::")[0] not in run},
                **{name: round(seconds, 2) for name, seconds in measured[kind].items() if seconds >= RECORDED},
            }
            for kind, recorded in read_durations().items()
        }
        DURATIONS.write_text(json.dumps(times, indent=0, sort_keys=True) + "\n", encoding="utf-8")
