"""Upstream's public names that our modules use, and how their signatures differ between two releases."""

from __future__ import annotations

import ast
from pathlib import Path

from _upstream.pin import OURS, PACKAGE


def changes(root: Path, old: Path, new: Path) -> list[str]:
    """List what changed, between two untouched trees, of the names that nn/AddModules imports from upstream.

    A name counts as changed where its own signature, bases or value did, or a signature of a public method; the bodies
    of functions do not: whether they still do the same, the tests tell.
    """
    found = []
    for name in sorted(used(root)):
        before, after = (describe(tree, *name.rsplit(".", 1)) for tree in (old, new))
        if before and not after:
            found.append(f"{name} is gone")
        for part in sorted({*before, *after}) if after else []:
            if before.get(part) != after.get(part):
                was, now = (f"{name}{part}{side[part]}" if part in side else "nothing" for side in (before, after))
                found.append(f"{was} -> {now}")
    return found


def used(root: Path) -> set[str]:
    """Give the dotted names that our modules import from upstream."""
    names = set()
    for file in (root / OURS).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
                if not f"{node.module}.".startswith(OURS.replace("/", ".")):
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def describe(tree: Path, module: str, name: str) -> dict[str, str]:
    """Describe a name of a module: its signature under "", and each public method's under its dotted name."""
    path = tree.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return {}
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return {"": f" of {file.name}, which this Python cannot read"}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return {"": f"({ast.unparse(node.args)})"}
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            public = ("__init__", "__call__", "forward")
            return {"": f"({bases})" if bases else ""} | {
                f".{method.name}": f"({ast.unparse(method.args)})"
                for method in node.body
                if isinstance(method, ast.FunctionDef) and (method.name in public or not method.name.startswith("_"))
            }
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return {"": f" = {ast.unparse(node.value)}"}
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
                    parts = package.split(".")[: len(package.split(".")) - max(node.level - 1, 0)]
                    origin = ".".join([*parts, node.module or ""]).rstrip(".") if node.level else node.module
                    return describe(tree, origin, alias.name)
    return {}
