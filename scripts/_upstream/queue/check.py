"""Carry the queue to many releases in scratch folders, verify each, and show the results as a table."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from _upstream.fetch.releases import read_record
from _upstream.pin import PACKAGE, UpstreamError, parse_version
from _upstream.processes import end_processes_with
from _upstream.queue import patch_states, rebase_session
from _upstream.queue.release_trees import carry_queue_to, write_patched_tree, write_untouched_tree
from _upstream.queue.scratch_folder import explain_os_errors, lock_checkout
from _upstream.verify.build_models import Verdict, verify_tree
from _upstream.verify.overrides import missing_overrides


@dataclass
class Finding:
    """The result of carrying the queue to one release."""

    release: str
    applied: str
    verdict: Verdict | None = None
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether the queue applies and everything was verified."""
        return self.verdict is not None and not self.problems


def check(root: Path, releases: list[str], workers: int, done: Callable[[str], None]) -> list[Finding]:
    """Carry the queue to each release and verify it.

    Args:
        root: The checkout, of which nothing is changed but its scratch folder.
        releases: Versions.
        workers: How many releases are worked on at once.
        done: Called with each release and its verdict, as they come.
    """
    with concurrent.futures.ThreadPoolExecutor(workers) as pool, end_processes_with(pool):
        futures = {pool.submit(check_release, root, release): release for release in releases}
        for future in concurrent.futures.as_completed(futures):
            finding = future.result()
            done(f"{finding.release} {'right' if finding.is_right else 'falls short'}")
    return [future.result() for future in futures]


def check_release(root: Path, release: str) -> Finding:
    """Carry the queue to one release and verify it; an error becomes part of the finding."""
    began = time.monotonic()
    finding = Finding(release, "no")
    try:
        with tempfile.TemporaryDirectory(prefix="ultralytics-check-") as folder, explain_os_errors(root):
            ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
            with lock_checkout(root):
                wheel, repo, stop = carry_queue_to(root, release, Path(folder))
                if stop:
                    finding.applied = stop.reason
                    finding.problems = [f"patches/{stop.patch}: {stop.reason}: {'; '.join(stop.lines)}"]
                else:
                    finding.applied = count_states(patch_states.list_patch_states(repo))
                    write_patched_tree(root, repo, ours)
                    write_untouched_tree(repo, release, theirs)
                    finding.problems = missing_overrides(root, theirs, release)
            if not finding.problems:
                finding.verdict = verify_tree(root, release, wheel, ours, theirs, lambda _: None)
                finding.problems = finding.verdict.problems
    except UpstreamError as e:
        finding.problems = [str(e)]
    finding.seconds = round(time.monotonic() - began, 1)
    return finding


def count_states(outcome: list[rebase_session.Carried]) -> str:
    """Count the patches in each state."""
    counts = collections.Counter(carried.state for carried in outcome)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def sample_releases(every: int, last: str) -> list[str]:
    """List every Nth release from 8.3.0 to `last`, by its number, and the newest of each minor version."""
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = re.search(r"(?m)^Available versions: (.*)$", done.stdout)
    if not found:
        raise UpstreamError(f"pip does not list the releases of {PACKAGE}; connect to the network, or name releases")
    known = sorted({parse_version(name) for name in re.findall(r"\b\d+\.\d+\.\d+(?=,|$)", found[1])})
    known = [v for v in known if (8, 3, 0) <= v <= parse_version(last)]
    newest = {v[:2]: v for v in known}.values()
    chosen = sorted({v for v in known if v[2] % every == 0} | set(newest))
    return [name for name in (".".join(map(str, v)) for v in chosen) if name not in read_record().refused]


def format_findings(findings: list[Finding]) -> str:
    """Format findings as a table, with the problems below it."""
    lines = ["| release | applied | models right | vanilla equal | seconds |", "|---|---|---|---|---|"]
    for finding in findings:
        v = finding.verdict
        models, vanilla = (f"{v.models} of {v.of_models}", f"{v.vanilla} of {v.of_vanilla}") if v else ("–", "–")
        lines.append(f"| {finding.release} | {finding.applied} | {models} | {vanilla} | {finding.seconds:.0f} |")
    wrong = [finding for finding in findings if not finding.is_right]
    for finding in wrong:
        lines += ["", f"{finding.release} falls short:", *(f"  {problem}" for problem in finding.problems)]
    right = len(findings) - len(wrong)
    return "\n".join([*lines, "", f"{right} of {len(findings)} releases right"])


def findings_as_json(findings: list[Finding]) -> str:
    """Format findings as JSON."""
    return json.dumps([{**asdict(finding), "right": finding.is_right} for finding in findings], indent=1)


def count_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
