"""The registry through which a YAML row becomes a layer.

A module's decorator says how its row reads; upstream's `parse_model` asks for the reader. A new module is one new file
beside this one:

    @register(keeps_channels)
    class MyAttention(nn.Module):
        def __init__(self, dim: int, num_heads: int = 8): ...

and the row `[-1, 1, MyAttention, [4]]` builds `MyAttention(dim, 4)`, with the channels of the layer it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ultralytics.nn import modules as upstream
from ultralytics.utils.ops import make_divisible

__all__ = (
    "Layer",
    "Row",
    "RowError",
    "backbone",
    "changes_channels",
    "hg_block",
    "keeps_channels",
    "register",
    "residual_stage",
)


class RowError(ValueError):
    """A row of a model YAML that cannot become a layer."""

    plain = True
    __str__ = Exception.__str__  # a KeyError's would be in quotes


@dataclass
class Layer:
    """How a row reads: what to build and what later rows see of it."""

    args: list  # of the constructor
    c2: int  # output channels; unused for a multi-output backbone, which publishes its own
    printed: list | None = None  # the row's arguments in the summary, where they differ from the constructor's
    n: int = 1  # how many to chain
    name: str | None = None  # the summary's module type, where it is not the class's path
    kwargs: dict = field(default_factory=dict)  # of the constructor


@dataclass
class Row:
    """One row of a model YAML, as its reader gets it."""

    module: type[nn.Module]
    index: int
    f: int | list[int]
    n: int
    args: list
    channels: list[int]  # of the layers so far
    width: float = 1.0
    max_channels: float = float("inf")

    @property
    def c1(self) -> int:
        """Channels of the layer that the row comes from."""
        if isinstance(self.f, (list, tuple)):
            raise self.error(f"'from' is {self.f}", "one layer index")
        return self.channels[self.f]

    def error(self, problem: str, expected: str) -> RowError:
        """Build the error that says what is wrong with the row; the file and the row number are added on the way."""
        return RowError(f"{self.module.__name__}: {problem}; expected {expected}")


Reader = Callable[[Row], Layer]
READERS: dict[type[nn.Module], Reader] = {}
NAMES: dict[str, type[nn.Module]] = {}


def register(reader: Reader) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Let model YAMLs name the decorated class.

    Args:
        reader: How its row reads; one of this file's readers, or a function of your own from a `Row` to a `Layer`.

    Raises:
        ValueError: If upstream, or another registered module, has the class's name.
        TypeError: If what is decorated is no `nn.Module` class.
    """
    if not callable(reader) or isinstance(reader, type):
        raise TypeError("register() takes a row reader: write @register(keeps_channels), say")

    def decorate(cls: type[nn.Module]) -> type[nn.Module]:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"only nn.Module classes can be registered, not {cls!r}")
        name = cls.__name__
        taken = NAMES.get(name) or getattr(upstream, name, None) or getattr(nn, name, None)
        where = getattr(taken, "__module__", upstream.__name__)
        if taken is not None and where != cls.__module__:  # a file may be loaded again, as notebooks do
            raise ValueError(f"{cls.__module__}.{name}: the name {name} is taken by {where}, choose another")
        NAMES[name] = cls
        READERS[cls] = reader
        return cls

    return decorate


# Readers --------------------------------------------------------------------------------------------------------------
def keeps_channels(row: Row) -> Layer:
    """Read `[...]` as the arguments after the first, `dim`; the output has as many channels as the input."""
    return Layer(args=[row.c1, *row.args], c2=row.c1, n=row.n)


def changes_channels(row: Row) -> Layer:
    """Read `[c2, ...]` for a constructor `(c1, c2, ...)`; c2 scales with the model's width, as upstream's `Conv`."""
    if not row.args:
        raise row.error("no arguments", "[c2, ...]")
    c2 = make_divisible(min(row.args[0], row.max_channels) * row.width, 8)
    return Layer(args=[row.c1, c2, *row.args[1:]], c2=c2, n=row.n)


def hg_block(row: Row) -> Layer:
    """Read `[cm, c2, k, ...]`, k 3 by default, for upstream's HGBlock constructor, which takes the repeats too."""
    if len(row.args) < 2:
        raise row.error(f"arguments {row.args}", "[cm, c2, k, lightconv, shortcut], of which cm and c2 are required")
    cm, c2, k, *rest = row.args if len(row.args) > 2 else [*row.args, 3]
    return Layer(args=[row.c1, cm, c2, k, row.n, *rest], c2=c2)


def residual_stage(row: Row) -> Layer:
    """Read `[c1, c2, s, is_first, n, ...]` for upstream's ResNetLayer constructor."""
    if len(row.args) < 4:
        raise row.error(f"arguments {row.args}", "[c1, c2, s, is_first, n], of which all but n are required")
    c1, c2, _, is_first = row.args[:4]
    if c1 != row.c1:
        raise row.error(f"c1={c1} where {row.c1} channels come in", f"[{row.c1}, {c2}, ...]")
    blocks = row.args[4] if len(row.args) > 4 else 1
    expansion = row.args[5] if len(row.args) > 5 else 4
    if not is_first and blocks < 1:
        raise row.error(f"n={blocks} blocks", "at least 1")
    return Layer(args=row.args, c2=c2 if is_first else expansion * c2, n=row.n)


def backbone(row: Row) -> Layer:
    """Read the arguments of a multi-output backbone, whose instances give their four maps' channels as `width_list`.

    An image of other than three channels needs a constructor that takes `dim_in`.
    """
    if row.f != -1:
        raise row.error(f"'from' is {row.f}", "-1, the image")
    return Layer(
        args=row.args, c2=0, n=row.n, name=row.module.__name__, kwargs={} if row.c1 == 3 else {"dim_in": row.c1}
    )
