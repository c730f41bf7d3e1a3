"""Give one object methods of ours, in front of those of its class, and leave no trace of it in what is saved."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ()


class Extension:
    """Base of the classes that `extend` puts in front of an object's own."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Copies and pickles are of the class that the object had before."""
        _, _, *state = super().__reduce_ex__(protocol)
        return object.__new__, (type(self).__bases__[-1],), *state


def extend(obj: Any, extension: type[Extension]) -> None:
    """Put the methods of `extension` in front of the object's; nothing is done where they are there."""
    if not isinstance(obj, extension):
        obj.__class__ = _extended(extension, type(obj))


@functools.cache
def _extended(extension: type[Extension], cls: type) -> type:
    """Derive the class of `extend`, under the name that the object's class has."""
    return type(
        cls.__name__,
        (extension, cls),
        {"__module__": cls.__module__, "__qualname__": cls.__qualname__},
    )
