"""Lay down the pinned upstream release with the patch queue on it, and turn edits made in place into patches again.

    python scripts/upstream.py apply      make ultralytics/ the recorded tree: what installing the project does
    python scripts/upstream.py status     the pin, the queue with its changed lines, the state of ultralytics/
    python scripts/upstream.py export     fold what was edited under ultralytics/ into patches/

Upstream's wheel comes from the package registry through pip, or from a file: the environment variable
ULTRALYTICS_WHEEL names it (or a folder that holds it), else the folder wheels/ of the checkout is looked at. Releases
and queue are commits in a scratch repository, .upstream/repo, so that the work is git's own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maintain.apply import apply
from maintain.export import export
from maintain.pin import UpstreamError
from maintain.status import status


def main(argv: list[str] | None = None) -> None:
    """Run a command; an error is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("apply", help="make ultralytics/ the recorded tree")
    command.add_argument("--discard-edits", action="store_true", help="overwrite files that were edited")
    commands.add_parser("status", help="show the pin, the queue and the state of the tree")
    command = commands.add_parser("export", help="fold edits under ultralytics/ into patches/")
    command.add_argument("-m", "--message", help="commit message of a new patch: why, what retires it, which test")
    command.add_argument("--new", action="store_true", help="make one new patch of all edits")
    args = parser.parse_args(argv)
    root = Path(__file__).resolve().parents[1]
    try:
        if args.command == "apply":
            print(apply(root, args.discard_edits))
        elif args.command == "status":
            print(status(root))
        else:
            print(export(root, args.message, args.new))
    except UpstreamError as e:
        sys.exit(f"{Path(__file__).name}: {e}")


if __name__ == "__main__":
    main()
