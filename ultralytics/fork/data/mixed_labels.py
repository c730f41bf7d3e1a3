"""Read label files in which boxes and polygons are mixed, of which upstream leaves the whole image out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def verify_mixed(verify: Callable, args: tuple) -> tuple | list:
    """Verify an image and its labels; in a file that mixes both, a box is the polygon of its corners.

    Args:
        verify: Upstream's `verify_image_label`.
        args: Its arguments.
    """
    image, file, prefix, has_keypoints, *others = args
    rows = None if has_keypoints else read_mixed_rows(file)
    if rows is None:
        return verify(args)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, Path(file).name)
        copy.write_text("\n".join(rows), encoding="utf-8")
        return verify((image, str(copy), prefix, has_keypoints, *others))


def read_mixed_rows(file: str) -> list[str] | None:
    """Give the rows of a label file as polygons, if it has both kinds; None for any other file."""
    if not os.path.isfile(file):
        return None
    try:
        rows = [line.split() for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if not (any(len(row) == 5 for row in rows) and any(len(row) > 6 and len(row) % 2 for row in rows)):
            return None
        return [" ".join(box_to_polygon(row) if len(row) == 5 else row) for row in rows]
    except ValueError:  # no text, or no numbers, which upstream says
        return None


def box_to_polygon(row: list[str]) -> list[str]:
    """Give the corners of a row's box (class, x, y, width, height)."""
    x, y, w, h = map(float, row[1:])
    left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return [row[0], *(f"{v:.9g}" for v in (left, top, right, top, right, bottom, left, bottom))]
