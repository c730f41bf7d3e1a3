"""A data set whose labels are what a model finds, to see by validation whether its exports find the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import yaml

from ultralytics import YOLO


def write_predicted_labels(weights: Path, images: Path, root: Path, imgsz: int, count: int) -> Path:
    """Write a data set of some images, labelled with the most certain detections of a model; give the path of its YAML.

    Args:
        weights: The model's file.
        images: A folder of images.
        root: An empty folder for the data set.
        imgsz: Side of the images in pixels.
        count: How many detections of all images become labels.
    """
    shutil.copytree(images, root / "images")
    (root / "labels").mkdir()
    model = YOLO(weights)
    results = model.predict(root / "images", imgsz=imgsz, conf=0.0, verbose=False)
    least = torch.cat([result.boxes.conf for result in results]).sort(descending=True).values[count - 1]
    for result in results:
        boxes = result.boxes[result.boxes.conf >= least]
        rows = (" ".join([str(int(c)), *(f"{x:.9f}" for x in box.tolist())]) for c, box in zip(boxes.cls, boxes.xywhn))
        (root / "labels" / f"{Path(result.path).stem}.txt").write_text("\n".join(rows), encoding="utf-8")
    file = root / "predicted.yaml"
    data = {"path": str(root), "train": "images", "val": "images", "names": model.names}
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file
