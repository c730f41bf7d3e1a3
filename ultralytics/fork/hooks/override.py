"""Overrides: functions of this fork in place of upstream's functions of the same name.

    @override("ultralytics.engine.trainer.BaseTrainer", since="8.3.0")
    def save_model(original, self):
        ...
        return original(self)

An override bears the name of the function that it replaces, and gets that function as its first argument. `install`
puts the overrides of a class, a function or a module in place when upstream's file is imported, and raises where
upstream has no such name: an override is never left out in silence. `scripts/upstream.py` reads the same declarations
without importing them, and reports a missing name before a release is laid down.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = "MissingTarget", "install", "install_module", "override"

PACKAGE = "ultralytics."


class MissingTarget(AttributeError):
    """Upstream has no function of the name that an override replaces."""


@dataclass(frozen=True)
class Override:
    """One declared override."""

    function: Callable
    target: str
    since: str
    until: str | None

    @property
    def name(self) -> str:
        """Name of the function that it replaces."""
        return self.function.__name__

    def applies(self, release: str) -> bool:
        """Whether it is for an upstream release."""
        after = self.until is not None and version(release) >= version(self.until)
        return version(release) >= version(self.since) and not after


DECLARED: dict[str, list[Override]] = {}  # by target


def override(target: str, since: str = "8.3.0", until: str | None = None) -> Callable[[Callable], Callable]:
    """Declare that a function replaces the function of its name in `target`.

    Args:
        target: Dotted path of a class or a module.
        since: First upstream release that has the name.
        until: First later release that no longer has it.
    """

    def declare(function: Callable) -> Callable:
        others = [known for known in DECLARED.get(target, ()) if known.name != function.__name__]
        DECLARED[target] = [*others, Override(function, target, since, until)]
        return function

    return declare


def version(release: str) -> tuple[int, ...]:
    """Read the numbers of a release; the local part of a version does not count."""
    return tuple(int(number) for number in re.findall(r"\d+", release.partition("+")[0])[:3])


def install(owner: Any) -> Any:
    """Put the overrides of a class, of a function or of a module, given by its globals, in place.

    As a decorator it returns the class, or what replaces the function.

    Raises:
        MissingTarget: If upstream has no function of an override's name.
    """
    if inspect.isfunction(owner):
        target, _, name = f"{owner.__module__}.{owner.__qualname__}".rpartition(".")
        found = [known for known in applicable(target) if known.name == name]
        return wrap(found[0], owner) if found else owner
    if isinstance(owner, dict):
        target = owner["__name__"]
        for known in applicable(target):
            original = require(known, owner.get(known.name))
            owner[known.name] = wrap(known, original)
            replace_aliases(known.name, original, owner[known.name])
        return owner
    for known in applicable(f"{owner.__module__}.{owner.__qualname__}"):
        original = require(known, inspect.getattr_static(owner, known.name, None))
        if isinstance(original, (staticmethod, classmethod)):
            function = type(original)(wrap(known, original.__func__))
        else:
            function = wrap(known, original)
        setattr(owner, known.name, function)
    return owner


def install_module(target: str) -> None:
    """Import a module or a class by its dotted path, and put its overrides in place."""
    if not applicable(target):
        return
    try:
        install(vars(importlib.import_module(target)))
    except ModuleNotFoundError as e:
        if e.name != target:
            raise
        module, _, name = target.rpartition(".")
        try:
            owner = getattr(importlib.import_module(module), name)
        except (AttributeError, ModuleNotFoundError):
            known = applicable(target)[0]
            raise MissingTarget(f"upstream {upstream_release()} has no {target}; {remedy(known)}") from None
        install(owner)


def applicable(target: str) -> list[Override]:
    """Give the overrides of a target that are for this upstream release."""
    return [known for known in DECLARED.get(target, ()) if known.applies(upstream_release())]


def upstream_release() -> str:
    """Give the upstream release under this fork."""
    return sys.modules["ultralytics"].__version__


def require(known: Override, original: Any) -> Any:
    """Give the upstream function back, or raise `MissingTarget`."""
    if original is None:
        raise MissingTarget(f"upstream {upstream_release()} has no {known.target}.{known.name}; {remedy(known)}")
    return original


def remedy(known: Override) -> str:
    """Say what a maintainer does about an override whose name upstream no longer has."""
    return (
        f"rename the override in {known.function.__module__}, or end it with "
        f'until="{upstream_release().partition("+")[0]}"'
    )


def wrap(known: Override, original: Callable) -> Callable:
    """Bind an override to the upstream function that it replaces; once, however often it is installed."""
    function = known.function
    if getattr(original, "override", None) is known:
        return original

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    replacement.override = known
    return replacement


def replace_aliases(name: str, original: Callable, replacement: Callable) -> None:
    """Replace a function in the upstream modules that have imported it by name before."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(PACKAGE) and vars(module).get(name) is original:
            setattr(module, name, replacement)
