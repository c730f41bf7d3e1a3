"""Use no image that cannot be decoded, and name the file in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ultralytics.fork.errors import Refused, quote
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import imread

HEIF_BRANDS = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"  # behind "ftyp"


class UnreadableImage(Refused):
    """An image that became unreadable.

    A data loader's worker puts its whole traceback into the message of an error; this takes its last line out of it
    again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition("\n")[2].rpartition(f"{type(self).__name__}: ")[2])


def open_image(image_open: Callable, pillow_open: Callable, file: Any, *args: Any, **kwargs: Any) -> Any:
    """Open an image by Pillow alone, unless it is HEIF.

    Upstream's `Image.open` installs a package for each file that Pillow cannot read.

    Args:
        image_open: Upstream's function, which stands in place of Pillow's.
        pillow_open: Pillow's own function.
        file: The path of an image, or an open file.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as f:
            head = f.read(12)
        if head[4:8] != b"ftyp" or head[8:] not in HEIF_BRANDS:
            return pillow_open(file, *args, **kwargs)
    return image_open(file, *args, **kwargs)


def check_image_pixels(file: str) -> None:
    """Decode an image, of which upstream reads the header only.

    Raises:
        ValueError: If its pixels cannot be decoded; upstream then leaves it out.
    """
    is_jpeg = str(file).lower().endswith((".jpg", ".jpeg"))  # an eighth of its size is decoded fast
    if imread(file, cv2.IMREAD_REDUCED_COLOR_8 if is_jpeg else cv2.IMREAD_UNCHANGED) is None:
        raise ValueError("its pixels cannot be decoded")


def load_readable_image(load_image: Callable, dataset: Any, i: int, *args: Any, **kwargs: Any) -> tuple:
    """Load an image of a data set without a cached .npy file that is not an image.

    Raises:
        UnreadableImage: If the image is gone or cannot be decoded.
    """
    npy = dataset.npy_files[i]
    if dataset.ims[i] is None and npy.exists() and not is_image_array(npy):
        LOGGER.warning(f"{dataset.prefix}{npy} is no image and is not used for {Path(dataset.im_files[i]).name}")
        dataset.npy_files[i] = npy.with_name(f".{npy.name}")
    try:
        return load_image(dataset, i, *args, **kwargs)
    except (OSError, ValueError, cv2.error) as e:
        file = dataset.im_files[i]
        reason = "is gone" if not os.path.exists(file) else "cannot be decoded: remove it or save it again"
        reason = reason if isinstance(e, FileNotFoundError) else f"cannot be read: {quote(e)}"
        raise UnreadableImage(f"{UnreadableImage.__name__}: {file} {reason}") from e


def is_image_array(file: Path) -> bool:
    """Whether a .npy file is an image as upstream caches it."""
    try:
        shape, dtype = (image := np.load(file, mmap_mode="r")).shape, image.dtype
    except Exception:  # of the file, and of the parsers of Python that numpy reads its head with
        return False
    return dtype in (np.uint8, np.uint16) and len(shape) in (2, 3) and min(shape) > 0
