"""Read folders of Pascal VOC's XML files, one an image (VOC2012 development kit, section 4.4.2)."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ultralytics.fork.data.annotated_images import AnnotatedImage, Annotations, ImageFinder
from ultralytics.fork.errors import Refused, quote

ENDING = ".xml"
CORNERS = "xmin", "ymin", "xmax", "ymax"  # pixels counted from 1
ENDINGS = ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"
SIDES = "width", "height"


def is_voc_folder(path: Path) -> bool:
    """Whether a folder has XML files in it."""
    return path.is_dir() and any(file.suffix.lower() == ENDING for file in path.iterdir())


def read_voc_folder(folder: Path, root: Path) -> Annotations:
    """Read the XML files of a folder.

    Args:
        folder: The folder.
        root: Of the data set, below which images are looked for, too.

    Raises:
        Refused: With the file and the object that is wrong and what is expected.
    """
    finder, digest = ImageFinder(folder, root), hashlib.sha256()
    images = []
    for file in sorted(file for file in folder.iterdir() if file.suffix.lower() == ENDING):
        data = file.read_bytes()
        digest.update(data)
        images.append(read_voc_file(file, data, finder))
    names = sorted({name for image in images for name in image.names})
    return Annotations(folder, images, {name: name for name in names}, digest.hexdigest())


def read_voc_file(file: Path, data: bytes, finder: ImageFinder) -> AnnotatedImage:
    """Read an image's objects.

    Args:
        file: The XML file.
        data: Its content.
        finder: Finds the image, which has the name that the file states, or that of the file.

    Raises:
        Refused: With the object that is wrong and what is expected.
    """
    try:
        content = ElementTree.fromstring(data, parser=ElementTree.XMLParser(target=TreeWithoutTypes()))
    except ElementTree.ParseError as e:
        raise Refused(f"{file} is not XML: {quote(e, 100)}") from None
    except ValueError:
        raise Refused(f"{file} declares a document type, which annotations do not need; remove it") from None
    if content.tag != "annotation":
        raise Refused(f"{file}: expected Pascal VOC's <annotation>, not <{quote(content.tag, 60)}>")
    name = (content.findtext("filename") or "").strip()
    if not name:
        raise Refused(f"{file}: <filename> is missing, the name of the image")
    image = AnnotatedImage(find_image(name, finder), Path(name).stem, read_size(file, content))
    rows = [read_object(file, index, entry) for index, entry in enumerate(content.iter("object"), 1)]
    if rows:
        image.names = [name for name, *_ in rows]
        image.boxes = np.array([box for _, box, _ in rows])
        image.is_ignored = np.array([is_difficult for *_, is_difficult in rows])
        image.areas = image.boxes[:, 2] * image.boxes[:, 3]
    return image


class TreeWithoutTypes(ElementTree.TreeBuilder):
    """Builds a tree, but none with a document type, in which entities could be declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse a document type."""
        raise ValueError(name)


def find_image(name: str, finder: ImageFinder) -> str:
    """Find an image, whose name some tools write without its ending."""
    if Path(name).suffix.lower() in ENDINGS:
        return finder.find(name)
    found = [finder.find(name + ending) for ending in ENDINGS]
    return next((file for file in found if Path(file).is_file()), found[0])


def read_size(file: Path, content: ElementTree.Element) -> tuple[float, float] | None:
    """Read an image's width and height; None if they are not stated, or as zero, as some tools write."""
    texts = [content.findtext(f"size/{side}") for side in SIDES]
    width, height = map(read_number, texts)
    if None in texts or width == height == 0:
        return None
    if not (width and height and width > 0 and height > 0):
        raise Refused(f"{file}: expected pixels as <width> and <height>, not {quote(texts, 60)}")
    return width, height


def read_object(file: Path, index: int, entry: ElementTree.Element) -> tuple[str, list[float], bool]:
    """Read an object: its name, its box as left, top, width and height in pixels, and whether it is difficult."""
    name = (entry.findtext("name") or "").strip()
    left, top, right, bottom = (read_number(entry.findtext(f"bndbox/{corner}")) for corner in CORNERS)
    if not name or left is None or top is None or right is None or bottom is None:
        raise Refused(f"{file}, object {index}: expected <name> and <bndbox> with {', '.join(CORNERS)} in pixels")
    box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    return name, box, (entry.findtext("difficult") or "").strip() == "1"


def read_number(text: str | None) -> float | None:
    """Read a finite number; None for anything else."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
