"""The files of the checkout that change with the release: the queue, the record of releases and the documents."""

from __future__ import annotations

import re
from pathlib import Path

from _upstream.fetch.releases import RECORD, ReleaseRecord
from _upstream.pin import Pin, UpstreamError
from _upstream.queue.export import list_changed_patches
from _upstream.queue.rebase_session import Notes
from _upstream.verify.environment import read_requirements


def list_changed_files(
    root: Path, notes: Notes, pin: Pin, queue: dict[str, bytes], wheel: Path
) -> dict[str, bytes | None]:
    """Return the files of the checkout that change with the release, by path."""
    files = list_changed_patches(root, {**queue, "upstream.toml": pin.text().encode()})
    texts = {
        "pyproject.toml": lambda text: replace_requirements(replace_own_version(text, notes), read_requirements(wheel)),
        "README.md": lambda text: replace_own_version(text, notes).replace(f"**{notes.old}**", f"**{notes.new}**"),
        "CHANGELOG.md": lambda text: add_changelog_section(text, notes),
        RECORD: lambda text: add_wheel_hash(text, pin),
    }
    for name, change in texts.items():
        text = (root / name).read_text(encoding="utf-8") if (root / name).is_file() else ""
        if change(text) != text:
            files[name] = change(text).encode()
    return files


def replace_own_version(text: str, notes: Notes) -> str:
    """Replace this project's version for the old release by the one for the new release."""
    return text.replace(f"{notes.old}+addmodules.", f"{notes.new}+addmodules.")


def add_wheel_hash(releases: str, pin: Pin) -> str:
    """Add the sha256 of the new release's wheel to the record, if it is not there yet."""
    known = ReleaseRecord.parse(releases)
    return ReleaseRecord(known.refused, {pin.wheel: pin.wheel_sha256, **known.sha256}).text()


def add_changelog_section(changelog: str, notes: Notes) -> str:
    """Add a section for the new release to the changelog, with this project's number unchanged."""
    head = re.search(r"(?m)^## \S+\+addmodules\.(\d+)", changelog)
    if not head:
        return changelog
    title = f"## {notes.new}+addmodules.{head[1]}\n"
    if title in changelog:  # after a rebase back and forth
        return changelog
    section = f"{title}\n- Follows upstream {notes.new}.\n\n"
    return changelog[: head.start()] + section + changelog[head.start() :]


def replace_requirements(pyproject: str, needs: list[str]) -> str:
    """Replace the old release's requirements in pyproject.toml by the new release's, above this project's own."""
    block = re.search(r"(?ms)^dependencies = \[\n(  # Upstream's.*?\n)(.*?)(?=^  # Ours\n)", pyproject)
    if not block:
        raise UpstreamError('pyproject.toml has no dependencies between "# Upstream\'s" and "# Ours"')
    stands = {parse_requirement(line): line for line in re.findall(r'(?m)^  "(.*)",$', block[2])}
    lines = [stands.get(parse_requirement(need), need.replace('"', "'")) for need in needs]
    return pyproject[: block.start(2)] + "".join(f'  "{line}",\n' for line in lines) + pyproject[block.end(2) :]


def parse_requirement(need: str) -> tuple:
    """Parse a requirement into a form that does not depend on quotes or the order of its limits."""
    wanted, _, marker = need.replace('"', "'").partition(";")
    name, limits = re.match(r"\s*([\w.\[\]-]+)\s*(.*)", wanted).groups()
    return name, frozenset(re.split(r"\s*,\s*", limits.strip(" ()"))), marker.strip()
