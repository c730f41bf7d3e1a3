"""Write and evaluate detections in the terms of the annotations that a data set was read from.

COCO's evaluation takes the annotations as they are: a detection in a crowd region, or of a difficult object, is neither
right nor wrong, and areas are those that the annotations state.
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ultralytics.fork.data.annotated_images import AnnotatedImage, Annotations

SIZES = "small", "medium", "large"


def list_annotations(validator: Any) -> list[Annotations]:
    """List what a validator's data set was read from; empty for one of images and labels."""
    return getattr(validator.dataloader.dataset, "annotations", [])


def name_images(validator: Any, before: int, files: list[str], preds: list[Any]) -> None:
    """Give detections that upstream has just noted the ids of the annotations.

    Args:
        validator: Upstream's validator.
        before: How many detections it had noted before.
        files: The images of the batch.
        preds: What was found in each of them.
    """
    sources = list_annotations(validator)
    new = validator.jdict[before:]
    if not sources or not new:
        return
    images = {image.file: image for found in sources for image in found.images}
    categories = {name: identity for found in sources for name, identity in found.categories.items()}
    names = validator.dataloader.dataset.data["names"]
    rows = iter(new)
    for file, pred in zip(files, preds):
        count = len(pred["cls"] if isinstance(pred, dict) else pred)
        for row in itertools.islice(rows, count):
            name = names[validator.class_map.index(row["category_id"])]
            row["image_id"], row["file_name"] = images[file].identity, Path(file).name
            row["category_id"] = categories.get(name, name)


def evaluate(validator: Any, stats: dict[str, Any]) -> dict[str, Any]:
    """Evaluate detections by COCO's rules, print its table, and add the AP of each size to upstream's figures.

    Args:
        validator: Upstream's validator, with its detections as `jdict`.
        stats: Upstream's figures.
    """
    from ultralytics.utils import LOGGER

    sources, files = list_annotations(validator), set(validator.dataloader.dataset.im_files)
    images = [image for found in sources for image in found.images if image.file in files]
    categories = [identity for found in sources for identity in found.categories.values()]
    LOGGER.info(f"\nCOCO's evaluation on {', '.join(str(found.source) for found in sources)}")
    if not importlib.util.find_spec("faster_coco_eval"):
        LOGGER.warning("It needs faster-coco-eval: python -m pip install faster-coco-eval; predictions.json is written")
        return stats
    found = score(images, sources, categories, validator.jdict, LOGGER.info)
    for size in SIZES:
        stats[f"metrics/mAP_{size}(B)"] = found[f"AP_{size}"]
    return stats


def score(
    images: list[AnnotatedImage], sources: list[Annotations], categories: list[Any], detections: list[dict], show: Any
) -> dict[str, float]:
    """Compute COCO's figures of detections.

    Args:
        images: The images.
        sources: The annotations.
        categories: The ids of all categories.
        detections: With `image_id`, `category_id`, `bbox` and `score`.
        show: Takes each line of COCO's table.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    places = {image.identity: place for place, image in enumerate(images)}  # ids may be text
    numbers = {identity: number for number, identity in enumerate(dict.fromkeys(categories), 1)}
    identities = {name: identity for found in sources for name, identity in found.categories.items()}
    truth = [
        {
            "image_id": places[image.identity],
            "category_id": numbers[identities[name]],
            "bbox": [float(x) for x in box],
            "area": float(area),
            "iscrowd": int(is_ignored),
        }
        for image in images
        for name, box, area, is_ignored in zip(image.names, image.boxes, image.areas, image.is_ignored)
    ]
    coco = COCO(
        {
            "images": [{"id": place} for place in range(len(images))],
            "annotations": [{**row, "id": index} for index, row in enumerate(truth, 1)],
            "categories": [{"id": number} for number in numbers.values()],
        }
    )
    rows = [
        {**row, "image_id": places[row["image_id"]], "category_id": numbers[row["category_id"]]}
        for row in detections
        if row["image_id"] in places and row["category_id"] in numbers
    ]
    nothing = {"image_id": 0, "category_id": next(iter(numbers.values())), "bbox": [0, 0, 1, 1], "score": 0.0}
    result = COCOeval_faster(coco, coco.loadRes(rows or [nothing]), iouType="bbox", print_function=show)
    result.evaluate()
    result.accumulate()
    result.summarize()
    return {key: float(np.float64(value)) for key, value in result.stats_as_dict.items()}
