"""Name the file and the row of a label that is wrong; upstream leaves the image out and names the image only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ultralytics.fork.errors import quote


def name_wrong_row(args: tuple, result: Any) -> Any:
    """Put the file and the row of a wrong label into the message of `verify_image_label`.

    Args:
        args: Arguments of `verify_image_label`.
        result: Its result; the last two items are whether the image is left out, and the message.
    """
    _, file, _, has_keypoints, classes, points, dims, *others = args
    is_single_class = bool(others and others[0])  # which earlier releases do not pass
    is_corrupt, problem = result[-2], None
    if is_corrupt and os.path.isfile(file):
        columns = 5 + points * dims if has_keypoints else None
        problem = find_wrong_row(file, 1e9 if is_single_class else classes, columns)
    if not problem:
        return result
    return (*result[:-1], f"{result[-1].partition('image/label: ')[0]}image/label: {problem}")


def find_wrong_row(file: str, classes: float, columns: int | None) -> str | None:
    """Say which row of a label file is the first wrong one, and why.

    Args:
        file: The label file.
        classes: How many classes there are.
        columns: How many numbers a row must have; None for those of a box or a polygon.
    """
    try:
        rows = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return f"{file} is no text in UTF-8"
    for number, row in enumerate(rows, 1):
        try:
            values = np.array(row.split(), dtype=np.float32)  # as upstream reads them
        except ValueError:
            return f"{file}, row {number}: expected numbers, not {quote(row, 60)}"
        problem = find_row_problem(row, values, classes, columns)
        if problem:
            return f"{file}, row {number}: {problem}"
    return None


def find_row_problem(row: str, values: np.ndarray, classes: float, columns: int | None) -> str | None:
    """Say what is wrong with a row of a label file.

    Args:
        row: Its text.
        values: Its numbers.
        classes: How many classes there are.
        columns: How many numbers a row must have; None for those of a box or a polygon.
    """
    n = len(values)
    if n == 0:
        return None
    if n != columns and (columns or (n != 5 and (n < 7 or n % 2 == 0))):
        return f"expected {columns or 'class x y width height, or a class and a polygon'}, not {n} numbers"
    if not np.isfinite(values).all():
        return f"{quote(row, 60)} is not finite"
    if values[0] % 1 or not 0 <= values[0] < classes:
        return f"class {row.split()[0]} is out of range 0-{classes - 1:.0f}"
    lowest, highest = values[1:].min(initial=0), values[1:].max(initial=0)
    if not columns and (highest > 1.01 or lowest < -0.01 or (n == 5 and values[3:].min() < 0)):
        return f"expected fractions of the image's width and height, 0 to 1, not {quote(row, 60)}"
    return None
