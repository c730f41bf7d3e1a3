"""What annotations say of images, and where the images are that they name."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ultralytics.fork.errors import Refused, quote

IMAGE_FOLDERS = "", "images", "JPEGImages"  # below a data set's folder, or beside its annotations


@dataclass
class AnnotatedImage:
    """An image and its objects.

    Attributes:
        file: The image.
        identity: What the annotations call it.
        size: Width and height in pixels that the annotations state; None if they do not.
        names: Of the objects' categories.
        boxes: Of the objects: left, top, width and height in pixels, (n, 4).
        is_ignored: Whether an object is a region of many or a difficult one, which no detection need find, (n,).
        areas: Of the objects in square pixels, (n,).
    """

    file: str
    identity: Any
    size: tuple[float, float] | None
    names: list[str] = field(default_factory=list)
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    is_ignored: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass
class Annotations:
    """What one file or folder of annotations says.

    Attributes:
        source: The file, or the folder.
        images: Its images.
        categories: The identity of each category by its name.
        digest: Of the content.
    """

    source: Path
    images: list[AnnotatedImage]
    categories: dict[str, Any]
    digest: str


class ImageFinder:
    """Finds the images that annotations name: in the data set's folder, beside the annotations, or in any folder below.

    Args:
        source: The annotations.
        root: The data set's folder.
    """

    def __init__(self, source: Path, root: Path):
        self.source, self.root = source, root
        stem = source.stem if source.is_file() else source.name
        splits = dict.fromkeys([stem, *(part for part in stem.split("_") if part)])  # instances_train2017: train2017
        names = [os.path.join(place, split) for split in splits for place in ("", *IMAGE_FOLDERS[1:])]
        parents = [root, source.parent, source.parent.parent]
        self.folders = list(dict.fromkeys(parent / name for name in [*names, *IMAGE_FOLDERS] for parent in parents))

    def find(self, name: str) -> str:
        """Find an image; the first place where it might be, if it is nowhere.

        Raises:
            Refused: For a name that leads out of the folders, or that several files below the root have.
        """
        if Path(name).is_absolute() and Path(name).is_file():
            return name
        parts = Path(name.replace("\\", "/")).parts
        parts = parts[-1:] if parts[0].endswith(("/", ":")) else parts  # of another machine
        if ".." in parts or not name.isprintable():
            raise Refused(f"{self.source}: the image {quote(name, 100)} lies outside of the data set's folder")
        for folder in self.folders:
            for file in (folder / name, folder.joinpath(*parts)):  # a backslash may be a part of a name
                if file.is_file():
                    return str(file)
        found = [file for file in self.files.get(parts[-1], []) if file.parts[-len(parts) :] == parts]
        if len(found) > 1:
            raise Refused(
                f"{self.source}: the image {quote(name, 100)} may be {found[0]} or {found[1]}; put the annotations "
                "beside their images, or name the folder in file_name"
            )
        return str(found[0] if found else self.folders[0].joinpath(*parts))

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        """All files below the data set's folder, by name."""
        found: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                found.setdefault(name, []).append(Path(folder, name))
        return found
