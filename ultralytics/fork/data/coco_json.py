"""Read COCO JSON: images, annotations and categories (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ultralytics.fork.data.annotated_images import AnnotatedImage, Annotations, ImageFinder
from ultralytics.fork.errors import Refused, quote

LARGEST = 1e12  # of coordinates and areas
LISTS = "images", "annotations", "categories"


def read_coco_json(file: Path, root: Path) -> Annotations:
    """Read a file of boxes.

    Args:
        file: The file.
        root: Of the data set, below which images are looked for, too.

    Raises:
        Refused: With the entry that is wrong and what is expected.
    """
    data = file.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise Refused(f"{file} is not JSON: {quote(e, 100)}") from None
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in LISTS):
        kind = "a list, as detections are" if isinstance(content, list) else "without one of these lists"
        raise Refused(f"{file}: expected COCO's lists {', '.join(LISTS)}, and this is {kind}")
    if not content["images"]:
        raise Refused(f"{file} has no images")
    reader = CocoReader(file, ImageFinder(file, root))
    categories = reader.read_categories(content["categories"])
    images = reader.read_images(content["images"])
    reader.read_objects(content["annotations"], images, categories)
    names = {name: identity for identity, name in categories.items()}
    digest = hashlib.sha256(data).hexdigest()
    return Annotations(file, list(images.values()), names, digest)


class CocoReader:
    """Reads the lists of a COCO file.

    Args:
        file: The file, for messages.
        finder: Finds its images.
    """

    def __init__(self, file: Path, finder: ImageFinder):
        self.file, self.finder = file, finder

    def refuse(self, kind: str, index: int, problem: str) -> Refused:
        """Make the error for an entry of a list."""
        return Refused(f"{self.file}, {kind}[{index}]: {problem}")

    def identify(self, kind: str, index: int, entry: Any, known: Any, *keys: str) -> Any:
        """Return the `id` of an entry that has some keys and whose id is new.

        Raises:
            Refused: For another entry.
        """
        if not isinstance(entry, dict) or any(key not in entry for key in ("id", *keys)):
            raise self.refuse(kind, index, f"expected {', '.join(('id', *keys))}, not {quote(entry, 60)}")
        identity = entry["id"]
        if not isinstance(identity, (int, str)) or isinstance(identity, bool):
            raise self.refuse(kind, index, f"expected a number or text as id, not {quote(identity, 60)}")
        if identity in known:
            raise self.refuse(kind, index, f"id {quote(identity, 60)} is that of an entry before it; give each its own")
        return identity

    def read_categories(self, entries: list) -> dict[Any, str]:
        """Read the categories' names, by id and in the order of the ids."""
        found: dict[Any, str] = {}
        for index, entry in enumerate(entries):
            identity = self.identify("categories", index, entry, found, "name")
            name = str(entry["name"])
            if name in found.values():
                raise self.refuse("categories", index, f"{quote(name, 60)} is the name of one before it, too")
            found[identity] = name
        if not found:
            raise Refused(f"{self.file} has no categories")
        return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def read_images(self, entries: list) -> dict[Any, AnnotatedImage]:
        """Read the images, by id."""
        found: dict[Any, AnnotatedImage] = {}
        for index, entry in enumerate(entries):
            identity = self.identify("images", index, entry, found, "file_name")
            name = entry["file_name"]
            if not isinstance(name, str) or not name.strip() or "\0" in name:
                raise self.refuse("images", index, f"expected a name of a file as file_name, not {quote(name, 60)}")
            sides = entry.get("width"), entry.get("height")
            size = None
            if sides != (None, None):
                if not all(is_number(side) and side > 0 for side in sides):
                    raise self.refuse("images", index, f"expected pixels as width and height, not {quote(sides, 60)}")
                size = (float(sides[0]), float(sides[1]))
            found[identity] = AnnotatedImage(self.finder.find(name), identity, size)
        return found

    def read_objects(self, entries: list, images: dict[Any, AnnotatedImage], categories: dict[Any, str]) -> None:
        """Read the annotations into their images."""
        known: set[Any] = set()
        rows: dict[Any, list[tuple[str, list[float], bool, float]]] = {}
        for index, entry in enumerate(entries):
            known.add(self.identify("annotations", index, entry, known, "image_id", "category_id", "bbox"))
            for key, there in (("image_id", images), ("category_id", categories)):
                value = entry[key]
                if not isinstance(value, (int, str)) or value not in there:
                    kind = key.removesuffix("_id")
                    raise self.refuse(
                        "annotations", index, f"{key} {quote(value, 60)} is the id of no {kind} of the file"
                    )
            box = entry["bbox"]
            if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
                raise self.refuse(
                    "annotations", index, f"expected left, top, width and height as bbox, not {quote(box, 60)}"
                )
            area = entry.get("area")
            area = float(area) if is_number(area) else float(box[2]) * float(box[3])
            row = categories[entry["category_id"]], [float(x) for x in box], bool(entry.get("iscrowd")), area
            rows.setdefault(entry["image_id"], []).append(row)
        for identity, found in rows.items():
            image = images[identity]
            image.names = [name for name, *_ in found]
            image.boxes = np.array([box for _, box, *_ in found])
            image.is_ignored = np.array([is_crowd for *_, is_crowd, _ in found])
            image.areas = np.array([area for *_, area in found])


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of a size that pixels may have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
