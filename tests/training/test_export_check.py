"""An export before the first epoch says what cannot be exported, and changes nothing of a training."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from short_runs import data, train  # noqa: F401 - a fixture

from ultralytics.cfg import get_cfg
from ultralytics.engine.exporter import Exporter
from ultralytics.fork.errors import Refused
from ultralytics.fork.training import export_check
from ultralytics.nn.tasks import RTDETRDetectionModel


def test_a_model_that_cannot_be_exported_is_not_trained(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Exporter, "export_onnx", lambda *args, **kwargs: 1 / 0)
    begun = []
    with pytest.raises(
        Refused, match="export_check=onnx: ZeroDivisionError: division by zero. The training has not begun"
    ):
        train(tmp_path, data, export_check="onnx", callbacks=[("on_train_epoch_start", begun.append)])
    assert not begun and not (tmp_path / "run" / "weights" / "last.pt").exists()


def test_an_unknown_format(data, tmp_path):
    with pytest.raises(Refused, match="export_check=paper: ValueError: Invalid export format='paper'"):
        train(tmp_path, data, export_check="paper")


def test_nothing_of_the_training_changes(tmp_path, monkeypatch):
    """Neither the random generators nor the weights; and no file is left of the export."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(0)
    model = RTDETRDetectionModel("rtdetr-tiny.yaml", nc=3, verbose=False).train()
    weights = copy.deepcopy(model.state_dict())
    args = get_cfg(overrides={"imgsz": 64, "export_check": "torchscript", "task": "detect"})
    names = {0: "circle", 1: "square", 2: "triangle"}
    trainer = SimpleNamespace(args=args, resume=False, ema=SimpleNamespace(ema=model), data={"names": names})
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    export_check.try_exports(trainer)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2]) and model.training
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())
