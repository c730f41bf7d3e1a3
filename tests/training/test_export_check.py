"""An export before the first epoch says what cannot be exported, and changes nothing of a training."""

import pytest
import torch
from short_runs import data, train, weights  # noqa: F401 - a fixture

from ultralytics.engine.exporter import Exporter
from ultralytics.fork.errors import Refused


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


def test_the_training_is_the_same(data, tmp_path):
    """To the bit; and no file is left of the export."""
    before = set(tmp_path.parent.rglob("*.torchscript"))
    for folder, settings in (("without", {}), ("with", {"export_check": "torchscript"})):
        train(tmp_path / folder, data, "rtdetr-tiny.yaml", epochs=1, **settings)
    one, other = (weights(tmp_path / folder / "run" / "weights" / "last.pt") for folder in ("without", "with"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert set(tmp_path.parent.rglob("*.torchscript")) == before
