"""Steps whose loss or gradient is not finite are skipped, and the layer is named."""

import math
from types import SimpleNamespace

import pytest
import torch
from short_runs import columns, data, train, weights  # noqa: F401 - fixtures

from ultralytics.fork.training import nonfinite_steps
from ultralytics.fork.training.resume import count_epochs
from ultralytics.fork.training.run_state import RunState


def test_the_mean_loss_is_that_of_the_steps_that_were_taken():
    self = SimpleNamespace(fork=RunState(reported_losses=9), tloss=None)
    seen = []
    for i, value in enumerate([1.0, math.nan, math.nan, 4.0, 4.0, 4.0]):
        self.loss_items = {"a": torch.tensor(value)}  # then as upstream, before the backward pass
        means = {key: (self.tloss[key] * i + v) / (i + 1) for key, v in self.loss_items.items()} if self.tloss else None
        self.tloss = means or self.loss_items
        nonfinite_steps.check_loss(self, self.loss_items["a"])
        seen.append(self.tloss["a"].item())
    assert seen == [1, 1, 1, 2.5, 3, 3.25]


class Poison:
    """Makes the output of a module NaN in given batches of the run."""

    def __init__(self, name, batches):
        self.name, self.batches, self.batch = name, batches, -1

    def start(self, trainer):
        self.batch += 1
        if self.batch == 0:
            trainer.model.get_submodule(self.name).register_forward_hook(self.spoil)

    def spoil(self, module, _, out):
        return out * float("nan") if module.training and self.batch in self.batches else None


@pytest.mark.parametrize("batches", [range(2, 3), range(5, 7)], ids=["once", "twice"])
def test_a_loss_that_is_not_finite_names_the_layer_and_spoils_nothing(data, tmp_path, monkeypatch, batches):
    said = []
    monkeypatch.setattr(nonfinite_steps.LOGGER, "error", said.append)
    poison = Poison("model.5.cv.proj", batches)
    model = train(tmp_path, data, callbacks=[("on_train_batch_start", poison.start)], nbs=3, epochs=2, workers=0)
    assert len(said) == len(batches)
    for line in said:
        assert "layer 5, HGBlock_FLA, in cv.proj (Linear)" in line and "The step is skipped" in line
    run = tmp_path / "run"
    assert all(torch.isfinite(t).all() for t in weights(run / "weights" / "best.pt").values())
    assert all(torch.isfinite(t).all() for t in weights(run / "weights" / "last.pt").values())
    rows = columns(run)
    assert len(rows) == 2 + 1 and model.trainer.best.exists()
    assert all(math.isfinite(float(v)) for row in rows[1:] for v in row)  # the mean is of the good steps


def test_a_run_that_stays_not_finite_ends_with_good_checkpoints(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(nonfinite_steps.LOGGER, "error", said.append)
    poison = Poison("model.7.ec", range(6, 10_000))
    with pytest.raises(RuntimeError, match="NaN persisted"):
        train(tmp_path, data, callbacks=[("on_train_batch_start", poison.start)], nbs=3, epochs=4, workers=0)
    assert 1 <= len(said) <= nonfinite_steps.MAX_REPORTS and all(
        "layer 7, HGBlock, in ec (Conv)" in line for line in said
    )
    for name in ("best.pt", "last.pt"):
        file = tmp_path / "run" / "weights" / name
        assert all(torch.isfinite(t).all() for t in weights(file).values())
    # The second epoch had two good batches, the third none
    assert count_epochs(torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)) == 2


def test_a_gradient_that_is_not_finite_is_left_out(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(nonfinite_steps.LOGGER, "error", said.append)

    def spoil(trainer):
        trainer.model.model[3].ec.conv.weight.register_hook(lambda g: g * float("nan") if trainer.epoch == 1 else g)

    train(tmp_path, data, callbacks=[("on_train_start", spoil)], nbs=3, epochs=2, workers=0)
    assert said and all("gradient of model.3.ec.conv.weight is not finite" in line for line in said)
    assert len(said) == nonfinite_steps.MAX_REPORTS
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run" / "weights" / "last.pt").values())


def test_steps_left_out_for_ever_end_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite_steps, "MAX_SKIPPED_STEPS", 3)

    def spoil(trainer):
        trainer.model.model[3].ec.conv.weight.register_hook(lambda g: g * float("nan"))

    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*last\.pt is the last good checkpoint"):
        train(tmp_path, data, callbacks=[("on_train_start", spoil)], nbs=3, workers=0)
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run" / "weights" / "best.pt").values())


def test_autocast_s_overflow_is_found_under_autocast(data, monkeypatch):
    """What overflows in half precision only is named by a forward pass in half precision."""

    from ultralytics.nn.tasks import RTDETRDetectionModel

    said = []
    monkeypatch.setattr(nonfinite_steps.LOGGER, "error", said.append)
    model = RTDETRDetectionModel("rtdetr-tiny.yaml", nc=3, verbose=False).train()
    model.nc = 3
    model.model[0].stem1.conv.weight.data.fill_(3e4)
    batch = {
        "img": torch.ones(2, 3, 64, 64),
        "cls": torch.zeros(1, 1),
        "bboxes": torch.full((1, 4), 0.5),
        "batch_idx": torch.zeros(1),
    }
    trainer = SimpleNamespace(model=model, amp=True, epoch=0, fork=RunState(batch=batch))
    trainer.device, trainer.args = torch.device("cpu"), SimpleNamespace(amp=True)
    nonfinite_steps.check_loss(trainer, torch.tensor(float("nan")))
    assert "layer 0, HGStem, in stem1.conv (Conv2d)" in said[0]
    assert trainer.fork.has_spoiled_statistics and not trainer.fork.finite_batches
