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

from ultralytics.fork.building import signatures
from ultralytics.fork.pretrained.timm_rows import NAME_KEY
from ultralytics.nn import modules as upstream
from ultralytics.utils.ops import make_divisible

__all__ = (
    "Layer",
    "Row",
    "RowError",
    "backbone",
    "changes_channels",
    "head",
    "hg_block",
    "joins_maps",
    "keeps_channels",
    "register",
    "residual_stage",
    "splits_into_maps",
)


BACKBONE_LAYERS = 5  # indices that a multi-output backbone takes: i is the map of stride 2 ** (i + 1), or stays empty


class RowError(ValueError):
    """A row of a model YAML that cannot become a layer."""

    plain = True
    __str__ = Exception.__str__  # a KeyError's would be in quotes


@dataclass
class Layer:
    """How a row reads: what to build and what later rows see of it."""

    args: list  # of the constructor
    c2: int | list[int]  # output channels, of each map; unused for a multi-output backbone, which publishes its own
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
    settings: dict = field(default_factory=dict)  # the model YAML

    @property
    def c1(self) -> int:
        """Channels of the layer that the row comes from."""
        if isinstance(self.f, (list, tuple)):
            raise self.error(f"'from' is {self.f}", "one layer index; for several, the reader joins_maps")
        channels = self.channels[self.f]
        if isinstance(channels, (list, tuple)):
            raise self.error(
                f"layer {self.f} gives {len(channels)} maps", "one, picked by a row of Index, [c2, number]"
            )
        return channels

    @property
    def inputs(self) -> list[int]:
        """Channels of each map that comes in, of one layer or several."""
        found = [self.channels[x] for x in (self.f if isinstance(self.f, (list, tuple)) else [self.f])]
        return [c for each in found for c in (each if isinstance(each, (list, tuple)) else [each])]

    def list_read_strides(self) -> tuple[int, ...]:
        """List the strides of the maps of a multi-output backbone that later rows read."""
        read = set()
        for i, (f, *_) in enumerate([*self.settings.get("backbone", []), *self.settings.get("head", [])][1:]):
            before = BACKBONE_LAYERS + i
            read |= {x % before for x in (f if isinstance(f, (list, tuple)) else [f])}
        return tuple(2 ** (x + 1) for x in range(1, BACKBONE_LAYERS) if x in read) or (32,)

    def scale_channels(self, c2: int) -> int:
        """Scale output channels with the model's width, as upstream does those of `Conv`."""
        if isinstance(c2, bool) or not isinstance(c2, (int, float)):
            raise self.error(f"{c2!r} where the output's channels are expected", "a number")
        return make_divisible(min(c2, self.max_channels) * self.width, 8)

    def ambiguous(self, problem: object, reader: str) -> RowError:
        """Build the error that says what a signature does not tell, with the reader to write."""
        return RowError(
            f"{self.module.__name__}: {problem}. Say how its row reads: @register(lambda row: Layer(args=[{reader}, "
            "*row.args], c2=...)), with what the constructor takes and the output's channels"
        )

    def error(self, problem: str, expected: str) -> RowError:
        """Build the error that says what is wrong with the row; the file and the row number are added on the way."""
        return RowError(f"{self.module.__name__}: {problem}; expected {expected}")


Reader = Callable[[Row], Layer]
READERS: dict[type[nn.Module], Reader] = {}
NAMES: dict[str, type[nn.Module]] = {}
YIELDING: set[type[nn.Module]] = set()  # whose names a user's class may take


def register(reader: Reader, yields: bool = False) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Let model YAMLs name the decorated class.

    Args:
        reader: How its row reads; one of this file's readers, or a function of your own from a `Row` to a `Layer`.
        yields: Whether another class of its name takes its place, as one of the user's may.

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
        READERS[cls] = reader
        if yields:
            YIELDING.add(cls)
            if taken is not None and taken.__module__ != cls.__module__:
                return cls
        if taken is not None and (is_lent(taken) or taken in YIELDING):
            taken = None
        where = getattr(taken, "__module__", upstream.__name__)
        if taken is not None and where != cls.__module__:  # a file may be loaded again, as notebooks do
            del READERS[cls]
            raise ValueError(f"{cls.__module__}.{name}: the name {name} is taken by {where}, choose another")
        NAMES[name] = cls
        return cls

    return decorate


def is_lent(cls: type) -> bool:
    """Whether a class is one of upstream's that no YAML of upstream's can mean, so that a user's may have its name."""
    from ultralytics.fork.building.upstream_layers import FOUND

    return cls.__name__ in FOUND and cls.__module__.startswith(upstream.__name__)


# Readers --------------------------------------------------------------------------------------------------------------
def keeps_channels(row: Row) -> Layer:
    """Read `[...]` as the arguments beside the channels, which come first; the output has the input's channels.

    Where the signature names the channels elsewhere, they are put there, and into no constructor that takes none.
    """
    try:
        bound = signatures.bind_input(row.module, row.c1, row.args)
    except signatures.Ambiguous as e:
        raise row.ambiguous(e, "row.c1") from None
    return Layer(args=bound.args, c2=row.c1, n=row.n, kwargs=bound.kwargs, printed=bound.printed)


def changes_channels(row: Row) -> Layer:
    """Read `[c2, ...]` for a constructor `(c1, c2, ...)`; c2 scales with the model's width, as upstream's `Conv`.

    A third argument that is called `n` gets the row's repeats, as upstream's `C2f` does.
    """
    if not row.args:
        raise row.error("no arguments", "[c2, ...]")
    c2 = row.scale_channels(row.args[0])
    try:
        bound, repeats_inside = signatures.bind_input_and_output(row.module, row.c1, c2, row.n, row.args[1:])
    except signatures.Ambiguous as e:
        raise row.ambiguous(e, "row.c1, row.scale_channels(row.args.pop(0))") from None
    n = 1 if repeats_inside else row.n
    return Layer(args=bound.args, c2=c2, n=n, kwargs=bound.kwargs, printed=bound.printed)


def joins_maps(row: Row) -> Layer:
    """Read a row that comes from several layers, for a module whose `forward` takes the list of their maps.

    The constructor takes their channels as one list, or one by one. Where it takes the channels of the output, the row
    gives them first, `[c2, ...]`, and they scale; else the output has those of the first map.
    """
    try:
        bound, c2 = signatures.bind_inputs(row.module, row.inputs, row.args, row.scale_channels)
    except signatures.Ambiguous as e:
        raise row.ambiguous(e, "row.inputs") from None
    return Layer(args=bound.args, c2=c2, n=row.n, kwargs=bound.kwargs, printed=bound.printed)


def splits_into_maps(row: Row) -> Layer:
    """Read `[[c2, c2, ...], ...]` for a constructor `(c1, c2s, ...)` whose `forward` gives a list of maps.

    A later row takes one of them by `[-1, 1, Index, [c2, number]]`, or all by a module that joins maps.
    """
    if not (row.args and isinstance(row.args[0], (list, tuple))):
        raise row.error(f"arguments {row.args}", "[[c2, c2, ...], ...], the channels of each map")
    c2 = [row.scale_channels(c) for c in row.args[0]]
    return Layer(args=[row.c1, c2, *row.args[1:]], c2=c2, n=row.n)


def head(row: Row) -> Layer:
    """Read the last row for a class that is derived from one of upstream's heads, such as `RTDETRDecoder` or `Detect`.

    The arguments are those of upstream's head; the channels of the maps, `reg_max` and `end2end` are put where the
    constructor names them.
    """
    signatures_of_bases = map(signatures.list_parameters, row.module.__mro__)
    parameters = next(found for found in signatures_of_bases if not any("VAR_" in p.kind.name for p in found))
    names = [p.name for p in parameters]
    if "ch" not in names:
        raise row.error("its constructor has no argument `ch`", "the channels of the maps as `ch`, as upstream's heads")
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    others = [name for name in positional if name not in {"ch", "reg_max", "end2end"}]
    if len(row.args) > len(others):
        raise row.error(f"arguments {row.args}", f"at most [{', '.join(others)}]")
    values = {key: row.settings[key] for key in ("reg_max", "end2end") if row.settings.get(key) is not None}
    values.update(zip(others, row.args), ch=row.inputs)
    if "npr" in values and "npr" in names:  # the prototypes of a segmentation
        values["npr"] = row.scale_channels(values["npr"])
    last = max(names.index(name) for name in values if name in positional)
    args = [values.get(p.name, p.default) for p in parameters[: last + 1]]  # in order, for a constructor (self, *args)
    if any(x is signatures.Parameter.empty for x in args):
        raise row.error(f"arguments {row.args}", f"[{', '.join(others)}]")
    kwargs = {name: values[name] for name in names if name in values and name not in positional}
    return Layer(args=args, c2=row.inputs[-1], kwargs=kwargs)


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
    """Read the arguments of a multi-output backbone, whose instances give their maps' channels as `width_list`.

    The last map has stride 32, each one before it half of the next one's; there are at most five, from stride 2. An
    image of other than three channels needs a constructor that takes `dim_in`. One that takes `strides` gets those of
    the maps that later rows read; its other maps may be None, with 0 channels. The argument `backbone_name` stands for
    the value of that key of the model YAML.
    """
    if row.f != -1:
        raise row.error(f"'from' is {row.f}", "-1, the image")
    kwargs: dict = {} if row.c1 == 3 else {"dim_in": row.c1}
    if any(p.name == "strides" for p in signatures.list_parameters(row.module)):
        kwargs["strides"] = row.list_read_strides()
    args = [row.settings.get(NAME_KEY, x) if x == NAME_KEY else x for x in row.args]
    return Layer(args=args, c2=0, n=row.n, name=row.module.__name__, kwargs=kwargs, printed=args)
