"""What the patches call: upstream's nn/tasks.py and engine/model.py, each in a line or two."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from ultralytics.nn.AddModules.budget import TooLarge, build_rows, end_row, is_building
from ultralytics.nn.AddModules.errors import Refused
from ultralytics.nn.AddModules.model_files import (
    SLOTS,
    check_rows,
    check_sections,
    is_backbone,
    name_of,
    place,
    resolve,
    short,
    signature,
)
from ultralytics.nn.AddModules.registry import NAMES, READERS, Layer, Row, RowError

__all__ = "checked", "embed_by_index", "fuse", "read_row", "route", "run", "seat"


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
    end_row()


def run(m: nn.Module, x: Any, y: list, save: list[int]) -> Any:
    """Run a layer in a forward loop; of a multi-output one, put all outputs but the last where later rows look."""
    try:
        x = m(x)
    except Exception as e:
        model = sys._getframe(1).f_locals["self"]
        if is_building():
            raise of_row(m, model, e) from e
        if isinstance(e, ValueError) and "more than 1 value per channel" in str(e):
            raise too_small(m, model, e) from e
        raise
    if m.i > len(y):  # more indices than one: only a backbone has them
        outputs = [None, *x]
        y.extend(out if j in save else None for j, out in enumerate(outputs[:-1]))
        x = outputs[-1]
    return x


def fuse(m: nn.Module) -> None:
    """Fold the norms of an added module for inference, where its class has a `fuse` method."""
    if type(m).__module__.startswith(__package__) and callable(getattr(m, "fuse", None)):
        m.fuse()


def route(model: Any, cfg: dict, task: str | None) -> str:
    """Make a model built from a YAML an `RTDETR` if its head is RT-DETR's, whatever the file's name; give its task.

    Raises:
        RowError: If the last row is the head of no task, or a classifier's and there is no number of classes.
    """
    from ultralytics.nn.tasks import guess_model_task

    check_sections(cfg)
    last = cfg["head"][-1] if cfg["head"] else None
    if isinstance(last, (list, tuple)) and len(last) > 2 and last[2] == "RTDETRDecoder":
        from ultralytics.models import RTDETR

        model.__class__ = RTDETR
        return "detect"
    if type(model).__name__ == "RTDETR":
        raise RowError(
            f"{name_of(cfg)}: the last row of an RTDETR is RTDETRDecoder; other models have another class or name"
        )
    task = task or guess_model_task(cfg)
    if task is None:
        i = len(cfg["backbone"]) + len(cfg["head"]) - 1
        raise RowError(
            f"{place(cfg, i, last)}: expected the head of a task, such as RTDETRDecoder or Detect, or task=…"
        )
    if task == "classify" and not cfg.get("nc"):
        raise RowError(f"{name_of(cfg)}: `nc: {cfg.get('nc')}`, expected the number of classes")
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
    """Wrap `parse_model`: registered modules can be named, and whatever is wrong is a `RowError` with file and row.

    One that comes from a layer's constructor is of the constructor's type, too, for callers that catch upstream's.
    """
    code = parse_model.__code__
    variables = {*code.co_varnames, *code.co_cellvars}

    @functools.wraps(parse_model)
    def parse(d: dict, ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        names = parse_model.__globals__
        install(names)
        rows = check_rows(d, names, variables)
        activation = names["Conv"].default_act

        def build(*args: Any) -> tuple[nn.Sequential, list[int]]:
            names["Conv"].default_act = activation
            return parse_model(*args)

        try:
            return build_rows(build, d, ch, verbose, may_rehearse=not fetches(rows))
        except Exception as e:
            i = current_row(e, parse_model)
            where = name_of(d) if i is None else place(d, i, rows[i])
            if isinstance(e, (RowError, TooLarge)):
                raise RowError(f"{where}: {e}") from None
            raise of_type(e, f"{where}: {describe(e, rows[i], names) if i is not None else short(str(e))}") from e
        finally:
            names["Conv"].default_act = activation  # which upstream leaves as the file has it, after an error

    return parse


def fetches(rows: list[list]) -> bool:
    """Whether a layer of the rows would be given weights, which it may have to download."""
    return any(row[2] == "TorchVision" and row[3][2:3] not in ([], ["None"], [None]) for row in rows)


def describe(error: Exception, row: list, names: dict[str, Any]) -> str:
    """Say what a layer's constructor has raised, and where that may help, what it takes."""
    cls = resolve(row[2], names)
    expected = f"; expected the arguments of {signature(cls)}" if isinstance(error, (IndexError, TypeError)) else ""
    several = isinstance(row[0], list)
    if isinstance(error, TypeError) and ("list indices" if several else "not iterable") in str(error):
        expected = f"; expected {'one layer index' if several else 'a list of layer indices'} as 'from'"
    return f"{row[2]}: {' '.join(str(error).split())[:400] or type(error).__name__}{expected}"


def of_type(error: Exception, message: str) -> RowError:
    """Make a `RowError` that is caught as another error, too."""
    kind = type(error)
    try:
        return type("RowError", (RowError, kind), {"__module__": RowError.__module__})(message)
    except TypeError:  # of a constructor of its own, or of a form that Python does not join
        return RowError(message)


def install(names: dict[str, Any]) -> None:
    """Put the registered classes where `parse_model` looks names up, and refuse to shadow one that is there."""
    for name, cls in NAMES.items():
        if names.setdefault(name, cls) is not cls:
            raise RowError(f"{cls.__module__}.{name}: upstream's nn/tasks.py has the name {name}, choose another")


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
    where = row_of(m, model)
    if where is None:
        return error
    return Refused(
        f"{where}: the map is 1x1, and a batch norm cannot learn from one value of one image; give it larger "
        "images, or two and more"
    )


def of_row(m: nn.Module, model: Any, error: Exception) -> Exception:
    """Say of what a layer raises on the first image, while its model is built, which row's it is."""
    where = row_of(m, model)
    if where is None or isinstance(error, RowError):
        return error
    return of_type(error, f"{where}: {' '.join(str(error).split())[:400] or type(error).__name__}")


def row_of(m: nn.Module, model: Any) -> str | None:
    """Say where the row of a model's layer stands, if it has one."""
    i = next((i for i, layer in enumerate(model.model) if layer is m), None)
    rows = getattr(model, "yaml", None)
    return place(rows, i, [*rows["backbone"], *rows["head"]][i]) if rows and i is not None else None
