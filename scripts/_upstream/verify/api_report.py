"""Report how the upstream names that this fork uses differ between two releases."""

from __future__ import annotations

import ast
from pathlib import Path

from _upstream.pin import OURS, PACKAGE, UpstreamError
from _upstream.verify.overrides import read_overrides
from _upstream.verify.source_tree import SourceTree

PUBLIC = ("__init__", "__call__", "forward")  # methods whose signature counts beside those without an underscore


def api_changes(root: Path, old: Path, new: Path) -> list[str]:
    """List what changed, between two untouched trees, of the names that our folders import or override.

    A name has changed if its own signature, bases or value did, or the signature of a public method. The bodies of
    functions do not count: the tests tell whether they still do the same.

    Args:
        root: The checkout.
        old: The sources of the old release.
        new: The sources of the new release.
    """
    trees, found = (SourceTree(old), SourceTree(new)), []
    for name in sorted(used_names(root)):
        before, after = (describe_name(tree, name) for tree in trees)
        if before and not after:
            found.append(f"{name} is gone")
        for part in sorted({*before, *after}) if after else []:
            if before.get(part) != after.get(part):
                was, now = (f"{name}{part}{side[part]}" if part in side else "nothing" for side in (before, after))
                found.append(f"{was} -> {now}")
    return found


def used_names(root: Path) -> set[str]:
    """List the dotted names that the files of our folders import from upstream, or override there."""
    ours = tuple(folder.replace("/", ".") for folder in OURS)
    names = {found.upstream_name for found in read_overrides(root)}
    for file in [file for folder in OURS for file in (root / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return {name for name in names if not f"{name}.".startswith(ours)}


def describe_name(tree: SourceTree, name: str) -> dict[str, str]:
    """Describe a name: its signature under "", and each public method's under its dotted name; {} if it is missing."""
    try:
        found = tree.find_name(name)
    except UpstreamError as e:
        return {"": f": {e}"}
    if found is None:
        return {}
    node = found.node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {"": f"({ast.unparse(node.args)})"}
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return {"": f"({bases})" if bases else ""} | {
            f".{method.name}": f"({ast.unparse(method.args)})"
            for method in node.body
            if isinstance(method, ast.FunctionDef) and (method.name in PUBLIC or not method.name.startswith("_"))
        }
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return {"": f" = {ast.unparse(node.value)}" if node.value else ""}
    return {"": "" if node else f" from {found.module}"}
