"""Validate a model with upstream's own validator, and record its detections in each image."""

from __future__ import annotations

import contextlib
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ultralytics import YOLO
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.errors import Refused
from ultralytics.utils import ops

SIZES = {"small": 0, "medium": 32**2, "large": 96**2}  # least area in pixels of the original image, as COCO's
BOX = 0.05  # pixels by which a label may differ after scaling


@dataclass
class Validation:
    """A model's detections in the images of a split, and the true objects.

    Boxes are x1, y1, x2, y2 in pixels of the original image; `image` and `target_image` index `images`.
    """

    images: np.ndarray  # (images,) files, in the data set's folder or absolute
    shapes: np.ndarray  # (images, 2) height and width
    names: np.ndarray  # (classes,) of the data set
    image: np.ndarray  # (detections,)
    tp: np.ndarray  # (detections, 10) at IoU 0.5 to 0.95
    conf: np.ndarray  # (detections,)
    cls: np.ndarray  # (detections,)
    box: np.ndarray  # (detections, 4)
    target_image: np.ndarray  # (objects,)
    target_cls: np.ndarray  # (objects,)
    target_box: np.ndarray  # (objects, 4)

    def save(self, file: Path) -> None:
        """Write all arrays to an .npz file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(self))
        write_atomically(file, buffer.getbuffer())

    @classmethod
    def load(cls, file: Path) -> Validation:
        """Read the arrays that `save` wrote."""
        with np.load(file, allow_pickle=False) as data:
            return cls(**{field.name: data[field.name] for field in fields(cls)})

    def same_objects(self, other: Validation) -> bool:
        """Whether both have the same images with the same objects.

        Boxes may differ a little, as each model scales them to its input's size and back.
        """
        keys = ("images", "shapes", "names", "target_image", "target_cls")
        exact = all(np.array_equal(getattr(self, key), getattr(other, key)) for key in keys)
        return exact and np.allclose(self.target_box, other.target_box, rtol=0, atol=BOX)


def recording_validator(base: type) -> type:
    """Make a validator class that records the detections of each image in `recorded`."""

    class Recorder(base):
        recorded: list[dict[str, np.ndarray]]

        def init_metrics(self, model: Any) -> None:
            super().init_metrics(model)
            self.recorded = []

        def update_metrics(self, preds: list[dict], batch: dict) -> None:
            super().update_metrics(preds, batch)
            found = self.metrics.stats["tp"][-len(preds) :]
            for i, (pred, tp) in enumerate(zip(preds, found)):
                truth = self._prepare_batch(i, batch)
                scaled = self.scale_preds(self._prepare_pred(pred), truth)
                boxes = ops.scale_boxes(
                    truth["imgsz"], truth["bboxes"].clone(), truth["ori_shape"], ratio_pad=truth["ratio_pad"]
                )
                self.recorded.append(
                    {
                        "images": truth["im_file"],
                        "shapes": truth["ori_shape"],
                        "tp": tp,
                        "conf": scaled["conf"].cpu().numpy(),
                        "cls": scaled["cls"].cpu().numpy().astype(int),
                        "box": scaled["bboxes"].cpu().numpy(),
                        "target_cls": truth["cls"].cpu().numpy().astype(int),
                        "target_box": boxes.cpu().numpy(),
                    }
                )

    return Recorder


def gather_records(recorded: list[dict], names: dict[int, str], root: Path) -> Validation:
    """Join the records of the images, sorted by file name."""
    recorded = sorted(recorded, key=lambda found: found["images"])

    def joined(key: str, *shape: int) -> np.ndarray:
        empty = np.zeros((0, *shape))
        return np.concatenate([empty, *(np.asarray(found[key]).reshape(-1, *shape) for found in recorded)])

    def owners(key: str) -> np.ndarray:
        return np.repeat(np.arange(len(recorded)), [len(found[key]) for found in recorded])

    return Validation(
        images=np.array([relative_path(Path(found["images"]), root) for found in recorded], dtype=str),
        shapes=np.array([found["shapes"][:2] for found in recorded], dtype=int).reshape(-1, 2),
        names=np.array([names[i] for i in sorted(names)], dtype=str),
        image=owners("conf"),
        tp=joined("tp", 10).astype(bool),
        conf=joined("conf").astype(np.float32),
        cls=joined("cls").astype(int),
        box=joined("box", 4).astype(np.float32),
        target_image=owners("target_cls"),
        target_cls=joined("target_cls").astype(int),
        target_box=joined("target_box", 4).astype(np.float32),
    )


def relative_path(file: Path, root: Path) -> str:
    """Return a file's path relative to a folder, or its full path if it is elsewhere."""
    try:
        return file.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return str(file)


def validate_checkpoint(weights: Path, folder: Path, **arguments: Any) -> tuple[Validation, dict]:
    """Validate a checkpoint as `yolo val` does.

    Args:
        weights: The checkpoint.
        folder: Where upstream puts what it writes.
        **arguments: Of `yolo val`.

    Returns:
        What was found in the images, and the figures: mAP50 and mAP50-95 as upstream reports them, COCO's AP, and that
        of small (below 32 x 32 pixels of the original image), medium and large (from 96 x 96) objects or None where
        there are none, and of each class that has objects its AP.
    """
    model = YOLO(weights)
    validator = recording_validator(model._smart_load("validator"))
    kept = []

    class Keeper(validator):
        def finalize_metrics(self) -> None:
            super().finalize_metrics()
            names = {0: "item"} if self.args.single_cls else dict(self.data["names"])  # the name in upstream's trainer
            if dict(self.names) != names:
                raise Refused(f"{weights} has the classes {self.names}, and the data set {names}")
            kept.append(gather_records(self.recorded, names, Path(self.data["path"])))

    where = dict(project=str(folder.parent.resolve()), name=folder.name, exist_ok=True)
    box = model.val(validator=Keeper, plots=False, **where, **arguments).box
    found = kept[0]
    classes = {str(found.names[i]): float(ap) for i, ap in zip(box.ap_class_index, box.ap)}
    return found, {"mAP50": float(box.map50), "mAP50-95": float(box.map), **coco_ap(found), "classes": classes}


def coco_ap(found: Validation) -> dict[str, float | None]:
    """Compute COCO's AP, of all and of small, medium and large objects, with at most 100 detections an image and class.

    Upstream's validator does this with `save_json=True`, but only warns if it fails, and then reports 0.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    def box(corners: np.ndarray) -> list[float]:
        x1, y1, x2, y2 = map(float, corners)
        return [x1, y1, x2 - x1, y2 - y1]

    truth = [
        {"id": i + 1, "image_id": int(image), "category_id": int(c), "bbox": box(b), "area": box(b)[2] * box(b)[3]}
        for i, (image, c, b) in enumerate(zip(found.target_image, found.target_cls, found.target_box))
    ]
    detections = [
        {"image_id": int(image), "category_id": int(c), "bbox": box(b), "score": float(score)}
        for image, c, b, score in zip(found.image, found.cls, found.box, found.conf)
    ]
    if not truth or not detections:
        areas = np.array([row["area"] for row in truth])
        ends = [*list(SIZES.values())[1:], np.inf]
        there = [((areas >= least) & (areas < end)).any() for least, end in zip(SIZES.values(), ends)]
        sizes = {f"AP {size}": 0.0 if found else None for size, found in zip(SIZES, there)}
        return {"AP COCO": 0.0 if truth else None, **sizes}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(
            {
                "images": [{"id": i} for i in range(len(found.images))],
                "annotations": [{**row, "iscrowd": 0} for row in truth],
                "categories": [{"id": i} for i in range(len(found.names))],
            }
        )
        result = COCOeval_faster(coco, coco.loadRes(detections), iouType="bbox", print_function=lambda *_: None)
        result.evaluate()
        result.accumulate()
        result.summarize()
    names = {"AP COCO": "AP_all", **{f"AP {size}": f"AP_{size}" for size in SIZES}}
    values = {name: float(result.stats_as_dict[key]) for name, key in names.items()}
    return {name: value if value >= 0 else None for name, value in values.items()}  # -1: no such objects
