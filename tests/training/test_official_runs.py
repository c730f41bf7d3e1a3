"""Short runs by the official recipes: they begin, augment by epoch, resume to the bit, and keep their switches."""

import pytest
import torch
from short_runs import Crash, columns, data, same, train  # noqa: F401 - a fixture

from ultralytics import RTDETR
from ultralytics.fork.errors import Refused
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

SHORT = dict(epochs=8, imgsz=64, batch=4, nbs=8, warmup_steps=3)  # of a recipe: steps of two batches


def settings(recipe, **more):
    return {**YAML.load(check_yaml(recipe)), **SHORT, **more}


def test_a_resumed_run_of_deim_ends_like_one_that_was_never_stopped(data, tmp_path):
    """It is stopped behind the change to mosaics, which four plain epochs precede, and within a step."""
    arguments = settings("deim.yaml", cache="ram")
    train(tmp_path / "whole", data, "rtdetr-tiny.yaml", **arguments)
    with pytest.raises(Crash):
        train(tmp_path / "part", data, "rtdetr-tiny.yaml", stop=(5, 1), **arguments)
    RTDETR(tmp_path / "part" / "run" / "weights" / "last.pt").train(resume=True)
    one, other = tmp_path / "whole" / "run", tmp_path / "part" / "run"
    assert same(one / "weights" / "last.pt", other / "weights" / "last.pt")
    assert columns(one) == columns(other) and len(columns(one)) == 9


@pytest.mark.parametrize("recipe", ["rtdetr.yaml", "rtdetrv2.yaml"])
def test_a_run_by_the_recipe_is_resumed_and_keeps_its_switches(recipe, data, tmp_path):
    seen = []

    def look(trainer):
        seen.append(type(trainer.model.criterion).__name__)
        assert trainer.args.loss == "official" and torch.isfinite(trainer.loss)

    arguments = settings(recipe, epochs=3)
    with pytest.raises(Crash):
        train(tmp_path, data, "rtdetr-tiny.yaml", stop=(1, 1), callbacks=[("on_train_batch_end", look)], **arguments)
    last = tmp_path / "run" / "weights" / "last.pt"
    before = last.read_bytes()
    for change in ({"loss": "mal"}, {"freeze_norm": False}, {"no_aug_epochs": 2}, {"cls": 1.0}):
        ((key, value),) = change.items()
        with pytest.raises(Refused, match=f"{key}={value}: the run of .*last.pt has {key}=.*keeps it") as e:
            RTDETR(last).train(resume=True, **change)
        assert "\n" not in str(e.value) and last.read_bytes() == before
    RTDETR(last).train(resume=True, loss="official", freeze_norm=True)
    assert set(seen) == {"OfficialCriterion"} and len(columns(tmp_path / "run")) == 4


def test_the_last_epochs_are_not_augmented(data, tmp_path):
    plans = []

    def look(trainer):
        plans.append((trainer.epoch, trainer.train_loader.dataset.plan))

    arguments = settings("deim.yaml", epochs=7, no_aug_epochs=1)
    train(tmp_path, data, "rtdetr-tiny.yaml", callbacks=[("on_train_batch_start", look)], val=False, **arguments)
    by_epoch = dict(plans)
    assert [by_epoch[e].augments for e in range(7)] == [False] * 4 + [True] * 2 + [False]
    assert [by_epoch[e].mixes for e in range(7)] == [False] * 4 + [True] * 2 + [False]
    assert [by_epoch[e].resizes for e in range(7)] == [True] * 6 + [False]
