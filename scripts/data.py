"""Check a data set before a training is paid for: what would be left out, what leaks, what is hardly there.

    uv run scripts/data.py check my-data.yaml --imgsz 640 --html my-data.html

It reads images and labels as a training does, with upstream's rules, also COCO JSON and Pascal VOC's XML, and tells:

- images that are left out, and why; label files without an image
- boxes that are too small to learn when images are stretched to --imgsz
- images that two splits share, by their pixels, and copies within a split
- 16-bit images of which few levels are left, files of several pages, images of other channels
- the objects of each class and of COCO's sizes; classes without objects

It exits with 1 if something is wrong, and with 0 if there are hints only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from _data.findings import Finding, count_classes, count_sizes, find_all
from _data.splits import SPLITS, Split, read_split
from _shared.markdown_table import format_markdown_table
from ultralytics.data.utils import check_det_dataset
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.data.image_kinds import SMALL_SIDE
from ultralytics.fork.errors import is_plain
from ultralytics.utils import LOGGER

EXAMPLES = 3  # files that a finding names on the terminal


def describe_split(split: Split, imgsz: int) -> dict[str, Any]:
    """Count what is in a split."""
    small = sum(int((picture.boxes[:, 2:] * imgsz < SMALL_SIDE).any(1).sum()) for picture in split.used)
    return {
        "split": split.name,
        "images": len(split.pictures),
        "left out": len(split.pictures) - len(split.used),
        "without objects": sum(not len(picture.boxes) for picture in split.used),
        "objects": sum(len(picture.boxes) for picture in split.used),
        **count_sizes(split),
        f"below {SMALL_SIDE} px": small,
    }


def format_report(data: dict[str, Any], splits: list[Split], findings: list[Finding], imgsz: int) -> str:
    """Format the tables and the findings for a terminal."""
    rows = [describe_split(split, imgsz) for split in splits]
    parts = [format_markdown_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows], "---:")]
    counts = np.stack([count_classes(split, data["nc"]) for split in splits], 1)
    table = [[str(data["names"][i]), *map(str, row)] for i, row in enumerate(counts)]
    parts.append(format_markdown_table(["class", *(split.name for split in splits)], table, "---:"))
    lines = []
    for finding in findings:
        lines.append(f"{'WRONG' if finding.is_wrong else 'hint'}: {finding.text}")
        lines += [f"    {file}" for file in finding.files[:EXAMPLES]]
        lines += [f"    and {len(finding.files) - EXAMPLES} more"] if len(finding.files) > EXAMPLES else []
    parts.append("\n".join(lines or ["Nothing is wrong."]))
    return "\n\n".join(parts)


def check(args: argparse.Namespace) -> bool:
    """Check a data set, and write what was asked for; return whether something is wrong."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)  # upstream says of each image what the findings sum up
    try:
        with contextlib.redirect_stdout(sys.stderr):  # upstream's progress
            data = check_det_dataset(args.data, autodownload=False)
            splits = [read_split(data, name) for name in SPLITS if data.get(name)]
    finally:
        LOGGER.setLevel(level)
    findings = find_all(splits, data["names"], data["channels"], data.get("bits"), args.imgsz)
    if args.json:
        classes = {split.name: count_classes(split, data["nc"]).tolist() for split in splits}
        rows = [describe_split(split, args.imgsz) for split in splits]
        found = {"splits": rows, "names": data["names"], "classes": classes, "findings": [asdict(f) for f in findings]}
        print(json.dumps(found, indent=1))
    else:
        print(format_report(data, splits, findings, args.imgsz))
    if args.html:
        from _data.page import make_page

        rows = [describe_split(split, args.imgsz) for split in splits]
        write_atomically(args.html, make_page(args.data, data["names"], rows, splits, findings).encode())
        print(f"{args.html} shows the worst of them", file=sys.stderr)
    return any(finding.is_wrong for finding in findings)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checker = commands.add_parser("check", help="find what is wrong with a data set")
    checker.add_argument("data", help="data YAML, by path or by bare name")
    checker.add_argument("--imgsz", type=int, default=640, help="pixels a side of the training's images (640)")
    checker.add_argument("--json", action="store_true", help="print the findings as JSON")
    checker.add_argument("--html", type=Path, metavar="FILE", help="write a page with the worst images")
    args = parser.parse_args()
    try:
        sys.exit(check(args))
    except (OSError, ValueError, SyntaxError) as e:
        if isinstance(e, OSError) or is_plain(e):
            print(f"data.py: {e}", file=sys.stderr)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
