"""Checkpoints, data sets and films that stand for those which upstream's tests would download."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from _upstream.tests import assets
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data import utils as data_utils
from ultralytics.data.build import build_yolo_dataset
from ultralytics.utils import ASSETS


@pytest.mark.parametrize("name, size", [("yolo26n", 160), ("yolo11n-grayscale", 320), ("yoloe-26n-seg", 160)])
def test_a_random_checkpoint_sees_something(tmp_path, name, size):
    """It loads as upstream's do, and its output depends on its input."""
    torch.manual_seed(0)
    assets.save_checkpoint(assets.make_model(name), tmp_path / f"{name}.pt")
    model = YOLO(tmp_path / f"{name}.pt")
    *_, data, task, _channels = assets.CHECKPOINTS[name]
    assert model.task == task and model.ckpt["train_args"]["data"] == f"{data}.yaml" and model.names[0] == "person"
    assert next(model.model.parameters()).dtype == torch.float32  # loaded, from half precision
    found = [model(ASSETS / picture, imgsz=size, verbose=False)[0].boxes for picture in ("bus.jpg", "zidane.jpg")]
    assert all(0 < len(boxes) < 300 for boxes in found) and not torch.equal(found[0].conf[:1], found[1].conf[:1])


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_the_text_encoder_gives_unit_vectors(tmp_path):
    assets.make_text_encoder(tmp_path / "encoder.ts")
    vectors = torch.jit.load(tmp_path / "encoder.ts")(torch.randint(49408, (3, 77)))
    assert vectors.shape == (3, 512) and torch.allclose(vectors.norm(dim=1), torch.ones(3))


def test_drawn_data_sets(tmp_path, monkeypatch):
    """Upstream finds each by its own YAML, and reads every picture, label and map of it without a complaint."""
    assets.make_datasets(tmp_path)
    monkeypatch.setattr(data_utils, "DATASETS_DIR", tmp_path)
    for name, task in (("coco8", "detect"), ("coco8-seg", "segment"), ("coco8-pose", "pose"), ("dota8", "obb")):
        dataset = read(name, task)
        assert len(dataset) == 4 and all(len(label["cls"]) == 3 for label in dataset.labels)
    assert read("coco128-seg", "segment")[0]["masks"].any()
    assert read("coco8-multispectral", "detect")[0]["img"].shape[0] == 10
    assert set(np.unique(read("cityscapes8", "semantic").load_mask(0))) <= {0, 2, 11, 13}
    depth = data_utils.load_depth(tmp_path / "depth8-png" / "depth" / "val" / "0.png")
    assert set(np.unique(depth)) <= {1.0, 2.0, 3.0, 4.0}
    assert data_utils.check_cls_dataset("imagenet10")["nc"] == 10


def read(name: str, task: str):
    """Give a data set's training pictures as upstream loads them."""
    data = data_utils.check_det_dataset(f"{name}.yaml", autodownload=False)
    args = get_cfg(overrides={"task": task, "imgsz": 64})
    return build_yolo_dataset(args, data["train"], batch=1, data=data)


def test_films_can_be_read(tmp_path):
    assets.make_film(tmp_path / "film.mp4", (64, 48))
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    frames = [film.read()[1] for _ in range(assets.FRAMES)]
    assert all(frame.shape == (48, 64, 3) for frame in frames) and not film.read()[0]
