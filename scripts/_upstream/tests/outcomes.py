"""The outcome of each test of a run, and the tests that differ between two runs."""

from __future__ import annotations

import collections
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, ERROR, SKIPPED, ABSENT = "passed", "failed", "error", "skipped", "not run"
TAGS = {"failure": FAILED, "error": ERROR, "skipped": SKIPPED}
WORST_FIRST = (ERROR, FAILED, SKIPPED, PASSED)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a test, and the reason if it did not pass."""

    state: str
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """A test with different outcomes on the two sides."""

    test: str
    untouched: Outcome
    ours: Outcome

    def __str__(self) -> str:
        where, outcome = ("here", self.ours) if self.untouched.state == PASSED else ("untouched", self.untouched)
        return f"{self.test}\n      {outcome.state} {where}{f': {outcome.reason}' if outcome.reason else ''}"


def read_junit(file: Path) -> dict[str, Outcome]:
    """Read pytest's results by test id. If a test is there twice, as after a failed teardown, the worst counts.

    Args:
        file: In pytest's xunit1 format, which names the files.
    """
    outcomes = {}
    for case in ElementTree.parse(file).iter("testcase"):
        states = [(TAGS[child.tag], child) for child in case if child.tag in TAGS]
        outcome = min(
            (Outcome(state, read_reason(child)) for state, child in states), key=rank_outcome, default=Outcome(PASSED)
        )
        test = read_test_id(case)
        outcomes[test] = min(outcome, outcomes.get(test, outcome), key=rank_outcome)
    return outcomes


def rank_outcome(outcome: Outcome) -> int:
    """Return the place of an outcome from worst to best."""
    return WORST_FIRST.index(outcome.state)


def read_test_id(case: ElementTree.Element) -> str:
    """Return the id that pytest takes on its command line, or the file if it could not be collected."""
    file, owner, name = (case.get(key) or "" for key in ("file", "classname", "name"))
    module = file.removesuffix(".py").replace("\\", "/").replace("/", ".")
    if not owner or ".".join((owner, name)) == module:
        return file or name
    classes = owner.removeprefix(module).strip(".")
    return "::".join((file, *classes.split("."), name) if classes else (file, name))


def read_reason(element: ElementTree.Element) -> str:
    """Return the error of a test in one line."""
    lines = [line.strip() for line in (element.get("message") or "").splitlines() if line.strip()]
    text = [line.strip() for line in (element.text or "").splitlines() if line.strip()]
    if element.tag == "error" and text and (not lines or lines[0] == "collection failure"):
        lines = [re.sub(r"^E +", "", text[-1])]
    return lines[0][:300] if lines else ""


def passes_only_there(untouched: dict[str, Outcome], ours: dict[str, Outcome]) -> list[Difference]:
    """List the tests that pass on the untouched release and not on ours, also because they did not run."""
    files = {test: outcome for test, outcome in ours.items() if "::" not in test}  # those that were not collected
    return [
        Difference(test, outcome, ours.get(test) or outcome_not_run(files.get(test.partition("::")[0])))
        for test, outcome in untouched.items()
        if outcome.state == PASSED and ours.get(test, Outcome(ABSENT)).state != PASSED
    ]


def passes_only_here(untouched: dict[str, Outcome], ours: dict[str, Outcome]) -> list[Difference]:
    """List the tests that pass on ours and not on the untouched release."""
    swapped = passes_only_there(ours, untouched)
    return [Difference(difference.test, difference.ours, difference.untouched) for difference in swapped]


def outcome_not_run(file: Outcome | None) -> Outcome:
    """Return the outcome of a test that did not run, mostly because its file could not be imported."""
    return Outcome(ABSENT, file.reason if file else "")


def count_outcomes(outcomes: dict[str, Outcome]) -> dict[str, int]:
    """Count the tests in each state."""
    counts = collections.Counter(outcome.state for outcome in outcomes.values())
    return {state: counts[state] for state in (PASSED, FAILED, ERROR, SKIPPED)}
