"""The report of a rebase, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from _upstream.pin import PACKAGE
from _upstream.queue.rebase_session import REBASE, SESSION, Carried, Stop
from _upstream.verify.build_models import Verdict


@dataclass
class RebaseReport:
    """The result of a rebase."""

    outcome: str  # rebased, stopped, wrong, aborted, up to date
    old: str
    new: str
    dry_run: bool = False
    stop: Stop | None = None
    patches: list[Carried] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)  # overrides that miss their upstream function
    range_diff: str = ""
    api: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    changed: list[str] = field(default_factory=list)
    wheel_sha256: str = ""
    tree_sha256: str = ""
    note: str = ""
    seconds: float = 0.0

    def json(self) -> str:
        """Format the report as JSON."""
        message = commit_message(self) if self.outcome == "rebased" else ""
        return json.dumps({**asdict(self), "commit_message": message}, indent=1)


def describe_rebase(report: RebaseReport) -> str:
    """Format a report as text."""
    way = f"{PACKAGE} {report.old} -> {report.new}"
    if report.outcome == "up to date":
        return f"{PACKAGE}/ is on {report.new} already"
    if report.outcome == "aborted":
        return f"{way}: aborted; everything is as it was"
    if report.overrides and report.outcome == "stopped":
        return describe_overrides(report)
    if report.outcome == "stopped":
        return describe_stop(report)
    lines = [way, "", report.range_diff.rstrip(), ""]
    lines += [f"  {carried.state:<17} {carried.patch}{format_details(carried)}" for carried in report.patches]
    verdict = report.verdict
    if verdict:
        lines += [
            "",
            f"{verdict.models} of {verdict.of_models} shipped models right, {verdict.vanilla} of {verdict.of_vanilla} "
            f"vanilla models equal to the untouched release's ({report.seconds:.0f} s)",
        ]
    if report.outcome == "wrong":
        lines += [f"  {problem}" for problem in [*report.overrides, *(verdict.problems if verdict else [])]]
        lines += [
            "",
            f"edit {SESSION}/ and `{REBASE} --continue`, which folds edits into their patches; or `{REBASE} --abort`"
            if not report.dry_run
            else "a dry run: nothing was changed",
        ]
        return "\n".join(lines)
    lines += ["", "would change" if report.dry_run else "changed, ready to commit after `uv run pytest`:"]
    lines += [f"  {path}" for path in report.changed]
    lines += [report.note] if report.note else []
    lines += ["", "for the commit message:", "", commit_message(report)]
    return "\n".join(lines)


def format_details(carried: Carried) -> str:
    """Format the details of a patch's state."""
    return f"  ({'; '.join(carried.details)})" if carried.details else ""


def commit_message(report: RebaseReport) -> str:
    """Format the commit message of a finished rebase."""
    lines = [f"Follow upstream {report.new}", "", f"The queue, from {report.old}:"]
    lines += [f"- {carried.state}: {carried.patch}{format_details(carried)}" for carried in report.patches]
    lines += ["", "Upstream's public API that our modules use:"]
    lines += [f"- {line}" for line in report.api or ["unchanged"]]
    return "\n".join(lines)


def describe_overrides(report: RebaseReport) -> str:
    """Describe which overrides miss their upstream function, and the state of the patches."""
    lines = [f"{PACKAGE} {report.old} -> {report.new}: upstream functions that our overrides replace are missing"]
    lines += [f"  {line}" for line in report.overrides]
    if report.stop:
        lines += [f"  {report.stop.reason:<17} {report.stop.patch}  ({'; '.join(report.stop.lines)})"]
    lines += [f"  {carried.state:<17} {carried.patch}{format_details(carried)}" for carried in report.patches]
    return "\n".join([*lines, f"nothing was changed; edit the overrides, and `{REBASE} {report.new}` again"])


def describe_stop(report: RebaseReport) -> str:
    """Describe where a rebase waits, why, and how to continue."""
    stop, release = report.stop, f"{PACKAGE} {report.new}"
    head = {
        "conflict": f"patches/{stop.patch} conflicts with {release}:",
        "taken": f"patches/{stop.patch} is in {release} already; `--skip` drops it:",
        "lost": f"patches/{stop.patch} is not on {release}; `--skip` drops it:",
        "moved": f"patches/{stop.patch} applies to {release}, but not where it was:",
        "later": f"patches/{stop.patch} is for {release} again, and does not apply:",
    }[stop.reason]
    lines = [head, *(f"  {line}" for line in stop.lines)]
    if report.range_diff:
        lines += ["", report.range_diff.rstrip(), ""]
    if report.dry_run:
        return "\n".join([*lines, "a dry run: nothing was changed"])
    edit = f"edit the files in {SESSION}"
    lines += {
        "conflict": [
            f"{edit}; in markers, {release} stands above |||||||, the patch below =======",
            f"{REBASE} --continue   when no marker is left",
        ],
        "taken": [],
        "lost": [],
        "moved": [
            f"{edit} if the place is wrong",
            f"{REBASE} --continue   to go on, with what you edited; without edits, with the new place",
        ],
        "later": [f"{edit}", f"{REBASE} --continue   to make the patch of what you edited"],
    }[stop.reason]
    lines += [f"{REBASE} --skip       to drop the patch", f"{REBASE} --abort      to leave everything as it was"]
    return "\n".join(lines)
