"""Write and evaluate detections in the terms of the annotations that a data set was read from.

COCO's evaluation takes the annotations as they are: a detection in a crowd region, or of a difficult object, is neither
right nor wrong, and areas are those that the annotations state.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.data.annotated_images import AnnotatedImage, Annotations
from ultralytics.utils import LOGGER

SIZES = "small", "medium", "large"


def list_annotations(validator: Any) -> list[Annotations]:
    """List what a validator's data set was read from; empty for one of images and labels."""
    return getattr(validator.dataloader.dataset, "annotations", [])


def name_images(validator: Any, before: int, batch: dict[str, Any], preds: list[Any]) -> None:
    """Give detections that upstream has just noted the ids of the annotations, and boxes in the size that these state.

    Args:
        validator: Upstream's validator.
        before: How many detections it had noted before.
        batch: Upstream's, with `im_file` and `ori_shape`.
        preds: What was found in each of its images.
    """
    sources = list_annotations(validator)
    new = validator.jdict[before:]
    if not sources or not new:
        return
    images = {image.file: image for found in sources for image in found.images}
    rows = iter(new)
    for file, (height, width), pred in zip(batch["im_file"], batch["ori_shape"], preds):
        image = images[file]
        stated = image.size or (width, height)
        factors = np.array([stated[0] / width, stated[1] / height] * 2)
        for row in itertools.islice(rows, len(pred["cls"] if isinstance(pred, dict) else pred)):
            row["class"] = name_class(validator, row["category_id"])
            row["image_id"], row["file_name"], row["file"] = image.identity, Path(file).name, file
            row["bbox"] = [round(float(x), 3) for x in np.array(row["bbox"]) * factors]


def name_class(validator: Any, number: int) -> str:
    """Give the name of a class that upstream has noted by the number in its map."""
    index = validator.class_map.index(number)
    names = validator.dataloader.dataset.data["names"]
    return str(names[index] if index in names else validator.names[index])


def write_detections(validator: Any) -> None:
    """Write `predictions.json` with the ids of the annotations, in place of what upstream has written."""
    sources = list_annotations(validator)
    categories = {name: identity for found in sources for name, identity in found.categories.items()}
    ids = [image.identity for found in sources for image in found.images]
    is_unique = len(ids) == len(set(ids))
    rows = [
        {
            "image_id": row["image_id"] if is_unique else row["file"],
            "file_name": row["file_name"],
            "category_id": categories.get(row["class"], row["class"]),
            "bbox": row["bbox"],
            "score": row["score"],
        }
        for row in validator.jdict
    ]
    if not is_unique:
        LOGGER.warning("Several images have the same id: predictions.json names them by their files")
    write_atomically(Path(validator.save_dir, "predictions.json"), json.dumps(rows).encode())


def evaluate(validator: Any, stats: dict[str, Any]) -> dict[str, Any]:
    """Evaluate detections by COCO's rules, print its table, and add the AP of each size to upstream's figures.

    Args:
        validator: Upstream's validator, with its detections as `jdict`.
        stats: Upstream's figures.
    """
    write_detections(validator)
    sources, dataset = list_annotations(validator), validator.dataloader.dataset
    LOGGER.info(f"\nCOCO's evaluation on {', '.join(str(found.source) for found in sources)}")
    if not importlib.util.find_spec("faster_coco_eval"):
        LOGGER.warning("It needs faster-coco-eval: python -m pip install faster-coco-eval; predictions.json is written")
        return stats
    files, names = set(dataset.im_files), dataset.data["names"]
    images = [image for found in sources for image in found.images if image.file in files]
    chosen = validator.args.classes
    known = [
        names[i] for i in sorted(names) if chosen is None or i in ([chosen] if isinstance(chosen, int) else chosen)
    ]
    found = score(images, known, validator.jdict, LOGGER.info, is_single=validator.args.single_cls)
    for size in SIZES:
        stats[f"metrics/mAP_{size}(B)"] = found[f"AP_{size}"]
    return stats


def score(
    images: list[AnnotatedImage], names: list[str], detections: list[dict], show: Any, is_single: bool = False
) -> dict[str, float]:
    """Compute COCO's figures of detections.

    Args:
        images: The images.
        names: Of the classes that count.
        detections: With `file`, `class`, `bbox` and `score`.
        show: Takes each line of COCO's table.
        is_single: Whether all classes are one.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    places = {image.file: place for place, image in enumerate(images)}  # ids may be text, or those of two files' images
    numbers = dict.fromkeys([name for image in images for name in image.names], 1) if is_single else {}
    numbers |= {name: 1 if is_single else number for number, name in enumerate(names, 1)}
    truth = [
        {
            "image_id": places[image.file],
            "category_id": numbers[name],
            "bbox": [float(x) for x in box],
            "area": float(area),
            "iscrowd": int(is_ignored),
        }
        for image in images
        for name, box, area, is_ignored in zip(image.names, image.boxes, image.areas, image.is_ignored)
        if name in numbers
    ]
    coco = COCO(
        {
            "images": [{"id": place} for place in range(len(images))],
            "annotations": [{**row, "id": index} for index, row in enumerate(truth, 1)],
            "categories": [{"id": number} for number in sorted(set(numbers.values()))],
        }
    )
    rows = [
        {
            "image_id": places[row["file"]],
            "category_id": 1 if is_single else numbers[row["class"]],
            "bbox": row["bbox"],
            "score": row["score"],
        }
        for row in detections
        if row["file"] in places and (is_single or row["class"] in numbers)
    ]
    nothing = {"image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.0}
    result = COCOeval_faster(coco, coco.loadRes(rows or [nothing]), iouType="bbox", print_function=show)
    result.evaluate()
    result.accumulate()
    result.summarize()
    return {key: float(np.float64(value)) for key, value in result.stats_as_dict.items()}
