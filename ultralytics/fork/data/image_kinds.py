"""Look at some images of a data set before a run is paid for, and say what would be lost of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ultralytics.fork.errors import Refused
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.patches import imread

SAMPLED_IMAGES = 16  # of a data set
FEW_BITS = 13  # a 16-bit image with no larger value has lost more than it keeps
SMALL_SIDE = 2  # pixels, below which upstream's augmentation leaves a box out
SMALL_SHARE = 0.01  # of all boxes, from which the small ones are told
LOST_SHARE = 0.01  # of all images, from which those that are left out are told


def look_at_images(dataset: Any, labels: list[dict], listed: int) -> None:
    """Check the channels of some images, and warn of their depth and pages, and of images and boxes that are lost.

    Args:
        dataset: Upstream's data set.
        labels: Of its images, as upstream has read them.
        listed: Number of its images before those were left out that cannot be read.

    Raises:
        Refused: If an image has not the channels that the data YAML states.
    """
    files = dataset.im_files
    sample = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, SAMPLED_IMAGES, dtype=int))]
    channels = getattr(dataset, "channels", 3)
    if channels not in (1, 3):  # these are converted to
        for file in sample:
            check_channels(file, channels, dataset)
    if RANK in (-1, 0):
        warn_of_lost_images(dataset, len(labels), listed)
        warn_of_depth(sample, dataset)
        warn_of_pages(sample, channels, dataset)
        if type(dataset).__name__ == "RTDETRDataset":
            warn_of_small_boxes(dataset, labels)


def check_channels(file: str, channels: int, dataset: Any) -> None:
    """Refuse an image of another number of channels than the data YAML states."""
    image = imread(file, flags=cv2.IMREAD_UNCHANGED)
    if image is not None and image.shape[2] != channels:
        data = (dataset.data or {}).get("yaml_file", "the data file")
        raise Refused(
            f"{file} has {image.shape[2]} channels, and {data} says `channels: {channels}`; expected images of "
            f"{channels} channels, or `channels: {image.shape[2]}`"
        )


def warn_of_lost_images(dataset: Any, used: int, listed: int) -> None:
    """Warn of images that are left out with their objects, for what is wrong with them or their labels."""
    lost = listed - used
    if lost > LOST_SHARE * listed:
        data = (dataset.data or {}).get("yaml_file", "DATA")
        LOGGER.warning(
            f"{dataset.prefix}{lost} of {listed} images ({lost / listed:.1%}) are left out; `scripts/data.py check "
            f"{data}` says why, and what else is wrong"
        )


def warn_of_depth(files: list[str], dataset: Any) -> None:
    """Warn of 16-bit images whose values are low, of which upstream keeps the high byte only."""
    if (dataset.data or {}).get("bits"):
        return
    largest = 0
    for file in files:
        if Path(file).suffix.lower() in {".png", ".tif", ".tiff", ".dng"}:
            image = imread(file, flags=cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            if image is not None and image.dtype == np.uint16:
                largest = max(largest, int(image.max()))
    if 0 < largest < 2**FEW_BITS:
        bits = max(9, largest.bit_length())
        LOGGER.warning(
            f"{dataset.prefix}the images are 16-bit and their largest value is {largest}: {largest // 256 + 1} levels "
            f"of 256 are left of them. `bits: {bits}` in the data file scales them by their own range; predict takes "
            "images that were scaled so before"
        )


def warn_of_pages(files: list[str], channels: int, dataset: Any) -> None:
    """Warn of images with several pages, of which the first is used."""
    for file in files:
        if Path(file).suffix.lower() not in {".tif", ".tiff"}:
            continue
        try:
            with Image.open(file) as image:
                pages = getattr(image, "n_frames", 1)
        except Exception:  # OpenCV reads more kinds
            continue
        if pages > 1 and (channels in (1, 3) or pages != channels):
            LOGGER.warning(f"{dataset.prefix}{file} has {pages} pages, of which the first is used")
            return


def warn_of_small_boxes(dataset: Any, labels: list[dict]) -> None:
    """Warn of boxes of which hardly a pixel is left where RT-DETR stretches images to a square."""
    size = dataset.imgsz if isinstance(dataset.imgsz, int) else min(dataset.imgsz)
    boxes = [label["bboxes"][:, 2:] * size for label in labels if len(label["bboxes"])]
    if not boxes:
        return
    small = np.concatenate([(sides < SMALL_SIDE).any(1) for sides in boxes])
    if small.mean() > SMALL_SHARE:
        ratio = max(max(label["shape"]) / max(1, min(label["shape"])) for label in labels)
        shape = f", and one is {ratio:.0f} times as long as wide" if ratio > 3 else ""
        LOGGER.warning(
            f"{dataset.prefix}{small.sum()} of {len(small)} boxes are less than {SMALL_SIDE} pixels wide or high at "
            f"imgsz={size}: each image is stretched to a square{shape}. They are not learned; a larger imgsz, or "
            "images cut into tiles, keep them"
        )
