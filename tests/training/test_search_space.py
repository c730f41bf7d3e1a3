"""`tune` searches over what acts on an RT-DETR, and over nothing else."""

import pytest

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import get_cfg
from ultralytics.engine.tuner import Tuner
from ultralytics.fork.errors import Refused
from ultralytics.fork.training.search_space import list_dead_arguments


@pytest.fixture
def spaces(monkeypatch):
    """The spaces of the tuners that are started; nothing is trained."""
    found = []
    monkeypatch.setattr(Tuner, "__call__", lambda self, **_: found.append(self.space))
    return found


def tune(model, tmp_path, **given):
    model.tune(data="shapes.yaml", iterations=1, project=str(tmp_path), **given)


def test_the_space_of_rtdetr(spaces, tmp_path):
    tune(RTDETR("rtdetr-tiny.yaml"), tmp_path)
    tune(RTDETR("rtdetr-tiny.yaml"), tmp_path, loss="official", iou_crop=0.8)
    tune(YOLO("yolo11n.yaml"), tmp_path)
    plain, official, other = spaces
    assert {"lr0", "weight_decay", "box", "cls", "mosaic", "scale", "hsv_h"} <= plain.keys()
    assert not {"dfl", "cls_pw", "copy_paste", "warmup_momentum"} & plain.keys()
    assert {"lr0", "box", "cls", "cls_pw"} <= official.keys()
    assert not {"dfl", "scale", "hsv_h", "mosaic", "close_mosaic"} & official.keys()
    assert {"dfl", "copy_paste"} <= other.keys()


def test_a_space_with_dead_arguments_is_refused(spaces, tmp_path):
    model = RTDETR("rtdetr-tiny.yaml")
    with pytest.raises(Refused, match="space: dfl would do nothing in this training of an RT-DETR"):
        tune(model, tmp_path, space={"lr0": (1e-5, 1e-2), "dfl": (1.0, 2.0)})
    with pytest.raises(Refused, match="use_ray=True needs space= with RT-DETR"):
        tune(model, tmp_path, use_ray=True)
    with pytest.raises(Refused, match="space: dfl would do nothing"):
        tune(model, tmp_path, use_ray=True, space={"dfl": (1.0, 2.0)})
    assert not spaces


def test_what_is_dead_depends_on_the_optimiser():
    assert "warmup_momentum" in list_dead_arguments(get_cfg(overrides={"optimizer": "AdamW"}))
    assert {"lr0", "momentum"} <= list_dead_arguments(get_cfg())  # which the automatic choice replaces
    assert "warmup_epochs" in list_dead_arguments(get_cfg(overrides={"warmup_steps": 9}))
    assert "warmup_momentum" not in list_dead_arguments(get_cfg(overrides={"optimizer": "SGD"}))


@pytest.mark.nightly
def test_one_iteration(shapes, tmp_path):
    """A real one, of one short training."""
    sizes = dict(imgsz=64, batch=4, workers=0, device="cpu", plots=False, val=True)
    RTDETR("rtdetr-tiny.yaml").tune(data=shapes, epochs=1, iterations=1, project=str(tmp_path), name="t", **sizes)
    assert list(tmp_path.rglob("best_hyperparameters.yaml"))
