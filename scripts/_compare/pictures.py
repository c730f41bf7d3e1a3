"""Draw the same validation images with the true objects and with each model's detections, and heat maps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from _compare.errors import CONFIDENCE, KINDS, Errors
from _compare.study_folder import FOUND, Run
from _compare.validation import Validation
from _explain.layer_cam import layer_cam
from ultralytics.engine.results import Results
from ultralytics.utils.plotting import Annotator

SIDE = 420  # pixels of a picture's longer side
DRAWN = 8  # wrong detections of an image, the surest
RED, BLUE = (48, 59, 213), (177, 114, 0)  # BGR


def choose_images(found: Validation, count: int) -> list[int]:
    """Choose images evenly among those that have objects."""
    full = np.unique(found.target_image)
    return [int(i) for i in full[np.linspace(0, len(full) - 1, min(count, len(full))).round().astype(int)]]


def read_image(found: Validation, index: int, root: Path) -> np.ndarray:
    """Read an image, H x W x 3 in BGR.

    Raises:
        FileNotFoundError: If the file has been removed.
    """
    file = root / str(found.images[index])
    image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"{file} is not an image that can be read")
    return image


def draw_truth(found: Validation, index: int, image: np.ndarray) -> bytes:
    """Draw the true objects of an image, as JPEG."""
    mine = found.target_image == index
    return draw_boxes(image, found, found.target_box[mine], np.ones(mine.sum()), found.target_cls[mine], conf=False)


def draw_detections(run: Run, index: int, image: np.ndarray) -> tuple[bytes, str]:
    """Draw the detections of a run's model, as JPEG, and count the correct ones at IoU 0.5."""
    found = Validation.load(run.folder / FOUND)
    mine = (found.image == index) & (found.conf >= CONFIDENCE)
    right, objects = int(found.tp[mine, 0].sum()), int((found.target_image == index).sum())
    said = f"{right} of {objects} objects found, {int(mine.sum()) - right} boxes wrong or double"
    return draw_boxes(image, found, found.box[mine], found.conf[mine], found.cls[mine]), said


def draw_errors(found: Validation, errors: Errors, index: int, image: np.ndarray) -> tuple[bytes, str]:
    """Draw what is wrong in an image, as JPEG: wrong detections in red, missed objects in blue; and count both."""
    scale = image_scale(image)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    annotator = Annotator(np.ascontiguousarray(image), line_width=2, font_size=9)
    missed = [place for place in errors.missed if found.target_image[place] == index]
    for place in missed:
        name = found.names[found.target_cls[place]]
        annotator.box_label((found.target_box[place] * scale).tolist(), f"{name} missed", BLUE)
    wrong = [(p, kind) for p, kind in zip(errors.detections, errors.kinds) if found.image[p] == index]
    for place, kind in wrong[:DRAWN]:
        text = f"{found.names[found.cls[place]]} {found.conf[place]:.2f}, {KINDS[kind]}"
        annotator.box_label((found.box[place] * scale).tolist(), text, RED)
    return encode_jpeg(annotator.result()), f"{len(wrong)} wrong detections, {len(missed)} objects missed"


def draw_heat_map(run: Run, image: np.ndarray) -> bytes:
    """Draw LayerCAM of the decoder's inputs, all levels together, over an image, as JPEG.

    Raises:
        ValueError: If the model is not an RT-DETR.
    """
    found = layer_cam(run.best, image, imgsz=run.outcome["imgsz"], conf=CONFIDENCE).together
    colours = cv2.applyColorMap((255 * found).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return encode_jpeg(
        cv2.resize(cv2.addWeighted(colours, 0.6, image, 0.4, 0), None, fx=(scale := image_scale(image)), fy=scale)
    )


def image_scale(image: np.ndarray) -> float:
    """Return the factor that resizes an image to `SIDE`."""
    return SIDE / max(image.shape[:2])


def draw_boxes(
    image: np.ndarray, found: Validation, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, conf: bool = True
) -> bytes:
    """Draw boxes on an image, which is resized to `SIDE` first so that labels can be read."""
    scale = image_scale(image)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    rows = np.concatenate([boxes * scale, scores[:, None], classes[:, None]], 1)
    names = dict(enumerate(map(str, found.names)))
    result = Results(image, path="", names=names, boxes=torch.as_tensor(rows, dtype=torch.float32))
    return encode_jpeg(result.plot(line_width=2, font_size=9, conf=conf))


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode an image, H x W x 3 in BGR, as JPEG."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
