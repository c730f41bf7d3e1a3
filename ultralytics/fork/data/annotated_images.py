"""What annotations say of images, and where the images are that they name."""

from __future__ import annotations

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
        ignored: What it calls objects that are ignored.
        digest: Of the content.
    """

    source: Path
    images: list[AnnotatedImage]
    categories: dict[str, Any]
    ignored: str
    digest: str


class ImageFinder:
    """Finds the images that annotations name: in the data set's folder, beside the annotations, or in a folder below.

    Args:
        source: The annotations.
        root: The data set's folder.
        split: What its images' folder may be called, such as train2017.
    """

    def __init__(self, source: Path, root: Path, split: str = ""):
        self.source, self.root = source, root
        parents = [root, source.parent, source.parent.parent]
        names = [*IMAGE_FOLDERS, *([split, os.path.join("images", split)] if split else [])]
        self.folders = list(dict.fromkeys(parent / name for parent in parents for name in names))
        self.first: Path | None = None  # the folder in which the last one was

    def find(self, name: str) -> str:
        """Find an image; the first folder in which it might be, if it is in none.

        Raises:
            Refused: For a name that leads out of the folders.
        """
        parts = Path(name.replace("\\", "/")).parts
        if ".." in parts:
            raise Refused(f"{self.source}: the image {quote(name, 100)} lies outside of the data set's folder")
        for folder in [self.first, *self.folders] if self.first else self.folders:
            for file in (folder / name, folder.joinpath(*parts)):  # a backslash may be a part of a name
                if file.is_file():
                    self.first = folder
                    return str(file)
        if self.first is None:
            self.first = next((file.parents[len(parts) - 1] for file in self.search(parts)), None)
            if self.first is not None:
                return self.find(name)
        return str((self.first or self.folders[0]).joinpath(*parts))

    def search(self, parts: tuple[str, ...]) -> list[Path]:
        """Search all folders of the data set for an image."""
        return sorted(self.root.rglob(os.path.join(*parts))) if self.root.is_dir() and parts else []
