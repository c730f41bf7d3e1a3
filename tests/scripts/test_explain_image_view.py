"""A position of a map lies on the right pixels of the image, and detections are those of predict."""

import numpy as np
import pytest
import torch
from explained_models import blobs, models  # noqa: F401 - a fixture

from _explain import drawing, network
from _explain.detections import allowed_classes, strongest_detections
from _explain.image_view import Frame, load_view
from ultralytics.data.augment import LetterBox
from ultralytics.models.rtdetr.predict import RTDETRPredictor

LETTERBOXES = {"stretched": True, "padded": False}


@pytest.mark.parametrize("stretch", LETTERBOXES.values(), ids=LETTERBOXES)
@pytest.mark.parametrize("shape, size", [((60, 120), (96, 96)), ((300, 90), (64, 160)), ((50, 70), (160, 96))])
def test_an_activation_lands_where_it_belongs(shape, size, stretch):
    """Of an image that is not square, whether a predictor stretches or pads it."""
    frame = Frame(shape, LetterBox(size, scale_fill=stretch))
    assert frame.size == size
    grid = tuple(side // 8 for side in size)
    for x, y in [(3.5, 2.5), (shape[1] - 4.0, shape[0] - 3.0), (shape[1] / 3, shape[0] / 2)]:
        row, column = frame.position((x, y), grid)
        values = np.zeros(grid)
        values[row, column] = 1
        for smooth in (False, True):
            heat = frame.on_image(values, smooth)
            assert heat.shape == shape
            found = np.argwhere(heat == heat.max()).mean(axis=0)[::-1] + 0.5
            cell = 8 / frame.scale
            assert (np.abs(found - (x, y)) <= cell).all()
        (left, top), (right, bottom) = frame.corners(grid, [[column, row], [column + 1, row + 1]])
        assert left <= x <= right and top <= y <= bottom
        np.testing.assert_allclose(frame.to_image(frame.to_input((x, y))), (x, y))


@pytest.mark.parametrize("stretch", LETTERBOXES.values(), ids=LETTERBOXES)
def test_what_a_network_sees_is_shown_over_the_same_pixels(stretch, models, monkeypatch):
    """The input itself, laid over the image, is the image: nothing is shifted, and padding is cut away."""
    monkeypatch.setattr(RTDETRPredictor, "scale_fill", stretch)
    image = blobs(60, 120)
    view = load_view(image, network.open_model(models["rtdetr-tiny"], (96, 160)))
    assert view.x.shape == (1, 3, 96, 160)
    assert bool((view.x == 114 / 255).all(dim=1).any()) is not stretch
    shown = view.frame.on_image(view.x[0].mean(dim=0).numpy())
    assert np.abs(shown * 255 - image.mean(axis=2)).max() < 4


def test_detections_are_those_of_predict(models):
    """Boxes on an image that is not square, scores and classes."""
    model, image = models["rtdetr-tiny-FLA"], blobs(60, 120)
    result = model.predict(image, imgsz=96, conf=0.001, verbose=False)[0].boxes
    opened = network.open_model(model, 96)
    view = load_view(image, opened)
    with network.prepare_gradients(opened.net), torch.no_grad():
        found = strongest_detections(
            *network.run_detection(opened.net, view.x), view.frame, 0.001, allowed_classes(opened, None), 5
        )
    x1, y1, x2, y2 = result.xyxy[0].clamp(min=0).tolist()
    np.testing.assert_allclose(found.boxes[0], (x1, y1, min(x2, 120), min(y2, 60)), atol=0.05)
    assert found.scores[0] == pytest.approx(float(result.conf[0]), abs=1e-4)
    assert found.classes[0] == int(result.cls[0])


def test_numbers_of_detections_do_not_hide_each_other():
    """Of sixteen detections in one place, each has its own."""
    side, taken = drawing.TAG * 100, []
    for box in [(30.0, 20.0, 60, 50), (97.0, 90.0, 100, 100)]:
        points = [drawing.find_free_point(box, (100, 100), taken) for _ in range(16)]
        assert points[0] == pytest.approx([min(t, 100 - side) for t in box[:2]])
    assert len(set(taken)) == 32
    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) > side - 1e-9 for a in taken for b in taken if a != b)
