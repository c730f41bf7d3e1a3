"""A layer's number is its index, `m.i`, as rows and summaries count: behind a multi-output backbone not its place.

Such a backbone is one layer in the model's list, and takes five indices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ultralytics.fork.errors import Refused


def list_indices(layers: Iterable) -> list[range]:
    """List the indices of each layer in the model's list."""
    ends = [getattr(m, "i", place) + 1 for place, m in enumerate(layers)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends)]


def find_place(layers: Iterable, index: int) -> int:
    """Find the place in the model's list of the layer that has an index; as `model.model[place]`.

    Raises:
        IndexError: If no layer has it.
    """
    indices = list_indices(layers)
    index = index + indices[-1].stop if index < 0 else index
    for place, found in enumerate(indices):
        if index in found:
            return place
    raise IndexError(f"no layer {index}; there are 0 to {indices[-1].stop - 1}")


def choose_frozen_places(model: Any, freeze: Any) -> Any:
    """Translate `freeze=`, which counts layers by their indices, for upstream, which takes places.

    Args:
        model: The model.
        freeze: The first layers, as a number, or a list of indices.

    Returns:
        What upstream takes for it; the argument itself for a model whose indices are the places.

    Raises:
        Refused: For an index that no layer has, or a part of a backbone that is one layer.
    """
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential) or not isinstance(freeze, (int, list)) or isinstance(freeze, bool):
        return freeze
    indices = list_indices(layers)
    if isinstance(freeze, int) and (all(len(found) == 1 for found in indices) or freeze >= indices[-1].stop):
        return freeze
    chosen = list(range(freeze)) if isinstance(freeze, int) else freeze
    whole = {x for x in chosen if not isinstance(x, str)}
    places, known = [], set()
    for place, found in enumerate(indices):
        known |= set(found)
        missing = set(found) - whole
        if not missing:
            places.append(place)
        elif len(missing) < len(found):
            kind = type(layers[place]).__name__
            raise Refused(
                f"freeze={freeze}: layers {found.start} to {found.stop - 1} are one backbone, {kind}; freeze all of "
                f"it, freeze={found.stop}, or none"
            )
    parts = {x: translate_part(layers, x) for x in chosen if isinstance(x, str)}
    unknown = [x for x in chosen if not (parts.get(x) if isinstance(x, str) else x in known)]
    if unknown:
        raise Refused(f"freeze={freeze}: the model has no layer {unknown[0]!r}, but 0 to {indices[-1].stop - 1}")
    return [*parts.values(), *places]


def translate_part(layers: Iterable, name: str) -> str | None:
    """Translate the name of a part of a layer, such as "6.cv2"; None if there is no such layer."""
    index, dot, rest = name.partition(".")
    try:
        return f"{find_place(layers, int(index))}{dot}{rest}"
    except (IndexError, ValueError):
        return None
