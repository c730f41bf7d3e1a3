"""Short trainings on ten drawn images, which the tests of this room share."""

import pytest
import torch
from conftest import ROOT, load_file

from ultralytics import RTDETR

EPOCHS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten images to learn from, and four to validate with."""
    root = tmp_path_factory.mktemp("data")
    load_file(ROOT / "cfg_custom" / "datasets" / "shapes.py").generate(root / "data", train=10, val=4, size=64)
    file = root / "shapes10.yaml"
    file.write_text(f"path: {root / 'data'}\ntrain: images/train\nval: images/val\nnames: [circle, square, triangle]\n")
    return file


class Crash(RuntimeError):
    """What stands for a power cut."""


def train(folder, data, model="rtdetr-tiny-FLA.yaml", stop=None, callbacks=(), **kwargs):
    """Train three epochs of four batches, the last of one image, a step each three batches; crash at (epoch, batch)."""
    model = RTDETR(model)
    seen = {"batch": 0}

    def count(trainer):
        if stop and (trainer.epoch, seen["batch"]) == stop:
            raise Crash
        seen["batch"] += 1

    model.add_callback("on_train_epoch_start", lambda trainer: seen.update(batch=0))
    model.add_callback("on_train_batch_start", count)
    for event, callback in callbacks:
        model.add_callback(event, callback)
    settings = dict(epochs=EPOCHS, imgsz=64, batch=3, nbs=9, close_mosaic=2, optimizer="AdamW", lr0=1e-3, plots=False)
    settings |= dict(warmup_epochs=1, project=folder, name="run", exist_ok=True, mixup=0.3)
    model.train(**({"data": data} | settings | kwargs))
    return model


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing interrupts: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, data)
    return folder / "run"


def weights(file):
    """Read the tensors of a checkpoint's model."""
    checkpoint = torch.load(file, weights_only=False)
    return (checkpoint.get("ema") or checkpoint["model"]).state_dict()


def columns(run):
    """Read results.csv without the times."""
    lines = (run / "results.csv").read_text().splitlines()
    return [[c for i, c in enumerate(line.split(",")) if i != 1] for line in lines]


def same(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
