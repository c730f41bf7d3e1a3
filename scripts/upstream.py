"""Follow upstream: lay down its pinned release with the patch queue on it, keep the queue, carry it to new releases.

    python scripts/upstream.py apply             make ultralytics/ the recorded tree: what installing the project does
    python scripts/upstream.py status            the pin, the queue with its changed lines, the state of ultralytics/
    python scripts/upstream.py export            fold what was edited under ultralytics/ into patches/
    python scripts/upstream.py rebase [VERSION]  carry the queue to another release (default: newest) and verify it
    python scripts/upstream.py check VERSION …   carry it to each release in scratch and verify it there
    python scripts/upstream.py test              run upstream's own tests on the untouched release and on ours

Upstream's wheels come from the package registry through pip, or from files: the environment variable
ULTRALYTICS_WHEEL names one (or a folder that holds it), else they are searched in the folder wheels/. Releases
and queue are commits in a scratch repository, .upstream/repo, so that the work is git's own. `rebase`, `check`
and `test` run in environments of their own, which uv makes and keeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from _shared.progress import MissingPackageError, Progress
from _upstream.pin import Pin, UpstreamError
from _upstream.processes import stop_on_terminate
from _upstream.queue import check, rebase, rebase_report
from _upstream.queue.apply import apply
from _upstream.queue.export import export
from _upstream.queue.status import status
from _upstream.tests import suite

ROOT = Path(__file__).resolve().parents[1]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("apply", help="make ultralytics/ the recorded tree")
    command.add_argument("--discard-edits", action="store_true", help="overwrite files that were edited")

    commands.add_parser("status", help="show the pin, the queue and the state of the tree")

    command = commands.add_parser("export", help="fold edits under ultralytics/ into patches/")
    command.add_argument("-m", "--message", help="commit message of a new patch: why, what retires it, which test")
    command.add_argument("--new", action="store_true", help="make one new patch of all edits")

    command = commands.add_parser("rebase", help="carry the queue to another release, verify it and write it")
    command.add_argument("version", nargs="?", help="the release; the newest without it")
    command.add_argument("--dry-run", action="store_true", help="show what would come out; change nothing")
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    way = command.add_mutually_exclusive_group()
    way.add_argument("--continue", dest="action", action="store_const", const="continue", help="go on after a stop")
    way.add_argument(
        "--skip", dest="action", action="store_const", const="skip", help="drop the patch that it stopped at"
    )
    way.add_argument("--abort", dest="action", action="store_const", const="abort", help="leave everything as it was")

    command = commands.add_parser("check", help="carry the queue to releases in scratch and verify it there")
    command.add_argument("version", nargs="*", help="releases")
    command.add_argument(
        "--every", type=parse_positive, metavar="N", help="each Nth since 8.3.0, and each line's newest"
    )
    command.add_argument(
        "--workers", type=parse_positive, default=check.count_cores(), help="at once (default: a core each)"
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON")

    command = commands.add_parser("test", help="run upstream's own tests on the untouched release and on ours")
    command.add_argument("-k", dest="select", metavar="EXPRESSION", help="only tests that match, as pytest reads it")
    command.add_argument("--workers", type=parse_positive, default=1, help="tests of a side at once (default: 1)")
    command.add_argument("--json", action="store_true", help="print the report as JSON")

    args = parser.parse_args(argv)
    if args.command == "rebase" and args.action and (args.version or args.dry_run):
        parser.error(f"--{args.action} takes neither a version nor --dry-run")
    if args.command == "check" and not (args.version or args.every):
        parser.error("name releases, or --every 10")
    return args


def parse_positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run_rebase(args: argparse.Namespace) -> int:
    """Start, continue or abort a rebase; print the report."""
    with Progress("rebase") as progress:
        if args.action:
            report = rebase.resume_rebase(ROOT, args.action, progress.step)
        else:
            report = rebase.rebase(ROOT, args.version, progress.step, args.dry_run)
    print(report.json() if args.json else rebase_report.describe_rebase(report))
    return report.outcome in ("stopped", "wrong")


def run_check(args: argparse.Namespace) -> int:
    """Check releases; print the table."""
    releases = list(dict.fromkeys(args.version))
    if args.every:
        releases += [v for v in check.sample_releases(args.every, Pin.read(ROOT).release) if v not in releases]
    with Progress("check", len(releases), lines=True) as progress:
        findings = check.check(ROOT, releases, args.workers, progress.step)
    print(check.findings_as_json(findings) if args.json else check.format_findings(findings))
    return not all(finding.is_right for finding in findings)


def run_test(args: argparse.Namespace) -> int:
    """Run upstream's tests; print how the two sides differ."""
    report = suite.test(ROOT, args.select, args.workers)
    print(report.json() if args.json else suite.describe_suite(report))
    return bool(report.regressions)


RUN = {"rebase": run_rebase, "check": run_check, "test": run_test}


def main(argv: list[str] | None = None) -> None:
    """Run a command; an error is one line on stderr and exit status 1."""
    args = parse_arguments(argv)
    try:
        if args.command == "apply":
            print(apply(ROOT, args.discard_edits))
        elif args.command == "status":
            print(status(ROOT))
        elif args.command == "export":
            print(export(ROOT, args.message, args.new))
        else:
            with stop_on_terminate():
                sys.exit(RUN[args.command](args))
    except (UpstreamError, MissingPackageError) as e:
        if getattr(args, "json", False):
            print(json.dumps({"outcome": "error", "message": str(e)}))
        sys.exit(f"{Path(__file__).name}: {e}")
    except KeyboardInterrupt:
        sys.exit(f"{Path(__file__).name}: interrupted")


if __name__ == "__main__":
    main()
