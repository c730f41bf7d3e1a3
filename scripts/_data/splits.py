"""Read the images and labels of a data set's splits as a training does, and keep what it would leave out."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ultralytics.data import utils
from ultralytics.data.base import BaseDataset
from ultralytics.fork.data import annotations
from ultralytics.utils import NUM_THREADS
from ultralytics.utils.patches import imread

DEEP = {".png", ".tif", ".tiff", ".dng"}  # kinds of files that may have 16 bits
SPLITS = "train", "val", "test"


@dataclass
class Picture:
    """An image of a split.

    Attributes:
        file: Its path.
        shape: Height and width in pixels; None if it is left out.
        classes: Of its objects, (n,).
        boxes: Of its objects: centre x, y, width and height as shares of the image, (n, 4).
        problem: Why it is left out, or what is wrong with it.
        digest: Of the file's bytes.
        pixels: Digest of what is decoded; None if nothing can be.
        channels: Of the image as it is stored.
        largest: Largest value of a 16-bit image; None for one of 8 bits.
        pages: In the file.
    """

    file: str
    shape: tuple[int, int] | None = None
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    problem: str = ""
    digest: str = ""
    pixels: str | None = None
    channels: int = 3
    largest: int | None = None
    pages: int = 1


@dataclass
class Split:
    """A split of a data set.

    Attributes:
        name: Such as train.
        pictures: Its images.
        notes: Counts of what is left out of annotations.
        labels: Its label files, whether they are there or not.
    """

    name: str
    pictures: list[Picture]
    notes: Counter[str]
    labels: list[str]

    @property
    def used(self) -> list[Picture]:
        """The images that a training uses."""
        return [picture for picture in self.pictures if picture.shape]


def read_split(data: dict[str, Any], name: str) -> Split:
    """Read a split.

    Args:
        data: The data set, as `check_det_dataset` returns it.
        name: Of the split.

    Raises:
        Refused: If it cannot be used at all; also `FileNotFoundError`.
    """
    listing = SimpleNamespace(
        prefix="", fraction=1.0, data=data, use_segments=False, use_keypoints=False, use_obb=False
    )
    files = BaseDataset.get_img_files(listing, data[name])
    notes: Counter[str] = Counter()
    with ThreadPool(NUM_THREADS) as pool:
        if hasattr(listing, "annotations"):
            listing.im_files = files
            pictures, labels = read_annotated(listing, notes), []
        else:
            labels = utils.img2label_paths(files)
            pictures = pool.starmap(read_labelled, [(file, label, data["nc"]) for file, label in zip(files, labels)])
        pool.map(read_content, pictures)
    return Split(name, pictures, notes, labels)


def read_labelled(file: str, label: str, classes: int) -> Picture:
    """Read an image and its label file by upstream's rules."""
    found, rows, shape, *_, message = utils.verify_image_label((file, label, "", False, classes, 0, 0, False))
    problem = message.partition("image/label: ")[2] or message.partition(": ")[2]
    if not found:
        return Picture(file, problem=problem)
    return Picture(file, tuple(shape), rows[:, 0].astype(int), rows[:, 1:], problem)


def read_annotated(listing: Any, notes: Counter[str]) -> list[Picture]:
    """Read the images of annotations."""
    by_file = {image.file: image for found in listing.annotations for image in found.images}
    numbers = annotations.number_classes(listing)
    shapes, messages = annotations.check_images(listing)
    pictures = []
    for file in listing.im_files:
        if file not in shapes:
            said = next((message for message in messages if file in message), "it cannot be read")
            pictures.append(Picture(file, problem=said.partition("image/label: ")[2] or said))
            continue
        label = annotations.make_label(by_file[file], shapes[file], numbers, notes)
        pictures.append(Picture(file, tuple(shapes[file]), label["cls"][:, 0].astype(int), label["bboxes"]))
    return pictures


def read_content(picture: Picture) -> None:
    """Note the digests, channels, depth and pages of an image."""
    try:
        data = Path(picture.file).read_bytes()
    except OSError:
        return
    picture.digest = hashlib.sha256(data).hexdigest()
    image = imread(picture.file, flags=cv2.IMREAD_UNCHANGED)
    if image is None:
        return
    picture.channels = image.shape[2] if image.ndim == 3 else 1
    picture.largest = find_largest(picture.file)
    picture.pixels = hashlib.sha256(image.tobytes() + str(image.shape).encode()).hexdigest()
    if Path(picture.file).suffix.lower() in {".tif", ".tiff"}:
        try:
            with Image.open(picture.file) as opened:
                picture.pages = getattr(opened, "n_frames", 1)
        except Exception:  # OpenCV reads more kinds
            pass


def find_largest(file: str) -> int | None:
    """Find the largest value of an image of 16 bits; None for one of 8 bits."""
    if Path(file).suffix.lower() not in DEEP:
        return None
    image = imread(file, flags=cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return int(image.max()) if image is not None and image.dtype == np.uint16 else None
