"""Look up names in the sources of a release with `ast`; nothing is imported."""

from __future__ import annotations

import ast
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _upstream.pin import UpstreamError


@dataclass(frozen=True)
class Definition:
    """Where a name comes from.

    Attributes:
        module: The dotted name of the module in which it is defined, or of the module that it is itself.
        node: The function, class, assignment or module; None for what comes from a package outside of the tree.
    """

    module: str
    node: ast.AST | None


class SourceTree:
    """The sources of a package.

    Args:
        root: The folder that holds the package's folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self._modules: dict[str, ast.Module | None] = {}

    def find_file(self, module: str) -> Path | None:
        """Return the file of a module, or None if the tree has no such module."""
        path = self.root.joinpath(*module.split("."))
        return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)

    def parse_module(self, module: str) -> ast.Module | None:
        """Parse a module of the tree, or return None if the tree has no such module.

        Raises:
            UpstreamError: For a file that this Python cannot parse.
        """
        if module not in self._modules:
            file = self.find_file(module)
            try:
                self._modules[module] = ast.parse(file.read_bytes()) if file else None
            except (SyntaxError, ValueError) as e:
                python = platform.python_version()
                raise UpstreamError(
                    f"{module} cannot be read by Python {python} ({e}); run this with another"
                ) from None
        return self._modules[module]

    def find_name(self, dotted: str) -> Definition | None:
        """Find a dotted name: a module, a name in a module, or a member of a class, wherever it is inherited from."""
        parts = dotted.split(".")
        length = next((n for n in range(len(parts), 0, -1) if self.find_file(".".join(parts[:n]))), 0)
        if not length:
            return None
        module = ".".join(parts[:length])
        return self._follow(Definition(module, self.parse_module(module)), parts[length:])

    def _follow(self, found: Definition | None, names: list[str], seen: frozenset = frozenset()) -> Definition | None:
        """Follow attributes from a definition."""
        for name in names:
            if found is None or found.node is None:
                return found
            if isinstance(found.node, ast.Module):
                found = self._find_in_module(found.module, name, seen)
            elif isinstance(found.node, ast.ClassDef):
                found = self._find_in_class(found, name, seen)
            else:
                return None
        return found

    def _find_in_module(self, module: str, name: str, seen: frozenset) -> Definition | None:
        """Find a name that a module defines or imports, or its submodule of that name."""
        tree = self.parse_module(module)
        if tree is None or (module, name) in seen:
            return None
        seen |= {(module, name)}
        for node in list_statements(tree.body):
            if name in defined_names(node):
                return Definition(module, node)
            for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                found = self._find_import(module, node, alias, name, seen)
                if found:
                    return found
        submodule = f"{module}.{name}"
        return Definition(submodule, self.parse_module(submodule)) if self.find_file(submodule) else None

    def _find_import(
        self, module: str, node: ast.Import | ast.ImportFrom, alias: ast.alias, name: str, seen: frozenset
    ) -> Definition | None:
        """Find a name through one import of a module, or return None if that does not import it."""
        if isinstance(node, ast.Import):
            if name != (alias.asname or alias.name.partition(".")[0]):
                return None
            return self._open(alias.name if alias.asname else name)
        if alias.name != "*" and name != (alias.asname or alias.name):
            return None
        origin = self._find_origin(module, node)
        if alias.name == "*":
            return self._find_in_module(origin, name, seen) if self.find_file(origin) else None
        if not self.find_file(origin):
            return Definition(origin, None)
        return self._find_in_module(origin, alias.name, seen)

    def _open(self, module: str) -> Definition:
        """Return a module, of which there is nothing to read if it is outside of the tree."""
        return Definition(module, self.parse_module(module))

    def _find_origin(self, module: str, node: ast.ImportFrom) -> str:
        """Return the absolute name of the module from which an import takes names."""
        if not node.level:
            return node.module
        parts = module.split(".")
        is_package = self.find_file(module).name == "__init__.py"
        package = parts[: len(parts) - node.level + is_package]
        return ".".join([*package, *([node.module] if node.module else [])])

    def _find_in_class(self, found: Definition, name: str, seen: frozenset) -> Definition | None:
        """Find a member of a class, else of its base classes within the tree."""
        for node in list_statements(found.node.body):
            if name in defined_names(node):
                return Definition(found.module, node)
        for base in found.node.bases:
            names = ast.unparse(base).partition("[")[0].split(".")
            owner = self._follow(self._open(found.module), names)
            if owner and isinstance(owner.node, ast.ClassDef) and (owner.module, owner.node.name, name) not in seen:
                member = self._find_in_class(owner, name, seen | {(owner.module, owner.node.name, name)})
                if member:
                    return member
        return None


def list_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block and of the `if`, `try` and `with` in it, but not of functions and classes."""
    for node in body:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from list_statements(getattr(node, part, []))


def defined_names(node: ast.AST) -> set[str]:
    """Return the names that a statement defines, imports aside."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    found = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    # `name = install(name)` replaces what is there and defines nothing
    return (
        found - {name.id for name in ast.walk(node.value or node) if isinstance(name, ast.Name)} if targets else found
    )
