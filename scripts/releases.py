# /// script
# dependencies = ["pypi-simple>=1.6"]
# ///
"""Record the sha256 of each file of upstream's releases since 8.3.0, and the releases that were yanked.

    uv run scripts/releases.py

This reads PyPI's list and downloads nothing else. What scripts/_upstream/fetch/releases.toml has already stays in it:
PyPI no longer lists the releases that carried malware. A file whose sha256 has changed stops this.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from _upstream.fetch.releases import RECORD, ReleaseRecord, read_record
from _upstream.pin import PACKAGE, parse_version

ROOT = Path(__file__).resolve().parents[1]
FIRST = (8, 3, 0)


def parse_listing(packages: list) -> ReleaseRecord:
    """Parse a list of files, as pypi-simple returns it, into the record of releases since the first one."""
    files = [
        p for p in packages if re.fullmatch(r"\d+\.\d+\.\d+", p.version or "") and parse_version(p.version) >= FIRST
    ]
    reasons = {p.version: re.sub(r'[\s"\\]+', " ", p.yanked_reason or "").strip() for p in files if p.is_yanked}
    refused = {release: f"was yanked by its authors ({reason or 'no reason'})" for release, reason in reasons.items()}
    return ReleaseRecord(refused, {p.filename: p.digests["sha256"] for p in files})


def merge_records(old: ReleaseRecord, new: ReleaseRecord) -> ReleaseRecord:
    """Merge a new record into the old one; stop if a sha256 has changed."""
    changed = sorted(name for name, digest in new.sha256.items() if old.sha256.get(name, digest) != digest)
    if changed:
        sys.exit(f"releases.py: {', '.join(changed)} is not what {RECORD} has: do not use it, and ask upstream")
    return ReleaseRecord({**new.refused, **old.refused}, {**new.sha256, **old.sha256})


def main() -> None:
    """Renew the record."""
    from pypi_simple import PyPISimple

    with PyPISimple() as index:
        new = parse_listing(index.get_project_page(PACKAGE).packages)
    old, record = read_record(), merge_records(read_record(), new)
    (ROOT / RECORD).write_text(record.text(), encoding="utf-8", newline="\n")
    print(f"{RECORD}: {len(record.sha256)} files, {len(record.sha256) - len(old.sha256)} of them new")
    print(f"refused: {', '.join(record.refused)}")


if __name__ == "__main__":
    main()
