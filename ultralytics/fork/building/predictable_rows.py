"""Find the rows whose memory follows from their registered parameters, so that their operations need no counting.

Such a row names a layer whose literals are channels, kernel sizes and strides, and each of its tensors is registered as
it is created: `MemoryLimit` then counts registered tensors. All other rows are counted operation by operation.
"""

from __future__ import annotations

from typing import Any

from ultralytics.fork.building.model_yaml import FILE_VARIABLES, is_number, read_scale
from ultralytics.nn.AddModules.registry import NAMES

# Number of leading arguments that are channels or classes. A class that is missing here is counted, and thus slower
LEADING_CHANNELS = {
    **dict.fromkeys(("Conv", "DWConv", "GhostConv", "Focus", "AConv", "ADown", "SCDown", "Bottleneck"), 1),
    **dict.fromkeys(("BottleneckCSP", "GhostBottleneck", "C1", "C2", "C2f", "C2fCIB", "C3", "C3Ghost", "C3TR"), 1),
    **dict.fromkeys(("C3k2", "C3x", "RepC3", "SPPF", "PSA", "C2PSA", "C2fPSA", "A2C2f", "Detect", "v10Detect"), 1),
    **dict.fromkeys(("HGStem", "HGBlock", "SPPELAN"), 2),
    **dict.fromkeys(("ELAN1", "RepNCSPELAN4"), 3),
}
COUNTED_IN_FORWARD = {"Concat": 0, "AIFI": 1, "RTDETRDecoder": 1}  # the same of classes that `bound_forward` is not for
MAX_CHAINED = 16  # layers of a row, which may each widen the map by a few pixels
MAX_KERNEL = 16  # a kernel size, or a stride: the two arguments after the channels
MAX_OTHER = 1  # all later arguments: switches, groups, padding, expansions


def find_predictable_rows(rows: list[list], d: dict) -> dict[int, bool]:
    """Find the rows of which it is enough to count the registered tensors.

    Args:
        rows: The rows, checked.
        d: The model YAML.

    Returns:
        By number of the row, whether its forward is predictable too.
    """
    depth = max(1.0, read_scale(d)[0])
    first = 1 if d.get("activation") else 0  # `parse_model` builds the activation before row 0
    return {
        i: row[2] in LEADING_CHANNELS
        for i, row in enumerate(rows)
        if i >= first and row[1] * depth <= MAX_CHAINED and has_usual_literals(row[2], row[3], d)
    }


def has_usual_literals(name: str, args: list, d: dict) -> bool:
    """Whether a row's class is known, and its literals are numbers of a usual size."""
    channels = 0 if name in NAMES else {**LEADING_CHANNELS, **COUNTED_IN_FORWARD}.get(name)
    if channels is None:
        return False
    known = {**{name: d.get(name) for name in FILE_VARIABLES}, "None": None, "True": True, "False": False}
    values = [known.get(x, x) if isinstance(x, str) else x for x in args]
    bounds = [float("inf")] * channels + [MAX_KERNEL] * 2
    bounds += [MAX_OTHER] * (len(values) - len(bounds))
    return all(is_usual(x, bound) for x, bound in zip(values, bounds))


def is_usual(x: Any, bound: float) -> bool:
    """Whether a literal is missing, or a number within a bound."""
    return x is None or (is_number(x) and abs(x) <= bound)
