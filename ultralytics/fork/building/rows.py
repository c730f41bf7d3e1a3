"""From a row of a model YAML to a layer: what upstream's `parse_model` asks for, and errors with file and row."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ultralytics.fork.building.memory_limit import ModelTooLarge, build_within_limit, end_row
from ultralytics.fork.building.model_yaml import (
    BACKBONE_LAYERS,
    check_rows,
    describe_row,
    file_name,
    find_class,
    is_backbone,
    pad_maps,
    shorten_value,
    show_signature,
)
from ultralytics.fork.building.predictable_rows import find_predictable_rows
from ultralytics.nn.AddModules.registry import NAMES, READERS, Layer, Row, RowError
from ultralytics.nn.modules.head import RTDETRDecoder

OWN_NAMES = "i", "f", "type", "np"  # attributes that `parse_model` gives each layer


@dataclass
class RowCounter:
    """The row that `parse_model` is at, and the file with its rows."""

    rows: list[list]
    settings: dict
    row: int = 0


_counter: contextvars.ContextVar[RowCounter | None] = contextvars.ContextVar("row_counter", default=None)


class LayerBuilder:
    """What `parse_model` calls and prints in place of a registered class."""

    def __init__(self, cls: type[nn.Module], layer: Layer):
        self.cls = cls
        self.args, self.kwargs = layer.args, layer.kwargs
        self.name = layer.name or f"{cls.__module__}.{cls.__qualname__}"

    def __call__(self, *_: Any) -> nn.Module:
        """Build the layer with the constructor's arguments, not with those that the summary shows.

        A layer that has an attribute of a name that `parse_model` writes is put into a `Sequential`, which takes it.
        """
        layer = self.cls(*self.args, **self.kwargs)
        return nn.Sequential(layer) if find_own_name(layer) else layer

    def __str__(self) -> str:
        """Look like a class to `parse_model`, which prints what stands between the quotes."""
        return f"<class '{self.name}'>"


class BackboneBuilder(LayerBuilder):
    """A builder whose layer exists already: `parse_model` must know a backbone's widths beforehand."""

    def __init__(self, cls: type[nn.Module], layer: Layer):
        super().__init__(cls, layer)
        self.layer = cls(*self.args, **self.kwargs)
        if name := find_own_name(self.layer):
            raise RowError(f"{cls.__name__}: its attribute `{name}` is one that the parser of models writes; rename it")

    def __call__(self, *_: Any) -> nn.Module:
        """Return the layer."""
        return self.layer


def find_own_name(layer: nn.Module) -> str | None:
    """Find an attribute of a layer, or of its class, that `parse_model` would overwrite."""
    theirs = vars(nn.Module)
    for name in OWN_NAMES:
        of_class = getattr(type(layer), name, None)
        if name in vars(layer) or (of_class is not None and of_class is not theirs.get(name)):
            return name
        if any(name in held for held in (layer._modules, layer._parameters, layer._buffers)):
            return name
    return None


def read_row(
    module: type[nn.Module],
    i: int,
    f: int | list[int],
    n: int,
    args: list,
    ch: list[int],
    width: float,
    max_channels: float,
) -> tuple[LayerBuilder, list, int, int]:
    """Read the row of a registered module, from its branch in `parse_model`.

    Returns:
        What `parse_model` goes on with: the module, its arguments, its output channels and its repeats.

    Raises:
        RowError: If the arguments do not fit the module's constructor, or repeats its channels.
    """
    counter = _counter.get()
    options = args[-1] if args and isinstance(args[-1], dict) else {}
    row = Row(
        module, i, f, n, args[: len(args) - bool(options)], ch, width, max_channels, counter.settings if counter else {}
    )
    layer = READERS[module](row)
    layer.kwargs = {**layer.kwargs, **options}
    try:
        inspect.signature(module).bind(*layer.args, **layer.kwargs)
    except TypeError as e:
        raise row.error(f"arguments {args}: {e}", show_signature(module)) from None
    printed = [*(layer.args if layer.printed is None else layer.printed), *([options] if options else [])]
    if layer.n > 1 and (is_backbone(module) or isinstance(row.f, (list, tuple)) or layer.c2 != row.c1):
        raise row.error(f"{layer.n} repeats of a layer that does not keep its channels", "1")
    if not is_backbone(module):
        return LayerBuilder(module, layer), printed, layer.c2, layer.n
    builder = BackboneBuilder(module, layer)
    widths = getattr(builder.layer, "width_list", None)
    if not isinstance(widths, (list, tuple)) or not 1 <= len(widths) <= BACKBONE_LAYERS:
        raise row.error(f"width_list={widths}", f"the channels of 1 to {BACKBONE_LAYERS} maps, the last of stride 32")
    return builder, printed, widths[-1], 1


def index_layer(m: nn.Module, ch: list[int], save: list[int]) -> None:
    """Give the layer that `parse_model` has just built its index, which the channels so far tell.

    Upstream counts rows. After a multi-output backbone the layer index is ahead of the row's, and the entries that
    upstream has put on the savelist for this row are corrected.
    """
    counter = _counter.get()
    if is_backbone(type(m)):
        ch.extend(pad_maps(m.width_list, 0)[:-1])
        if counter is not None:
            check_maps(m, counter)
    elif m.i != len(ch):
        sources = [x for x in ([m.f] if isinstance(m.f, int) else m.f) if x != -1]
        save[len(save) - len(sources) :] = [x % len(ch) for x in sources]
    m.i = len(ch)
    if isinstance(m, RTDETRDecoder) and -1 in m.f:  # upstream's RTDETRDetectionModel looks each of them up
        m.f = [m.i - 1 if x == -1 else x for x in m.f]
        save.append(m.i - 1)
    end_row(m)
    if counter is not None:
        counter.row += 1


def check_maps(m: nn.Module, counter: RowCounter) -> None:
    """Raise a `RowError` for a row that comes from a layer index that a backbone of fewer than five maps leaves empty.

    Args:
        m: The backbone.
        counter: The rows; the row that is wrong becomes the current one.
    """
    empty = BACKBONE_LAYERS - len(m.width_list)
    for i, row in enumerate(counter.rows[1:], 1):
        before = BACKBONE_LAYERS + i - 1
        for x in row[0] if isinstance(row[0], (list, tuple)) else [row[0]]:
            if x % before < empty and x != -1:
                counter.row = i
                maps = f"{empty} to {BACKBONE_LAYERS - 1}" if empty < BACKBONE_LAYERS - 1 else f"{empty}"
                raise RowError(f"'from' names layer {x}, which {type(m).__name__} leaves empty; its maps are {maps}")


def build_rows(parse_model: Callable, d: dict, ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
    """Call upstream's `parse_model`: rows may name registered modules, and what is wrong names file and row.

    Raises:
        RowError: For what is wrong with the model YAML. If a layer's constructor raised, the error is of that type
            too, for callers that catch upstream's.
    """
    names = parse_model.__globals__
    add_registered_names(names)
    variables = {*parse_model.__code__.co_varnames, *parse_model.__code__.co_cellvars}
    rows = check_rows(d, names, variables)
    activation = names["Conv"].default_act
    counter = RowCounter(rows, d)
    token = _counter.set(counter)

    def build(*args: Any) -> tuple[nn.Sequential, list[int]]:
        names["Conv"].default_act, counter.row = activation, 0
        return parse_model(*args)

    try:
        return build_within_limit(build, d, ch, verbose, find_predictable_rows(rows, d), not needs_download(rows))
    except Exception as e:
        row = counter.row if counter.row < len(rows) else None
        where = file_name(d) if row is None else describe_row(d, row, rows[row])
        if isinstance(e, (RowError, ModelTooLarge)):
            raise RowError(f"{where}: {e}") from None
        what = shorten_value(str(e)) if row is None else describe_constructor_error(e, rows[row], names)
        raise make_row_error(e, f"{where}: {what}") from e
    finally:
        _counter.reset(token)
        names["Conv"].default_act = activation  # upstream leaves it as the file has it, after an error


_added_names: set[str] = set()


def add_registered_names(names: dict[str, Any]) -> None:
    """Put the registered classes where `parse_model` looks names up, and refuse to shadow one of upstream's there."""
    from ultralytics.fork.building.upstream_layers import lend_names  # it needs upstream's layers, which need this

    lend_names()
    for name, cls in NAMES.items():
        if name not in names or name in _added_names:
            names[name] = cls
            _added_names.add(name)
        elif names[name] is not cls:
            raise RowError(f"{cls.__module__}.{name}: upstream's nn/tasks.py has the name {name}, choose another")


def needs_download(rows: list[list]) -> bool:
    """Whether a layer of the rows would be given weights, which it may have to download."""
    vision = any(row[2] == "TorchVision" and row[3][2:3] not in ([], ["None"], [None]) for row in rows)
    return vision or any(isinstance(x, dict) and x.get("pretrained") for row in rows for x in row[3])


def describe_constructor_error(error: Exception, row: list, names: dict[str, Any]) -> str:
    """Describe what a layer's constructor has raised, and where that may help, the arguments that it takes."""
    cls = find_class(row[2], names)
    expected = (
        f"; expected the arguments of {show_signature(cls)}" if isinstance(error, (IndexError, TypeError)) else ""
    )
    is_list = isinstance(row[0], list)
    if isinstance(error, TypeError) and ("list indices" if is_list else "not iterable") in str(error):
        expected = f"; expected {'one layer index' if is_list else 'a list of layer indices'} as 'from'"
    return f"{row[2]}: {' '.join(str(error).split())[:400] or type(error).__name__}{expected}"


def make_row_error(error: Exception, message: str) -> RowError:
    """Make a `RowError` that a caller can also catch as the type of another error."""
    kind = type(error)
    try:
        return type("RowError", (RowError, kind), {"__module__": RowError.__module__})(message)
    except TypeError:  # the type has a constructor of its own, or Python does not join the two
        return RowError(message)
