"""What a model file may say, checked before anything of it is built.

A file of a stranger's names layers and gives them literals. Upstream looks names up among all that nn/tasks.py has
imported, takes an argument that is called like a variable of `parse_model` for that variable, and evaluates
`activation:`; here a name is a layer's, a variable is one that the file itself sets, an activation is a class of
`torch.nn`.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import sys
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn

from ultralytics.fork.added_modules import is_added
from ultralytics.fork.building.signatures import suggest_reader
from ultralytics.fork.class_limit import MAX_CLASSES
from ultralytics.nn.AddModules.registry import BACKBONE_LAYERS, NAMES, READERS, RowError, backbone

FILE_VARIABLES = "nc", "kpt_shape", "reg_max", "end2end"  # of a file, which its rows can name
MAX_ROWS = 1000  # of a file; the longest published one has 60
MAX_REPEATS = 1000
MAX_LAYERS = 5000  # of all rows, repeats counted
MAX_NUMBER = 2**24  # number in a row
MAX_TEXT = 200  # characters of an argument
LITERALS = "True", "False", "None"
MAX_ARGUMENTS = 1000  # of a row's arguments, all lists counted


def check_rows(d: dict, names: dict[str, Any], variables: set[str]) -> list[list]:
    """Check what can be checked before anything is built, and give the rows.

    Args:
        d: The file.
        names: Where `parse_model` looks names up.
        variables: Names of `parse_model`'s own, for which it would take an argument.

    Raises:
        RowError: For a row of another form than `[from, repeats, module, arguments]`, a module that nobody has, what is
            no literal, a backbone elsewhere than in row 0, or a layer index that does not exist.
    """
    check_sections(d)
    check_settings(d)
    check_module_files(d)
    rows, i = [*d["backbone"], *d["head"]], 0
    try:
        for i, row in enumerate(rows):  # noqa: B007 - the error says which
            check_form(row)
        rows = [copy_lists(row) for row in rows]  # as they stand in the file: they are rewritten
        depth, layers, total = read_scale(d)[0], 0, 0
        for i, (f, n, name, args) in enumerate(rows):
            check_arguments(args, d, variables)
            cls = require_layer_class(name, names)
            check_options(args, cls)
            total += max(1, check_repeats(n, depth, cls))
            if total > MAX_LAYERS:
                raise RowError(f"{total:g} layers with the rows before it; at most {MAX_LAYERS}")
            if name == "TorchVision":
                check_torchvision(args)
            if is_backbone(cls) and i:
                raise RowError(f"{name} is a multi-output backbone; expected in row 0, the first of `backbone:`")
            check_sources(f, layers)
            layers += BACKBONE_LAYERS if is_backbone(cls) else 1
    except RowError as e:
        raise RowError(f"{describe_row(d, i, rows[i])}: {e}") from None
    return rows


def check_repeats(n: Any, depth: float, cls: type[nn.Module]) -> float:
    """Give how many layers a row chains, with the depth of the scale; raise a `RowError` if they are too many."""
    scaled = n * (depth if n > 1 else 1)
    if not scaled <= MAX_REPEATS:
        raise RowError(f"{n:g} repeats, {scaled:g} with the depth of the scale; at most {MAX_REPEATS}")
    if cls in NAMES.values() and not (isinstance(n, Integral) and n >= 1):
        raise RowError(f"repeats are {n!r}, expected a whole number of at least 1")
    return scaled


def check_sources(f: Any, layers: int) -> None:
    """Raise a `RowError` for a 'from' that names a layer that does not exist.

    Args:
        f: The layer index, or a list of them.
        layers: How many layer indices there are before this row.
    """
    for x in f if isinstance(f, (list, tuple)) else [f]:
        if not isinstance(x, Integral):
            raise RowError(f"'from' is {x!r}, expected a layer index or a list of them")
        if x == -1:
            continue
        if not -layers <= x < layers:
            there = f"layers 0 to {layers - 1} are before this one" if layers else "the first layer is from -1"
            raise RowError(f"'from' names layer {x}, which does not exist here; {there}")


def check_sections(d: dict) -> None:
    """Raise a `RowError` for a model file without its two lists of rows."""
    for section in ("backbone", "head"):
        if not isinstance(d.get(section), (list, tuple)):
            raise RowError(f"{file_name(d)}: no `{section}:` with a list of rows [from, repeats, module, arguments]")
    rows = len(d["backbone"]) + len(d["head"])
    if not 1 <= rows <= MAX_ROWS:
        raise RowError(f"{file_name(d)}: {rows} rows in `backbone:` and `head:`, expected 1 to {MAX_ROWS}")


def check_settings(d: dict) -> None:
    """Raise a `RowError` for what stands beside the rows and cannot be what it should."""
    for key, least, most in (("nc", 0, MAX_CLASSES), ("reg_max", 1, MAX_NUMBER), ("channels", 1, 1024)):
        value = d.get(key)
        if value is not None and not (type(value) is int and least <= value <= most):
            raise RowError(
                f"{file_name(d)}: `{key}: {shorten_value(value)}`, expected a whole number from {least} to {most}"
            )
    shape = d.get("kpt_shape")
    if shape is not None and not (
        isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(x) is int and 0 <= x < 10000 for x in shape)
    ):
        raise RowError(f"{file_name(d)}: `kpt_shape: {shorten_value(shape)}`, expected [points, 2 or 3]")
    if d.get("end2end") not in (None, True, False):
        raise RowError(f"{file_name(d)}: `end2end: {shorten_value(d['end2end'])}`, expected true or false")
    for key in ("norm_eps", "norm_momentum"):
        value = d.get(key)
        if value is not None and not (is_number(value) and type(value) is not bool and 0 < value < 1):
            raise RowError(
                f"{file_name(d)}: `{key}: {shorten_value(value)}`, expected a number between 0 and 1, such as 1.0e-5"
            )
    read_scale(d)
    if d.get("activation"):
        check_activation(d["activation"], file_name(d))


def check_module_files(d: dict) -> None:
    """Raise a `RowError` for a file of modules that the model file names, unless its folder is one that is imported.

    A model file of a stranger's must not choose which code runs.
    """
    from ultralytics.nn.AddModules import FOLDERS_VARIABLE, list_folders

    named = d.get("addmodules") or []
    for name in [named] if isinstance(named, str) else named:
        if not isinstance(name, str) or not name.endswith(".py"):
            raise RowError(f"{file_name(d)}: `addmodules: {shorten_value(name)}`, expected the path of a .py file")
        file = Path(d.get("yaml_file", "")).parent.joinpath(name).resolve()
        if file.parent not in list_folders():
            raise RowError(
                f"{file_name(d)}: `addmodules: {name[:MAX_TEXT]}` is code, which is not run because a model file names "
                f"it. If you trust it, set {FOLDERS_VARIABLE}={file.parent} in the environment"
            )
        if not file.is_file():
            raise RowError(f"{file_name(d)}: `addmodules: {name[:MAX_TEXT]}`: {file} does not exist")


def read_scale(d: dict) -> tuple[float, float, float]:
    """Give depth, width and the most channels, as `parse_model` will choose them."""
    scales, key = d.get("scales"), "scales"
    if scales:
        if not isinstance(scales, dict):
            raise RowError(
                f"{file_name(d)}: `scales: {shorten_value(scales)}`, expected names with [depth, width, max_channels]"
            )
        name = d.get("scale") or next(iter(scales))
        if name not in scales:
            raise RowError(
                f"{file_name(d)}: `scales:` has no {name!r}; there are {', '.join(map(str, scales))}"[:MAX_TEXT]
            )
        key, values = f"scales: {name}", scales[name]
    else:
        values = [1.0 if d.get(k) is None else d[k] for k in ("depth_multiple", "width_multiple")] + [MAX_NUMBER]
        key = "depth_multiple, width_multiple"
    if not (isinstance(values, (list, tuple)) and len(values) == 3 and all(is_number(x) and x > 0 for x in values)):
        raise RowError(
            f"{file_name(d)}: `{key}: {shorten_value(values)}`, expected numbers above 0: depth, width, max_channels"
        )
    return tuple(values)


def check_activation(spec: Any, file: str) -> None:
    """Raise a `RowError` for an activation that is no class of `torch.nn` with literals as its arguments."""
    try:
        call = ast.parse(spec.strip()[: MAX_TEXT + 1], mode="eval").body
        *home, name = ast.unparse(call.func).split(".")
        literals = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg)]
        right = (
            home in (["nn"], ["torch", "nn"])
            and is_layer(vars(nn.modules.activation).get(name))
            and len(spec) <= MAX_TEXT
        )
        right &= len(literals) == len(call.args) + len(call.keywords)
        for literal in literals:
            value = ast.literal_eval(literal)
            check_literal(value)
            right &= not isinstance(value, int) or abs(value) <= 10_000
    except (AttributeError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        right = False
    if not right:
        raise RowError(
            f"{file}: `activation: {shorten_value(spec)}`, expected a class of torch.nn, such as nn.LeakyReLU(0.1)"
        )


def check_form(row: Any) -> None:
    """Raise a `RowError` for a row that is none, or that has more in it than a row."""
    form = isinstance(row, (list, tuple)) and len(row) == 4
    if not (form and isinstance(row[2], str) and isinstance(row[3], (list, tuple))):
        raise RowError("expected [from, repeats, module, arguments]")
    if not isinstance(row[1], Real):
        raise RowError(f"repeats are {shorten_value(row[1])}, expected a number")
    for part in (row[0], row[1], row[3]):
        check_literal(part)


def check_literal(value: Any) -> None:
    """Raise a `RowError` for an argument that is no literal of a reasonable size."""
    left, seen = [(value, 0)], 0
    while left:
        x, depth = left.pop()
        seen += 1
        if seen > MAX_ARGUMENTS or depth > 8:
            raise RowError(f"more than {MAX_ARGUMENTS} arguments, or lists in lists in lists")
        if isinstance(x, (list, tuple)):
            left += [(item, depth + 1) for item in x[: MAX_ARGUMENTS + 1]]
        elif isinstance(x, dict) and depth == 1:  # names of arguments, with their values
            left += [(item, depth + 1) for pair in itertools.islice(x.items(), MAX_ARGUMENTS + 1) for item in pair]
        elif isinstance(x, str):
            if len(x) > MAX_TEXT:
                raise RowError(f"a text of {len(x)} characters, at most {MAX_TEXT}")
        elif not (x is None or is_number(x)):
            raise RowError(
                f"{shorten_value(x)} is no literal of a row: a number up to {MAX_NUMBER}, a text, a list of them"
            )


def is_number(x: Any) -> bool:
    """Whether a value is a number of at most `MAX_NUMBER`."""
    return isinstance(x, (int, float)) and -MAX_NUMBER <= x <= MAX_NUMBER  # which neither nan nor infinity is


def check_options(args: list, cls: type[nn.Module]) -> None:
    """Raise a `RowError` for a mapping that is not the last argument of a registered module's row."""
    options = [x for x in args if isinstance(x, dict)]
    if options and (options != args[-1:] or cls not in READERS or not all(isinstance(key, str) for key in options[0])):
        raise RowError("{…} is for the last argument of a registered module, whose arguments it names: {name: value}")


def check_arguments(args: list, d: dict, variables: set[str]) -> None:
    """Raise a `RowError` for an argument that `parse_model` would take for something of its own."""
    for text in (x for x in args if isinstance(x, str)):
        if text in variables:
            if text not in FILE_VARIABLES:
                raise RowError(f"the argument {text!r} is a variable of parse_model; a row can name `nc`")
            if text in ("nc", "kpt_shape") and d.get(text) is None:
                what = ", the number of classes" if text == "nc" else ""
                raise RowError(f"the file has no `{text}:`{what}")
            continue
        meant = difflib.get_close_matches(text, LITERALS, n=1, cutoff=0.75) if text[:1] in "TFN" else []
        if meant and text not in LITERALS:
            raise RowError(f"the argument {text!r} is a text; did you mean {meant[0]}?")
        try:
            value = ast.literal_eval(text)
        except ValueError:  # a text
            continue
        except (SyntaxError, TypeError, RecursionError, MemoryError):
            raise RowError(f"the argument {shorten_value(text)} is neither a name nor a literal") from None
        check_literal(value)


def check_torchvision(args: list) -> None:
    """Raise a `RowError` for a model that torchvision would give weights of its own accord: all but its classifiers."""
    import torchvision

    if not hasattr(torchvision.models, "list_models"):  # before 0.14, which makes models by other names only
        return
    known = torchvision.models.list_models(module=torchvision.models)
    if args[1:] and args[1] not in known:
        near = difflib.get_close_matches(str(args[1]), known, n=3)
        raise RowError(
            f"torchvision has no classifier {shorten_value(args[1])}; there are {', '.join(near or known[:3])}"
        )


def require_layer_class(name: str, names: dict[str, Any]) -> type[nn.Module]:
    """Give the class that a row names.

    Raises:
        RowError: If there is none, with those that are called alike.
    """
    cls = find_class(name, names)
    if is_layer(cls) and not is_model_or_loss(cls, names):
        return cls
    if cls is not None:
        raise RowError(f"{name[:MAX_TEXT]!r} is no layer")
    near = difflib.get_close_matches(name[:MAX_TEXT], list_module_names(names), n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(near)}?" if near else "see ultralytics/nn/AddModules for what there is"
    homes = [m for key, m in sys.modules.items() if is_added(key) and is_layer(vars(m).get(name))]
    if homes:
        advice = explain_decorator(homes[0], name)
    raise RowError(f"no module is named {name[:MAX_TEXT]!r}; {advice}")


def explain_decorator(home: Any, name: str) -> str:
    """Write the lines that register a class of a file in nn/AddModules."""
    cls = vars(home)[name]
    reader = suggest_reader(cls)
    return (
        f"the class of that name in {home.__name__} has no decorator @register(...). Write in "
        f"{getattr(home, '__file__', 'its file')}:\n\n"
        f"    from ultralytics.nn.AddModules.registry import {', '.join(sorted((reader, 'register')))}\n\n"
        f"    @register({reader})\n    class {name}({cls.__base__.__name__}): ..."
    )


def find_class(name: str, names: dict[str, Any]) -> Any:
    """Give what `parse_model` finds under a row's module name, or None."""
    if name.startswith("nn."):
        return vars(nn).get(name[3:])
    if name.startswith("torchvision.ops."):
        import torchvision

        return vars(torchvision.ops).get(name[16:])
    return names.get(name)


def is_layer(cls: Any) -> bool:
    """Whether a value is a class of layers."""
    return isinstance(cls, type) and issubclass(cls, nn.Module)


def is_model_or_loss(cls: type, names: dict[str, Any]) -> bool:
    """Whether a class is a whole model, of tasks.py itself, or a loss: none is a layer."""
    return cls.__module__ == names["__name__"] or cls.__module__.startswith("ultralytics.utils.")


def list_module_names(names: dict[str, Any]) -> list[str]:
    """List the module classes among the names that a row can use."""
    return [name for name, cls in names.items() if is_layer(cls) and not is_model_or_loss(cls, names)]


def describe_row(d: dict, i: int, row: Any) -> str:
    """Say where a row stands: file, number, section and text."""
    backbone_rows = len(d["backbone"])
    section, j = ("backbone", i) if i < backbone_rows else ("head", i - backbone_rows)
    return f"{file_name(d)}, row {i} (`{section}:` row {j}) {shorten_value(row)}"


def file_name(d: dict) -> str:
    """Name the file."""
    return str(d.get("yaml_file", "model YAML"))


def shorten_value(value: Any, depth: int = 4) -> str:
    """Write a value in a line of bounded length, whatever it holds."""
    if isinstance(value, (list, tuple)) and depth:
        text = f"[{', '.join(shorten_value(x, depth - 1) for x in value[:20])}{', …' if len(value) > 20 else ''}]"
    elif isinstance(value, dict) and 0 < depth < 4 and len(value) <= 20:  # in a row
        text = f"{{{', '.join(f'{str(key)[:MAX_TEXT]}: {shorten_value(x, depth - 1)}' for key, x in value.items())}}}"
    elif isinstance(value, (list, tuple, dict, set)):
        text = f"a {type(value).__name__} of {len(value)}"
    elif isinstance(value, int) and abs(value) > 10**20:
        text = "a number of many digits"
    elif isinstance(value, (str, bytes)):
        text = repr(value[:MAX_TEXT])
    else:
        text = repr(value)
    return text if len(text) <= 2 * MAX_TEXT else f"{text[: 2 * MAX_TEXT]}…"


def copy_lists(value: Any) -> Any:
    """Copy lists in lists."""
    return [copy_lists(x) for x in value] if isinstance(value, (list, tuple)) else value


def show_signature(cls: type) -> str:
    """Show how a class is constructed, for an error message."""
    parameters = inspect.signature(cls).parameters.values()
    return f"{cls.__name__}({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})"


def pad_maps(maps: list | tuple, empty: Any) -> list:
    """Put what stands for an empty index before the maps of a multi-output backbone, or before their channels."""
    return [empty] * (BACKBONE_LAYERS - len(maps)) + list(maps)


def is_backbone(cls: Any) -> bool:
    """Whether a class is registered as a multi-output backbone."""
    return inspect.isclass(cls) and READERS.get(cls) is backbone
