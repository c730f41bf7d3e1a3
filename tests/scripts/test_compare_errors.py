"""Errors, thresholds and calibration of a validation, by hand."""

import numpy as np
import pytest

from _compare import errors, figures, pictures
from _compare.validation import Validation


def made_up() -> Validation:
    """Two images: a cat that is found twice, a dog that is taken for a cat, a dog that is missed, a box on nothing."""
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [50, 50, 60, 60], [0, 6, 10, 16], [20, 20, 30, 30]],
        np.float32,
    )
    tp = np.zeros((6, 10), bool)
    tp[0] = True
    return Validation(
        images=np.array(["a.jpg", "b.jpg"]),
        shapes=np.full((2, 2), 64),
        names=np.array(["cat", "dog"]),
        image=np.array([0, 0, 0, 1, 0, 0]),
        tp=tp,
        conf=np.array([0.9, 0.8, 0.7, 0.95, 0.6, 0.1], np.float32),  # the last is below the threshold
        cls=np.array([0, 0, 0, 1, 0, 1]),
        box=boxes,
        target_image=np.array([0, 0, 1]),
        target_cls=np.array([0, 1, 1]),
        target_box=np.array([[0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 15, 15]], np.float32),
    )


def test_errors_by_hand():
    found = errors.find_errors(made_up())
    assert found.detections.tolist() == [3, 1, 2, 4]  # the surest first
    assert [errors.KINDS[kind] for kind in found.kinds] == ["on nothing", "duplicate", "confusion", "badly placed"]
    assert found.missed.tolist() == [1, 2] and found.confusions.tolist() == [[0, 0], [1, 0]]
    assert found.counts() == {"confusion": 1, "duplicate": 1, "badly placed": 1, "on nothing": 1, "missed": 2}


def test_thresholds_by_hand():
    """Of the cats, the first detection alone has precision and recall 1; no detection of a dog is right."""
    best = errors.best_thresholds(made_up())
    assert best == {"cat": (pytest.approx(0.9), 1.0)}


def test_calibration_by_hand():
    scores, right, counts, error = errors.calibrate(made_up())
    assert counts.tolist() == [1, 1, 1, 1, 2]
    assert scores == pytest.approx([0.1, 0.6, 0.7, 0.8, 0.925]) and right == pytest.approx([0, 0, 0, 0, 0.5])
    assert error == pytest.approx((0.6 + 0.7 + 0.8 + 2 * 0.425) / 5)


def test_nothing_is_found():
    found = made_up()
    empty = Validation(
        **{**vars(found), **{key: vars(found)[key][:0] for key in ("image", "tp", "conf", "cls", "box")}}
    )
    assert errors.find_errors(empty).counts()["missed"] == 3 and errors.best_thresholds(empty) == {}
    assert errors.calibrate(empty)[3] == 0


def test_pictures_of_errors():
    found = made_up()
    jpeg, said = pictures.draw_errors(found, errors.find_errors(found), 0, np.zeros((64, 64, 3), np.uint8))
    assert jpeg[:2] == b"\xff\xd8" and said == "3 wrong detections, 1 objects missed"
    svg = figures.plot_calibration({"a": errors.calibrate(found)[:2]})
    assert "precision at IoU 0.5" in svg
