"""Report the overrides of ultralytics/fork/hooks whose upstream function is missing in a release."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _upstream.pin import PACKAGE, UpstreamError, parse_version
from _upstream.verify.source_tree import SourceTree

HOOKS = f"{PACKAGE}/fork/hooks"
DECORATOR = "override"
PARAMETERS = ("target", "since", "until")  # of the decorator


@dataclass(frozen=True)
class Override:
    """A function of ours that replaces the one of the same name in an upstream class or module.

    Attributes:
        file: Its path in the checkout.
        target: The dotted name of the class or module.
        name: The name of the function.
        since: The first release to which it applies.
        until: The first release to which it no longer applies.
    """

    file: str
    target: str
    name: str
    since: str | None = None
    until: str | None = None

    @property
    def upstream_name(self) -> str:
        """The dotted name of the function that it replaces."""
        return f"{self.target}.{self.name}"

    def applies_to(self, release: str) -> bool:
        """Whether it replaces anything on a release."""
        begun = self.since is None or parse_version(release) >= parse_version(self.since)
        return begun and (self.until is None or parse_version(release) < parse_version(self.until))


def missing_overrides(root: Path, tree: Path, release: str) -> list[str]:
    """List the overrides that apply to a release and whose upstream function the release does not have.

    Args:
        root: The checkout, whose overrides are read.
        tree: The release's sources: a folder with ultralytics/.
        release: The release.

    Returns:
        A line for each, with the file, the missing name and the remedy.

    Raises:
        UpstreamError: For an override whose arguments are not constants, or a module that cannot be parsed.
    """
    source = SourceTree(tree)
    return [
        f"{found.file}: override {found.name}: upstream {release} has no {found.upstream_name}; rename the override "
        f'or give it until="{release}"'
        for found in read_overrides(root)
        if found.applies_to(release) and source.find_name(found.upstream_name) is None
    ]


def check_overrides(root: Path, tree: Path, release: str) -> None:
    """Refuse a release that misses the upstream function of an override.

    Raises:
        UpstreamError: With all that `missing_overrides` lists.
    """
    missing = missing_overrides(root, tree, release)
    if missing:
        raise UpstreamError("; ".join(missing))


def read_overrides(root: Path) -> list[Override]:
    """Read the overrides of upstream's classes and modules; those of other packages are left out."""
    files = sorted((root / HOOKS).glob("*.py"))
    return [found for file in files for found in parse_overrides(root, file) if found.target.startswith(f"{PACKAGE}.")]


def parse_overrides(root: Path, file: Path) -> Iterator[Override]:
    """Yield the overrides that a file declares."""
    path, tree = file.relative_to(root).as_posix(), ast.parse(file.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for function in ast.walk(tree):
        for call in getattr(function, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == DECORATOR:
                given = dict(zip(PARAMETERS, call.args)) | {word.arg: word.value for word in call.keywords}
                values = {key: constants.get(ast.unparse(node), node) for key, node in given.items()}
                if "target" not in values or not all(isinstance(node, ast.Constant) for node in values.values()):
                    raise UpstreamError(
                        f"{path}, line {call.lineno}: override {function.name}: target, since and until must be "
                        "constants, or constants of the module, so that they can be read without an import"
                    )
                arguments = {key: node.value for key, node in values.items() if key in PARAMETERS}
                yield Override(path, name=function.name, **arguments)
