"""COCO's evaluation on the annotations that a data set was read from: sizes, ids, classes and crowd regions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from coco_writer import write_coco
from PIL import Image

from ultralytics.fork.data import coco_evaluation
from ultralytics.fork.data.annotated_images import AnnotatedImage
from ultralytics.fork.data.coco_json import read_coco_json

SCORE = coco_evaluation.score


def evaluate(tmp_path, sources, detections, names=("x",), **args):
    """Evaluate detections (file, class, box, in pixels of the image) as a validation of 100 x 100 pixels does."""
    found = [read_coco_json(source, tmp_path) for source in sources]
    files = [image.file for one in found for image in one.images]
    data = {"names": dict(enumerate(names))}
    dataset = SimpleNamespace(annotations=found, im_files=files, data=data)
    validator = SimpleNamespace(
        dataloader=SimpleNamespace(dataset=dataset), class_map=[1, 2, 3], names={0: "x", 1: "y", 2: "z"}, jdict=[],
        save_dir=tmp_path, args=SimpleNamespace(**{"classes": None, "single_cls": False, **args}),
    )  # fmt: skip
    for file, cls, box in detections:
        validator.jdict.append({"image_id": 0, "category_id": cls + 1, "bbox": box, "score": 0.9})
        batch = {"im_file": [str(tmp_path / file)], "ori_shape": [(100, 100)]}
        coco_evaluation.name_images(validator, len(validator.jdict) - 1, batch, [[0]])
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_evaluation, "score", lambda *a, **k: kept.update(SCORE(*a, **k)) or kept)
        coco_evaluation.evaluate(validator, {})
    return kept["AP_50"], json.loads((tmp_path / "predictions.json").read_text())


def test_evaluation_in_the_size_that_is_stated(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (100, 100)).save(tmp_path / name)
    write_coco(tmp_path / "a.json", ("a.jpg", (200, 200), [[20, 40, 60, 80]]))
    ap, rows = evaluate(tmp_path, [tmp_path / "a.json"], [("a.jpg", 0, [10, 20, 30, 40])])
    assert ap == pytest.approx(1) and rows[0]["bbox"] == [20, 40, 60, 80] and rows[0]["category_id"] == 4


def test_evaluation_of_several_files_and_some_classes(tmp_path):
    """Two files count their images from 0; a class of the model that no file has; all classes as one."""
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (100, 100)).save(tmp_path / name)
    write_coco(tmp_path / "a.json", ("a.jpg", None, [[0, 0, 10, 10]]))
    write_coco(tmp_path / "b.json", ("b.jpg", None, [[50, 50, 10, 10]]), categories=[{"id": 4, "name": "y"}])
    sources = [tmp_path / "a.json", tmp_path / "b.json"]
    wrong = [("a.jpg", 0, [50, 50, 10, 10]), ("b.jpg", 1, [0, 0, 10, 10]), ("b.jpg", 2, [0, 0, 10, 10])]
    ap, rows = evaluate(tmp_path, sources, wrong, ["x", "y"])
    assert ap == 0 and rows[0]["image_id"] == str(tmp_path / "a.jpg") and rows[2]["category_id"] == "z"
    right = [("a.jpg", 0, [0, 0, 10, 10]), ("b.jpg", 0, [50, 50, 10, 10])]
    assert evaluate(tmp_path, sources, right, ["x", "y"])[0] == pytest.approx(0.5)  # y is never found
    assert evaluate(tmp_path, sources, right, ["x", "y"], classes=[0])[0] == pytest.approx(1)
    assert evaluate(tmp_path, sources, right, ["item"], single_cls=True)[0] == pytest.approx(1)


def test_crowd_regions_are_neither_right_nor_wrong():
    """A detection in a region of many is a false one where the region is not marked as that."""
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 60, 60]])
    detections = [
        {"file": "a.jpg", "class": "x", "bbox": [25, 25, 10, 10], "score": 0.9},
        {"file": "a.jpg", "class": "x", "bbox": [0, 0, 10, 10], "score": 0.8},
    ]

    def ap(is_crowd: bool) -> float:
        image = AnnotatedImage(
            "a.jpg", "a", None, ["x", "x"], boxes, np.array([False, is_crowd]), boxes[:, 2] * boxes[:, 3]
        )
        return coco_evaluation.score([image], ["x"], detections, lambda *_: None)["AP_50"]

    assert ap(True) == pytest.approx(1) and ap(False) < 0.3
