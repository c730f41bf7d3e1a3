"""Write a page that shows the worst images of each finding, with their labels, in one file that needs no network."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from _data.findings import Finding, count_classes
from _data.splits import Picture, Split
from ultralytics.utils.plotting import Annotator, colors

TEMPLATE = Path(__file__).with_name("page.html.jinja")
SHOWN = 6  # images of a finding
SIDE = 360  # pixels of an image's longer side on the page


def make_page(data: str, names: dict[int, str], rows: list[dict], splits: list[Split], findings: list[Finding]) -> str:
    """Make the page.

    Args:
        data: The data set's name.
        names: Of its classes.
        rows: What is in each split.
        splits: The splits.
        findings: What was found.
    """
    pictures = {picture.file: picture for split in splits for picture in split.pictures}
    shown = [
        {"finding": finding, "images": [draw(pictures[file], names) for file in finding.files[:SHOWN]]}
        for finding in findings
    ]
    counts = [count_classes(split, len(names)).tolist() for split in splits]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        data=data, names=names, rows=rows, splits=splits, counts=counts, shown=shown
    )


def draw(picture: Picture, names: dict[int, str]) -> dict[str, Any]:
    """Draw an image with its labels as a JPEG in a URL; without a picture, if it cannot be read."""
    caption = f"{Path(picture.file).name}: {picture.problem or f'{len(picture.boxes)} objects'}"
    data = np.fromfile(picture.file, np.uint8) if Path(picture.file).is_file() else np.zeros(0, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        return {"caption": caption, "source": None}
    scale = SIDE / max(image.shape[:2])
    sides = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    height, width = image.shape[:2]
    annotator = Annotator(np.ascontiguousarray(image), line_width=1, font_size=9)
    for cls, (x, y, w, h) in zip(picture.classes, picture.boxes * [width, height, width, height]):
        annotator.box_label([x - w / 2, y - h / 2, x + w / 2, y + h / 2], names[int(cls)], colors(int(cls), True))
    jpeg = cv2.imencode(".jpg", annotator.result(), [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
    return {"caption": caption, "source": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}
