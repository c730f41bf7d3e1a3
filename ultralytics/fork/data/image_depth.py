"""Read images of more than 8 bits by the range that the data YAML states as `bits:`.

Upstream keeps the high byte of 16-bit images: of a camera with 12 bits, 16 of 256 levels are left.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

_bits: contextvars.ContextVar[int | None] = contextvars.ContextVar("bits", default=None)


def with_depth_of(dataset: Any, call: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a data set that reads images, which then have the depth that its data YAML states."""
    token = _bits.set((getattr(dataset, "data", None) or {}).get("bits"))
    try:
        return call(dataset, *args, **kwargs)
    finally:
        _bits.reset(token)


def read_image(imread: Callable, file: Any, flags: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """Read an image as 8 bits, (H, W, C).

    Args:
        imread: Upstream's function.
        file: The image.
        flags: Of OpenCV.
    """
    bits = _bits.get()
    if bits is None or flags not in (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE):
        return imread(file, flags=flags)
    image = imread(file, flags=flags | cv2.IMREAD_ANYDEPTH)
    if image is None or image.dtype != np.uint16:
        return image
    return (np.minimum(image, 2**bits - 1) >> (bits - 8)).astype(np.uint8)
