"""Describe the conflicts of a rebase, and refuse to continue while one is unresolved."""

from __future__ import annotations

import re
from pathlib import Path

from _upstream.pin import PACKAGE, UpstreamError
from _upstream.queue.changed_functions import find_enclosing_function
from _upstream.queue.git import git
from _upstream.queue.rebase_session import REBASE, SESSION, Notes, list_unmerged_paths


def label_conflict_markers(file: Path, notes: Notes, patch: str) -> None:
    """Label both sides of each conflict marker with the release or the patch, instead of git's HEAD and hashes."""
    if not file.is_file() or is_binary(file):
        return
    names = {"<<<<<<<": f"{PACKAGE} {notes.new}", "|||||||": f"{PACKAGE} {notes.old}", ">>>>>>>": f"patches/{patch}"}
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    text = re.sub(r"(?m)^(<{7}|>{7}|\|{7}) .*?(?=\r?$)", lambda match: f"{match[1]} {names[match[1]]}", text)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


def is_binary(file: Path) -> bool:
    """Whether a file is binary."""
    return b"\0" in file.read_bytes()


def describe_conflict(repo: Path, notes: Notes, path: str, stages: set[str]) -> list[str]:
    """Describe where a file conflicts, one line for each place."""
    add, remove = (f"`git -C {SESSION} {verb} {path}`" for verb in ("add", "rm"))
    if not (repo / path).is_file():
        return [f"{path}: is not there; {remove} confirms it"]
    if "2" not in stages:
        return [f"{path}: {PACKAGE} {notes.new} has no such file any more; {remove} agrees, {add} keeps the file"]
    if "3" not in stages:
        return [f"{path}: the patch removes it, {PACKAGE} {notes.new} changed it; {remove} or {add}"]
    if is_binary(repo / path):
        return [f"{path}: both sides changed a binary file; put the right one there, and {add}"]
    text = (repo / path).read_text(encoding="utf-8", errors="replace")
    lines = []
    for match in re.finditer(r"(?m)^<{7} ", text):
        number = text.count("\n", 0, match.start()) + 1
        before = take_upstream_side(text[: match.start()])
        try:
            function = find_enclosing_function(take_upstream_side(text).encode(), before.count("\n") + 1)
        except (SyntaxError, ValueError):
            function = ""
        lines.append(f"{path}, line {number}{f' ({function})' if function else ''}")
    return lines or [f"{path}: edited; `{REBASE} --continue` takes it as it is"]


def take_upstream_side(text: str) -> str:
    """Resolve all conflicts of a text in favour of the new release."""
    return re.sub(r"(?ms)^<{7} [^\n]*\n(.*?)^\|{7} .*?^>{7} [^\n]*\n", r"\1", text)


def refuse_unresolved(repo: Path) -> None:
    """Raise an error that names the first unresolved file, its line and the remedy."""
    paths = list_unmerged_paths(repo)
    for path in sorted({*paths, *git("diff", "--name-only", "-z", "HEAD", cwd=repo).split("\0")[:-1]}):
        file, stages = repo / path, paths.get(path)
        if stages and file.is_file() and (not {"2", "3"} <= stages or is_binary(file)):
            add, remove = (f"`git -C {SESSION} {verb} {path}`" for verb in ("add", "rm"))
            raise UpstreamError(f"{path} conflicts as a whole; {add} keeps it as it is, {remove} drops it")
        if file.is_file() and not is_binary(file):
            text = file.read_text(encoding="utf-8", errors="replace")
            marker = re.search(r"(?m)^(?:<{7}|>{7}|\|{7}) ", text)
            if marker:
                line = text.count("\n", 0, marker.start()) + 1
                raise UpstreamError(f"{SESSION}/{path}, line {line} still has a conflict marker; edit the file first")
