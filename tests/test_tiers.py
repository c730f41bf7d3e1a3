"""The tiers hold what they promise, by the recorded times."""

import pytest
import tiers


def test_recorded_times_fit_the_budget_of_the_fast_tier(request):
    """Ten minutes of processor time."""
    durations = tiers.read_durations()
    run = [item for item in request.session.items if not item.get_closest_marker("nightly")]
    fast = [item for item in run if not tiers.is_slow(item, durations)]
    assert durations["tests"] and tiers.sum_durations(fast, durations) <= tiers.FAST_BUDGET


def test_recorded_times_fit_the_budget_of_the_slow_tier(request):
    """35 minutes of processor time, without the end-to-end cases, which are in the fast tier."""
    durations, fast = tiers.read_durations(), request.config.stash[tiers.end_to_end]
    slow = sum(seconds for name, seconds in durations["tests"].items() if seconds > tiers.SLOW and name not in fast)
    assert slow + sum(durations["fixtures"].values()) <= tiers.SLOW_BUDGET


def test_slow_tests_are_recorded_under_their_names(request):
    """A test that was renamed would lose its time, and a slow one would be in the fast tier again."""
    names = request.config.stash[tiers.collected]
    files = {name.partition("::")[0] for name in names}
    slow = [name for name, seconds in tiers.read_durations()["tests"].items() if seconds > tiers.SLOW]
    gone = [name for name in slow if name.partition("::")[0] in files and name not in names]
    if any("::" in argument for argument in request.config.args):
        pytest.skip("only some tests of a file were collected")
    assert not gone, "write the times anew by: uv run pytest -m '' --measure"


def test_each_promise_has_an_end_to_end_case(request):
    """The fast tier has at least one case of each promise, marked with its name."""
    if request.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        pytest.skip("only some files were collected")
    assert request.config.stash[tiers.promises] == sorted(tiers.PROMISES)
