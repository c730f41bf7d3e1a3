"""What the patches call: upstream's nn/tasks.py and engine/model.py, each in a line or two."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from torch import nn

from ultralytics.nn.AddModules.errors import Refused
from ultralytics.nn.AddModules.registry import NAMES, READERS, Layer, Row, RowError, backbone

__all__ = "checked", "embed_by_index", "fuse", "read_row", "route", "run", "seat"

SLOTS = 5  # layer indices of a multi-output backbone: index i is the map of stride 2 ** (i + 1), index 0 stays empty
# Exceptions that gain the row and keep their type, for callers that catch upstream's
REPORTED = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)


class Builder:
    """What `parse_model` calls and prints in place of a registered class."""

    def __init__(self, cls: type[nn.Module], layer: Layer):
        self.cls = cls
        self.args, self.kwargs = layer.args, layer.kwargs
        self.name = layer.name or f"{cls.__module__}.{cls.__qualname__}"

    def __call__(self, *_: Any) -> nn.Module:
        """Build the layer with the constructor's arguments, not with those that the summary shows."""
        return self.cls(*self.args, **self.kwargs)

    def __str__(self) -> str:
        """Look like a class to `parse_model`, which prints what stands between the quotes."""
        return f"<class '{self.name}'>"


class Built(Builder):
    """A builder whose layer exists already: a backbone, whose widths `parse_model` must know beforehand."""

    def __init__(self, cls: type[nn.Module], layer: Layer):
        super().__init__(cls, layer)
        self.layer = super().__call__()

    def __call__(self, *_: Any) -> nn.Module:
        """Give the layer."""
        return self.layer


def read_row(
    module: type[nn.Module],
    i: int,
    f: int | list[int],
    n: int,
    args: list,
    ch: list[int],
    width: float,
    max_channels: float,
) -> tuple[Builder, list, int, int]:
    """Read the row of a registered module, from its branch in `parse_model`.

    Returns:
        What `parse_model` goes on with: the module, its arguments, its output channels and its repeats.
    """
    row = Row(module, i, f, n, args, ch, width, max_channels)
    layer = READERS[module](row)
    try:
        inspect.signature(module).bind(*layer.args, **layer.kwargs)
    except TypeError as e:
        raise row.error(f"arguments {args}: {e}", signature(module)) from None
    printed = layer.args if layer.printed is None else layer.printed
    if layer.n > 1 and (is_backbone(module) or layer.c2 != row.c1):
        raise row.error(f"{layer.n} repeats of a layer that does not keep its channels", "1")
    if not is_backbone(module):
        return Builder(module, layer), printed, layer.c2, layer.n
    built = Built(module, layer)
    widths = built.layer.width_list
    if len(widths) != SLOTS - 1:
        raise row.error(f"width_list={widths}", f"the channels of {SLOTS - 1} maps, of strides 4, 8, 16 and 32")
    return built, printed, widths[-1], 1


def seat(m: nn.Module, ch: list[int], save: list[int]) -> None:
    """Give the layer that `parse_model` has just built its index, which the channels so far tell.

    Upstream counts rows. After a multi-output backbone the layer index is ahead of the row's, and what upstream has
    put on the savelist for this row is put right.
    """
    if is_backbone(type(m)):
        ch.extend([0, *m.width_list[:-1]])
    elif m.i != len(ch):
        sources = [x for x in ([m.f] if isinstance(m.f, int) else m.f) if x != -1]
        save[len(save) - len(sources) :] = [x % len(ch) for x in sources]
    m.i = len(ch)


def run(m: nn.Module, x: Any, y: list, save: list[int]) -> Any:
    """Run a layer in a forward loop; of a multi-output one, put all outputs but the last where later rows look."""
    try:
        x = m(x)
    except ValueError as e:
        if "more than 1 value per channel" not in str(e):
            raise
        raise too_small(m, sys._getframe(1).f_locals["self"], e) from e
    if m.i > len(y):  # more indices than one: only a backbone has them
        outputs = [None, *x]
        y.extend(out if j in save else None for j, out in enumerate(outputs[:-1]))
        x = outputs[-1]
    return x


def fuse(m: nn.Module) -> None:
    """Fold the norms of an added module for inference, where its class has a `fuse` method."""
    if type(m).__module__.startswith(__package__) and callable(getattr(m, "fuse", None)):
        m.fuse()


def route(model: Any, cfg: dict, task: str | None) -> str | None:
    """Make a model built from a YAML an `RTDETR` if its head is RT-DETR's, whatever the file's name; give its task."""
    check_sections(cfg)
    last = cfg["head"][-1] if cfg["head"] else None
    if isinstance(last, (list, tuple)) and len(last) > 2 and last[2] == "RTDETRDecoder":
        from ultralytics.models import RTDETR

        model.__class__ = RTDETR
        return "detect"
    return task


def embed_by_index(embed: Callable) -> Callable:
    """Let `Model.embed` take the layer before the head by its index.

    Upstream takes its place in the list of layers, which is another one behind a multi-output backbone.
    """

    @functools.wraps(embed)
    def by_index(self: Any, source: Any = None, stream: bool = False, **kwargs: Any) -> Any:
        layers = getattr(getattr(self.model, "module", self.model), "model", None)
        if not kwargs.get("embed") and isinstance(layers, nn.Sequential) and hasattr(layers[-2], "i"):
            kwargs["embed"] = [layers[-2].i]
        return embed(self, source, stream, **kwargs)

    return by_index


def checked(parse_model: Callable) -> Callable:
    """Wrap `parse_model`: registered modules can be named, and an error says which row of which file is wrong."""

    @functools.wraps(parse_model)
    def parse(d: dict, ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        install(parse_model.__globals__)
        file = d.get("yaml_file", "model YAML")
        rows = check_rows(d, parse_model.__globals__, file)
        try:
            return parse_model(d, ch, verbose)
        except Exception as e:
            i = current_row(e, parse_model)
            if i is None:
                raise
            where = place(file, d, i, rows[i])
            if isinstance(e, RowError):
                raise RowError(f"{where}: {e}") from None
            if type(e) not in REPORTED:
                raise
            cls = resolve(rows[i][2], parse_model.__globals__)
            counted = isinstance(e, (IndexError, TypeError)) and inspect.isclass(cls)
            expected = f"; expected the arguments of {signature(cls)}" if counted else ""
            several = isinstance(rows[i][0], (list, tuple))
            if isinstance(e, TypeError) and ("list indices" if several else "not iterable") in str(e):
                expected = f"; expected {'one layer index' if several else 'a list of layer indices'} as 'from'"
            message = " ".join(str(e).split())
            raise type(e)(f"{where}: {rows[i][2]}: {message}{expected}") from e

    return parse


def install(names: dict[str, Any]) -> None:
    """Put the registered classes where `parse_model` looks names up, and refuse to shadow one that is there."""
    for name, cls in NAMES.items():
        if names.setdefault(name, cls) is not cls:
            raise RowError(f"{cls.__module__}.{name}: upstream's nn/tasks.py has the name {name}, choose another")


def check_rows(d: dict, names: dict[str, Any], file: str) -> list[list]:
    """Check what can be checked before anything is built, and give the rows.

    Raises:
        RowError: For a row of another form than `[from, repeats, module, arguments]`, a module that nobody has, a
            backbone elsewhere than in row 0, or a layer index that does not exist.
    """
    check_sections(d)
    rows = copy.deepcopy([*d["backbone"], *d["head"]])  # as they stand in the file: `parse_model` rewrites them
    layers, empty = 0, set()
    for i, row in enumerate(rows):
        where = place(file, d, i, row)
        form = isinstance(row, (list, tuple)) and len(row) == 4
        if not (form and isinstance(row[2], str) and isinstance(row[3], (list, tuple))):
            raise RowError(f"{where}: expected [from, repeats, module, arguments]")
        f, n, name, args = row
        if "nc" in args and d.get("nc") is None:
            raise RowError(f"{where}: the file has no `nc:`, the number of classes")
        if not isinstance(n, Real):
            raise RowError(f"{where}: repeats are {n!r}, expected a number")
        cls = resolve(name, names)
        if cls is None:
            near = difflib.get_close_matches(name, module_names(names), n=3, cutoff=0.5)
            advice = f"did you mean {' or '.join(near)}?" if near else "see ultralytics/nn/AddModules for what there is"
            undecorated = [key for key, m in sys.modules.items() if key.startswith(__package__) and name in vars(m)]
            if undecorated:
                advice = f"the class of that name in {undecorated[0]} has no decorator @register(...)"
            raise RowError(f"{where}: no module is named {name!r}; {advice}")
        if cls in NAMES.values() and not (isinstance(n, Integral) and n >= 1):
            raise RowError(f"{where}: repeats are {n!r}, expected a whole number of at least 1")
        if is_backbone(cls) and i:
            raise RowError(f"{where}: {name} is a multi-output backbone; expected in row 0, the first of `backbone:`")
        for x in f if isinstance(f, (list, tuple)) else [f]:
            if not isinstance(x, Integral):
                raise RowError(f"{where}: 'from' is {x!r}, expected a layer index or a list of them")
            if x == -1:
                continue
            if not -layers <= x < layers:
                there = f"layers 0 to {layers - 1} are before this one" if layers else "the first layer is from -1"
                raise RowError(f"{where}: 'from' names layer {x}, which does not exist here; {there}")
            if x % layers in empty:
                raise RowError(f"{where}: 'from' names layer {x}, which {rows[0][2]} leaves empty; its maps are 1 to 4")
        if is_backbone(cls):
            layers, empty = SLOTS, {0}
        else:
            layers += 1
    return rows


def check_sections(d: dict) -> None:
    """Raise a `RowError` for a model file without its two lists of rows."""
    for section in ("backbone", "head"):
        if not isinstance(d.get(section), (list, tuple)):
            file = d.get("yaml_file", "model YAML")
            raise RowError(f"{file}: no `{section}:` with a list of rows [from, repeats, module, arguments]")


def resolve(name: str, names: dict[str, Any]) -> Any:
    """Give what `parse_model` finds under a row's module name, or None."""
    if name.startswith("nn."):
        return getattr(nn, name[3:], None)
    if name.startswith("torchvision.ops."):
        import torchvision

        return getattr(torchvision.ops, name[16:], None)
    return names.get(name)


def module_names(names: dict[str, Any]) -> list[str]:
    """List the module classes among the names that a row can use."""
    return [name for name, cls in names.items() if inspect.isclass(cls) and issubclass(cls, nn.Module)]


def place(file: str, d: dict, i: int, row: Any) -> str:
    """Say where a row stands: file, number, section and text."""
    backbone_rows = len(d["backbone"])
    section, j = ("backbone", i) if i < backbone_rows else ("head", i - backbone_rows)
    return f"{file}, row {i} (`{section}:` row {j}) {row}"


def signature(cls: type) -> str:
    """Show how a class is constructed, for an error message."""
    parameters = inspect.signature(cls).parameters.values()
    return f"{cls.__name__}({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})"


def current_row(error: Exception, parse_model: Callable) -> int | None:
    """Find the row that `parse_model` was at when it raised, in the traceback."""
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code is parse_model.__code__:
            return tb.tb_frame.f_locals.get("i")
        tb = tb.tb_next
    return None


def too_small(m: nn.Module, model: Any, error: ValueError) -> ValueError:
    """Say of torch's error for a norm over one value which row's map is too small."""
    i = next((i for i, layer in enumerate(model.model) if layer is m), None)
    rows = getattr(model, "yaml", None)
    if i is None or not rows:
        return error
    where = place(rows.get("yaml_file", "model YAML"), rows, i, [*rows["backbone"], *rows["head"]][i])
    return Refused(
        f"{where}: the map is 1x1, and a batch norm cannot learn from one value of one image; give it larger "
        "images, or two and more"
    )


def is_backbone(cls: Any) -> bool:
    """Whether a class is registered as a multi-output backbone."""
    return inspect.isclass(cls) and READERS.get(cls) is backbone
