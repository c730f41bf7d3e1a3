"""Read from a constructor's signature which arguments are channels, so that no other argument is taken for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter

from torch import nn

# Names without their underscores and capitals
INPUT_NAMES = {
    *("c", "c1", "ch", "chan", "chans", "channel", "channels", "cin", "cinp", "dim", "dims", "dmodel", "embeddim"),
    *("embeddims", "feat", "feats", "features", "filters", "hiddendim", "inc", "inch", "inchan", "inchannel"),
    *("inchannels", "inchans", "indim", "indims", "infeatures", "inp", "inplane", "inplanes", "inputchannel"),
    *("inputchannels", "inputchans", "inputdim", "nchannels", "nf", "nfeat", "nfeats", "nin", "numchannels"),
    *("numfeatures", "planes"),
}
OUTPUT_NAMES = {
    *("c2", "cout", "coup", "dimout", "dimsout", "nout", "ouc", "ouch", "oup", "oupch", "outc", "outch", "outchan"),
    *("outchannel", "outchannels", "outchans", "outdim", "outdims", "outfeatures", "outfilters", "outplane"),
    *("outplanes", "outputchannel", "outputchannels", "outputdim", "planes"),
}
OTHER_NAMES = {
    *("act", "activation", "actlayer", "alpha", "attnratio", "b", "beta", "bias", "d", "depth", "dilation"),
    *("drop", "dropout", "droppath", "e", "elambda", "eps", "epsilon", "expand", "expandratio", "expansion"),
    *("factor", "g", "gamma", "group", "groups", "head", "heads", "imgsize", "inputresolution", "k", "kernel"),
    *("kernels", "kernelsize", "kernelsizes", "kersize", "ks", "ksize", "lambda", "layers", "level", "levels"),
    *("mlpratio", "mode", "n", "ngroups", "nheads", "norm", "normlayer", "numblocks", "numgroups", "numheads"),
    *("numlayers", "nwin", "p", "padding", "patch", "patchsize", "pool", "poolsize", "qkvbias", "r", "radix"),
    *("rate", "ratio", "reduction", "repeats", "resolution", "s", "scale", "scales", "shortcut", "size"),
    *("sizes", "stride", "strides", "topk", "type", "window", "windowsize", "windowsizes", "winsize", "ws"),
}
LIST_NAMES = {"channels", "chs", "dims", "incs", "inchannels", "inchannelslist", "inclist", "indims", "inputdims", "ch"}
HEADS = "ultralytics.nn.modules.head"  # upstream's file of them
REPEATS = "n"  # as upstream's C2f calls the repeats that it has inside
POSITIONAL = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD


class Ambiguous(Exception):
    """A signature does not tell which argument is the channels; the message says what it does tell."""


@dataclass
class Bound:
    """Arguments of a constructor, and how a summary shows them."""

    args: list
    kwargs: dict
    printed: list


def simplify(name: str) -> str:
    """Bring a parameter's name to the form of the tables."""
    return name.replace("_", "").lower()


def list_parameters(cls: type) -> list[Parameter]:
    """List the parameters of a class's constructor."""
    if cls.__init__ is nn.Module.__init__:  # which takes nothing
        return []
    return list(inspect.signature(cls).parameters.values())


def is_required(p: Parameter) -> bool:
    """Whether an argument must be given, or may be of any name and count."""
    return p.default is p.empty and p.kind is not p.VAR_KEYWORD


def find_input(parameters: list[Parameter]) -> Parameter | None:
    """Find the parameter that takes the input's channels; None if the constructor takes none.

    Raises:
        Ambiguous: If the names do not tell.
    """
    first = parameters[0] if parameters else None
    named = [p for p in parameters if simplify(p.name) in INPUT_NAMES]
    if first is None or first.kind is first.VAR_KEYWORD:
        return None
    if first in named:
        return first
    is_other = simplify(first.name) in OTHER_NAMES | OUTPUT_NAMES
    if named and (is_other or not is_required(first)):
        return named[0]
    if named or (is_required(first) and is_other):
        raise Ambiguous(f"its first argument is `{first.name}`, which is not known to be the channels")
    if is_required(first):
        return first
    if not is_other and type(first.default) is int and first.default > 7:
        raise Ambiguous(f"its first argument, `{first.name}={first.default}`, may be the channels or something else")
    return None


def suggest_reader(cls: type) -> str:
    """Name the reader of rows that fits a constructor's signature."""
    names = [simplify(p.name) for p in list_parameters(cls)]
    if any(base.__module__ == HEADS for base in cls.__mro__):
        return "head"
    if names and names[0] in LIST_NAMES - INPUT_NAMES:
        return "joins_maps"
    is_pair = len(names) > 1 and names[0] not in OTHER_NAMES and names[1] in OUTPUT_NAMES
    return "changes_channels" if is_pair else "keeps_channels"


def bind_input(cls: type, c1: int, given: list) -> Bound:
    """Put the input's channels where a constructor takes them, and the row's arguments into the others."""
    parameters = list_parameters(cls)
    target = find_input(parameters)
    if target is None:
        return Bound(list(given), {}, list(given))
    return place(parameters, {target.name: c1}, given)


def bind_input_and_output(cls: type, c1: int, c2: int, repeats: int, given: list) -> tuple[Bound, bool]:
    """Put the channels of the input and the output, and the repeats, where a constructor takes them.

    Returns:
        The arguments, and whether the repeats are among them.
    """
    parameters = list_parameters(cls)
    source = find_input(parameters)
    if source is None:
        raise Ambiguous("none of its arguments is known to be the channels of the input")
    if source.kind is source.VAR_POSITIONAL:
        return Bound([c1, c2, *given], {}, [c1, c2, *given]), False
    outputs = [p for p in parameters if simplify(p.name) in OUTPUT_NAMES and p is not source]
    rest = [p for p in parameters if p is not source and p.kind is not p.VAR_KEYWORD]
    target = outputs[0] if outputs else rest[0] if rest else None
    if target is None or (not outputs and simplify(target.name) in OTHER_NAMES):
        what = f"`{target.name}`" if target else "missing"
        raise Ambiguous(f"its second argument is {what}, not the channels of the output")
    values = {source.name: c1, target.name: c2}
    inside = next((p for p in parameters[2:3] if p.name == REPEATS), None)
    if inside is not None:
        values[inside.name] = repeats
    return place(parameters, values, given), inside is not None


def bind_inputs(cls: type, channels: list[int], given: list, width: Callable) -> tuple[Bound, int]:
    """Put the channels of several inputs where a constructor takes them: as a list, or one by one.

    Args:
        cls: The class.
        channels: Of each input.
        given: The row's arguments.
        width: Function that scales the output's channels, which the row gives.

    Returns:
        The arguments, and the output's channels: of the row, if the constructor takes them, or of the first input.
    """
    parameters = list_parameters(cls)
    outputs = [p for p in parameters if simplify(p.name) in OUTPUT_NAMES]
    takes_output = bool(outputs) and outputs[0] is not (parameters or [None])[0]
    if takes_output and not given:
        raise Ambiguous(f"it takes the channels of its output as `{outputs[0].name}`; expected them first in the row")
    c2 = width(given[0]) if takes_output else channels[0]
    values = {outputs[0].name: c2} if takes_output else {}
    given = given[1:] if takes_output else given
    inputs = [p for p in parameters if p.kind in POSITIONAL and p.name not in values]
    required = [p for p in inputs if is_required(p) and simplify(p.name) not in OTHER_NAMES]
    first = find_input([p for p in parameters if p.name not in values])
    one_by_one = len(required) >= len(channels) > 1 and simplify(required[0].name) not in LIST_NAMES
    if one_by_one:
        values.update(zip((p.name for p in required), channels))
    elif first is not None:
        values[first.name] = list(channels)
    return place(parameters, values, given), c2


def place(parameters: list[Parameter], values: dict, given: list) -> Bound:
    """Fill the parameters with values by name, and what is left with the row's arguments in their order."""
    printed = [*values.values(), *given]
    leading = 0
    while leading < len(parameters) and parameters[leading].name in values and parameters[leading].kind in POSITIONAL:
        leading += 1
    starred = next((p for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if leading == len(values) or (starred is not None and starred.name in values):
        ordered = [values.get(p.name) for p in parameters if p.name in values]
        return Bound([*ordered, *given], {}, [*ordered, *given])
    others = [p for p in parameters if p.name not in values and p.kind in POSITIONAL]
    if len(given) > len(others):
        raise Ambiguous(f"{len(given)} arguments are given, and it takes {len(others)} beside the channels")
    return Bound([], {**values, **{p.name: x for p, x in zip(others, given)}}, printed)
