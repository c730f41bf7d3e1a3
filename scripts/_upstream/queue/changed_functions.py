"""Find the functions that a commit changes, and those that a patch has moved to on another release."""

from __future__ import annotations

import ast
import collections
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from _upstream.pin import UpstreamError
from _upstream.queue.git import git


def find_enclosing_function(source: bytes, line: int) -> str:
    """Return the function or class around a line of Python source as `Class.method`, or "" at module level."""
    node, names = ast.parse(source), []
    while True:
        for child in ast.walk(node):
            if child is not node and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                if first <= line <= child.end_lineno:
                    node = child
                    names.append(child.name)
                    break
        else:
            return ".".join(names)


def count_changed_lines(repo: Path, commit: str) -> dict[str, collections.Counter]:
    """Count the lines that a commit changes, by file and function."""
    found: dict[str, collections.Counter] = {}
    diff = git("diff-tree", "-p", "--unified=0", "--no-renames", "--full-index", commit, cwd=repo)
    for part in re.split(r"(?m)^(?=diff --git )", diff)[1:]:
        path = re.search(r"^diff --git a/(.+) b/", part)[1]
        counts = found.setdefault(path, collections.Counter())
        for match in re.finditer(r"(?m)^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", part):
            for side, first, count in ((f"{commit}^", match[1], match[2]), (commit, match[3], match[4])):
                lines = range(int(first), int(first) + int(count or 1))
                source = git("show", f"{side}:{path}", cwd=repo) if lines and path.endswith(".py") else ""
                try:
                    data = source.encode("utf-8", "surrogateescape")
                    counts.update(find_enclosing_function(data, line) for line in lines)
                except (SyntaxError, ValueError) as e:
                    python = platform.python_version()
                    raise UpstreamError(
                        f"{path} cannot be read by Python {python} ({e}); run this with another"
                    ) from None
    return found


def find_renamed_files(repo: Path, old: str, new: str) -> dict[str, str]:
    """Return the files that have another path in one commit than in another, with that path."""
    lines = git("diff", "--find-renames", "--diff-filter=R", "--name-status", old, new, cwd=repo).splitlines()
    return {line.split("\t")[1]: line.split("\t")[2] for line in lines}


@dataclass(frozen=True)
class FunctionMove:
    """A file in which a patch changes other functions than before, or that has been renamed."""

    path: str
    target: str
    gone: frozenset[str]  # functions in which the patch now changes fewer lines
    come: frozenset[str]  # functions in which it now changes more lines

    def __str__(self) -> str:
        if not (self.gone and self.come):
            return f"{self.path} is {self.target} now"
        gone, come = (
            ", ".join(sorted(name or "the module itself" for name in names)) for names in (self.gone, self.come)
        )
        file = f" of {self.path}" if self.path != self.target else ""
        return f"{self.target}: a hunk was in {gone}{file}, is in {come}"


def find_moves(repo: Path, old: str, new: str) -> list[FunctionMove]:
    """List the files in which a commit and its counterpart change different functions."""
    before, after = count_changed_lines(repo, old), count_changed_lines(repo, new)
    renamed = find_renamed_files(repo, f"{old}^", f"{new}^") if before.keys() - after.keys() else {}
    found = []
    for path, counts in before.items():
        target = renamed.get(path, path)
        now = after.get(target, collections.Counter())
        move = FunctionMove(path, target, frozenset(counts - now), frozenset(now - counts))
        if target != path or (move.gone and move.come):
            found.append(move)
    return found
