"""Write small files of COCO JSON."""

import json
from pathlib import Path


def write_coco(file: Path, *images: tuple[str, tuple[int, int] | None, list], **more) -> None:
    """Write a file of images with names, sizes and boxes of one category."""
    entries, objects = [], []
    for name, size, boxes in images:
        sides = {"width": size[0], "height": size[1]} if size else {}
        entries.append({"id": len(entries), "file_name": name, **sides})
        for box in boxes:
            objects.append({"id": len(objects), "image_id": len(entries) - 1, "category_id": 4, "bbox": box})
    content = {"images": entries, "annotations": objects, "categories": [{"id": 4, "name": "x"}]}
    file.write_text(json.dumps({**content, **more}))
