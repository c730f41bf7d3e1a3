"""The crowd dataset: what is drawn, what is labelled, and that it is what its page says."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT

from ultralytics.utils import YAML

FOLDER = ROOT / "cfg_custom" / "datasets"
spec = importlib.util.spec_from_file_location("crowd", FOLDER / "crowd.py")
crowd = importlib.util.module_from_spec(spec)
spec.loader.exec_module(crowd)


@pytest.fixture(scope="module")
def images():
    return [crowd.draw(np.random.default_rng([7, i]), 256) for i in range(24)]


def overlaps(labels):
    """The IoU of each pair of boxes of one class."""
    for i, (kind, *a) in enumerate(labels):
        for other, *b in labels[i + 1 :]:
            if kind == other:
                width, height = (min(a[j + 2], b[j + 2]) - max(a[j], b[j]) for j in (0, 1))
                both = max(width, 0) * max(height, 0)
                areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
                yield both / (sum(areas) - both)


def test_the_names_are_those_of_the_data_file():
    data = YAML.load(FOLDER / "crowd.yaml")
    assert tuple(data["names"].values()) == crowd.NAMES and len(crowd.NAMES) == 10


def test_an_image_depends_only_on_its_seed(images):
    image, labels = crowd.draw(np.random.default_rng([7, 3]), 256)
    assert np.array_equal(image, images[3][0]) and labels == images[3][1]


def test_objects_are_many_small_and_of_all_classes(images):
    labels = [row for _, rows in images for row in rows]
    sides = np.array([(right - left, bottom - top) for _, left, top, right, bottom in labels])
    assert {kind for kind, *_ in labels} == set(range(10))
    assert 12 < len(labels) / len(images) < 40 and np.median(sides) < 24 and sides.max() <= 44
    assert all(0 <= row[1] < row[3] <= 256 and 0 <= row[2] < row[4] <= 256 for row in labels)


def test_objects_of_a_class_lie_almost_on_each_other(images):
    found = [iou for _, rows in images for iou in overlaps(rows)]
    assert sum(iou > 0.2 for iou in found) / len(images) > 1.5


def test_a_box_is_tight_around_its_object(monkeypatch):
    """One object on plain ground, without noise: what differs from the ground is the object."""
    monkeypatch.setattr(crowd, "OBJECTS", (1, 1))
    monkeypatch.setattr(crowd, "DISTRACTORS", (0, 0))
    plain = np.full((128, 128, 3), 10, np.float32), np.full((3, 3), 10.0)
    monkeypatch.setattr(crowd.shapes, "draw_ground", lambda rng, size: (plain[0].copy(), plain[1]))
    for seed in range(30):
        image, labels = crowd.draw(np.random.default_rng(seed), 128)
        kind, left, top, right, bottom = labels[0]
        mask = np.abs(image.astype(float) - 10).max(-1) > 60
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            assert np.abs(np.subtract(box, (left, top, right, bottom))).max() <= 2, (seed, crowd.NAMES[kind])


def test_a_hollow_object_has_a_hole():
    for kind, name in enumerate(crowd.NAMES):
        alpha = crowd.cover(kind, np.array([32.0, 32.0]), 40.0, 0.3, 64)
        assert (alpha[32, 32] < 0.1) == name.startswith("hollow") and alpha.max() > 0.99


def test_a_set_of_shapes_is_not_mixed_with_it(tmp_path):
    few = {"train": 1, "val": 1, "size": 64}
    crowd.generate(tmp_path, **few)
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 2
    with pytest.raises(ValueError, match="choose another root or remove it"):
        crowd.shapes.generate(tmp_path, **few)
