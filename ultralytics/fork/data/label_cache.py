"""Keep label caches as numbers and text: upstream's are pickles, which run what they hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ultralytics.utils import LOGGER

ARRAY_KEY = "array"  # the only key of a mapping that stands for an array: its type, shape and offset


def pack_cache(tree: dict) -> bytes:
    """Write mappings, lists, text, numbers and arrays of numbers: a line of JSON, then the arrays' numbers."""
    parts, size = [], 0

    def pack_array(value: Any) -> Any:
        nonlocal size
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise TypeError(f"no {type(value).__name__} can be kept in a label cache")
        parts.append(value.tobytes())
        size += value.nbytes
        return {ARRAY_KEY: [value.dtype.str, value.shape, size - value.nbytes]}

    return json.dumps(tree, default=pack_array).encode() + b"\n" + b"".join(parts)


def unpack_cache(data: bytes) -> dict:
    """Read what `pack_cache` has written.

    Raises:
        ValueError: For other data; also `TypeError`, `KeyError` and `RecursionError`.
    """
    head, _, numbers = data.partition(b"\n")
    left = len(numbers)

    def unpack_array(value: dict) -> Any:
        nonlocal left
        if value.keys() != {ARRAY_KEY}:
            return value
        kind, shape, start = value[ARRAY_KEY]
        if not re.fullmatch(r"[<>|][biuf]\d", kind):
            raise ValueError("no numbers")
        dtype = np.dtype(kind)
        left -= math.prod(shape) * dtype.itemsize
        if left < 0:
            raise ValueError("arrays over one another")
        if not 0 <= start <= len(numbers) - math.prod(shape) * dtype.itemsize:
            raise ValueError("no array of numbers")  # numpy itself would read in front of the buffer
        return np.ndarray(shape, dtype, numbers, start).copy()

    return json.loads(head, object_hook=unpack_array)


def load_label_cache(path: str | Path) -> dict:
    """Read a label cache without unpickling it.

    Raises:
        FileNotFoundError: For a file that `pack_cache` has not written, so that upstream makes it anew.
    """
    data = Path(path).read_bytes()
    try:
        return unpack_cache(data)
    except (ValueError, TypeError, KeyError, RecursionError):
        LOGGER.warning(f"{path} is not a label cache of this version's: it is not opened, and made anew")
        raise FileNotFoundError(path) from None  # of which each release knows what to do


def save_label_cache(save_dataset_cache_file: Callable, *args: Any, **kwargs: Any) -> None:
    """Let upstream write a label cache by `pack_cache` instead of as a pickle."""
    with patch.object(np, "save", lambda file, tree: file.write(pack_cache(tree))):
        save_dataset_cache_file(*args, **kwargs)
