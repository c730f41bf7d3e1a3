"""Put the methods of a class in front of one object's own, and leave no trace of it in what is saved."""

from __future__ import annotations

import functools
from typing import Any


class InstanceMixin:
    """Base of the classes that `mix_into` puts in front of an object's own."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Copies and pickles are of the class that the object had before."""
        _, _, *state = super().__reduce_ex__(protocol)
        cls = type(self)
        while issubclass(cls, InstanceMixin):  # several may be in front
            cls = cls.__bases__[-1]
        return object.__new__, (cls,), *state


def mix_into(obj: Any, mixin: type[InstanceMixin]) -> None:
    """Put the methods of `mixin` in front of the object's; nothing is done where they are there."""
    if not isinstance(obj, mixin):
        obj.__class__ = _mixed_class(mixin, type(obj))


@functools.cache
def _mixed_class(mixin: type[InstanceMixin], cls: type) -> type:
    """Derive the class of `mix_into`, under the name that the object's class has."""
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
