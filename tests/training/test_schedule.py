"""Learning rates by step and epoch, against the official formulas; what an epoch does to its images."""

import math
from types import SimpleNamespace

import pytest
import torch
from short_runs import EPOCHS, data, train  # noqa: F401 - a fixture

from ultralytics.fork.training import schedule
from ultralytics.fork.training.augmentation_epochs import EpochPlan, plan_epoch
from ultralytics.fork.training.batch_transforms import list_sizes, mix_batch

PLAIN, TAIL = EpochPlan(augments=False, mixes=False), EpochPlan(augments=False, mixes=False, resizes=False)


def test_flat_cosine_of_deim():
    """120 epochs of which three are plain: 1 to epoch 64, down to a half at 117."""
    factor = schedule.flat_cosine(120, 3, 0.5)
    assert [factor(e) for e in (0, 63, 64, 117, 119)] == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert factor(64 + 53 / 2) == pytest.approx(0.75)
    assert factor(80) == pytest.approx(0.5 + 0.25 * (1 + math.cos(math.pi * 16 / 53)))


@pytest.mark.parametrize("epochs, plain", [(1, 0), (1, 1), (4, 4), (8, 0), (9, 3)])
def test_short_runs_have_a_schedule(epochs, plain):
    factors = [schedule.flat_cosine(epochs, plain, 0.5)(e) for e in range(epochs)]
    assert all(0.5 <= f <= 1 for f in factors) and factors == sorted(factors, reverse=True)


def test_the_epochs_of_deim():
    args = SimpleNamespace(aug_policy="deim", no_aug_epochs=3)
    plans = [plan_epoch(args, e, 120) for e in range(120)]
    assert plans == [PLAIN] * 4 + [EpochPlan()] * 60 + [EpochPlan(mixes=False)] * 53 + [TAIL] * 3


def test_the_epochs_of_the_official_training():
    args = SimpleNamespace(aug_policy=None, no_aug_epochs=1)
    assert [plan_epoch(args, e, 72) for e in range(72)] == [EpochPlan(mixes=False)] * 71 + [TAIL]


def test_the_official_sizes():
    sizes = list_sizes(640, 0.25, 3, 32)
    assert sorted(sizes) == sorted([*range(480, 640, 32), 640, 640, 640, *range(672, 801, 32)])
    assert list_sizes(640, 0.0, 3, 32) == [640] * 3


def test_mixup_keeps_the_objects_of_both():
    images = torch.rand(3, 3, 4, 4)
    batch = {"img": images.clone(), "cls": torch.tensor([[0.0], [1.0]]), "bboxes": torch.rand(2, 4)}
    batch["batch_idx"] = torch.tensor([0.0, 2.0])
    mixed = mix_batch(dict(batch), 0.45)
    torch.testing.assert_close(mixed["img"][0], 0.45 * images[0] + 0.55 * images[2])
    torch.testing.assert_close(mixed["img"][1], 0.45 * images[1] + 0.55 * images[0])
    assert mixed["batch_idx"].tolist() == [0, 2, 1, 0] and mixed["cls"].flatten().tolist() == [0, 1, 0, 1]
    assert torch.equal(mixed["bboxes"], batch["bboxes"].repeat(2, 1))


@pytest.mark.parametrize("kind", [pytest.param(None, marks=pytest.mark.nightly), "flat-cosine"])
def test_the_warm_up_is_counted_in_steps(kind, data, tmp_path):
    """Four batches an epoch: six steps of warm-up end in the second epoch."""
    seen = []

    def look(trainer):
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])

    settings = dict(warmup_steps=6, warmup_bias_lr=0.0, lrf=1.0 if kind is None else 0.5, lr_schedule=kind, nbs=3)
    train(tmp_path, data, model="rtdetr-tiny.yaml", callbacks=[("on_train_batch_end", look)], val=False, **settings)
    power = 1 if kind is None else 2
    factor = schedule.flat_cosine(EPOCHS, 0, 0.5) if kind else lambda _: 1.0
    for step, rates in enumerate(seen):
        expected = 1e-3 * factor(step // 4) * min(step / 6, 1) ** power
        assert rates == pytest.approx([expected] * len(rates)), step


def test_a_warm_up_as_long_as_the_run_is_one_line(monkeypatch):
    said = []
    monkeypatch.setattr(schedule.LOGGER, "warning", said.append)
    trainer = SimpleNamespace(args=SimpleNamespace(warmup_steps=2000), train_loader=range(32), epochs=72, resume=False)
    schedule.count_warm_up_in_steps(trainer, 32)
    schedule.warn_of_long_warm_up(trainer)
    assert trainer.args.warmup_epochs == 62.5
    assert len(said) == 1 and "warmup_steps=2000 is 87% of this run's 2304 steps" in said[0]
