"""The record of upstream's releases: the sha256 of each file, and the releases that are never used."""

from __future__ import annotations

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from _upstream.pin import PACKAGE, UpstreamError, hash_file, parse_version, tomllib

RECORD = "scripts/_upstream/fetch/releases.toml"
HEAD = """\
# Upstream's releases since 8.3.0: the sha256 that PyPI lists for each file, and the releases that are never used.
# `uv run scripts/releases.py` writes this file anew; `rebase` adds the release that it goes to.
"""


@dataclass(frozen=True)
class ReleaseRecord:
    """The content of releases.toml."""

    refused: dict[str, str]  # release: why
    sha256: dict[str, str]  # file name: digest

    @classmethod
    def parse(cls, text: str) -> ReleaseRecord:
        data = tomllib.loads(text)
        return cls(data["refused"], data["sha256"])

    def text(self) -> str:
        """Format the record as releases.toml, in the order of the releases."""
        refused = [f'"{release}" = "{self.refused[release]}"\n' for release in sorted(self.refused, key=parse_version)]
        names = sorted(self.sha256, key=lambda name: (parse_version(parse_release(name)), name))
        digests = [f'"{name}" = "{self.sha256[name]}"\n' for name in names]
        return "".join([HEAD, "\n[refused]\n", *refused, "\n[sha256]\n", *digests])


@functools.cache
def read_record() -> ReleaseRecord:
    """Read releases.toml, which lies beside this file."""
    return ReleaseRecord.parse(Path(__file__).with_name("releases.toml").read_text(encoding="utf-8"))


def parse_release(name: str) -> str:
    """Read the release from the name of a wheel or a source distribution."""
    return re.match(rf"{PACKAGE}-(\d+\.\d+\.\d+)(-|\.tar)", name)[1]


def check_release(release: str) -> str:
    """Return a release in upstream's form, as 8.3.50; refuse other text and the releases that are never used."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", release):
        raise UpstreamError(f"{release!r} is not a release of {PACKAGE}: one looks like 8.3.50")
    release = ".".join(map(str, parse_version(release)))
    if release in read_record().refused:
        raise UpstreamError(
            f"{PACKAGE} {release} {read_record().refused[release]}: it is never used; take another release"
        )
    return release


def check_file_hash(file: Path) -> Path:
    """Compare a release's file with its recorded sha256; if none is recorded, print the sha256 of the file."""
    digest, wanted = hash_file(file), read_record().sha256.get(file.name)
    if wanted is None:
        print(
            f"{file.name} has sha256 {digest}: not recorded in {RECORD}; a download was compared with "
            "what the index lists",
            file=sys.stderr,
            flush=True,
        )
    elif digest != wanted:
        raise UpstreamError(
            f"{file} has sha256 {digest}, recorded is {wanted} ({RECORD}): not the file that was published, remove it"
        )
    return file
