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


@pytest.mark.nightly
def test_a_resumed_run_of_deim_ends_like_one_that_was_never_stopped(data, tmp_path):
    """Four plain epochs, one of mosaics, in which the run is stopped within a step, and a plain one."""
    plans = {}

    def look(trainer):
        plans[trainer.epoch] = trainer.train_loader.dataset.plan

    arguments = settings("deim.yaml", epochs=6, no_aug_epochs=1, cache="ram")
    look = [("on_train_batch_start", look)]
    train(tmp_path / "whole", data, "rtdetr-tiny.yaml", callbacks=look, **arguments)
    assert [plans[e].augments for e in range(6)] == [plans[e].mixes for e in range(6)]
    assert [plans[e].mixes for e in range(6)] == [False] * 4 + [True, False]
    assert [plans[e].resizes for e in range(6)] == [True] * 5 + [False]
    with pytest.raises(Crash):
        train(tmp_path / "part", data, "rtdetr-tiny.yaml", stop=(4, 1), **arguments)
    RTDETR(tmp_path / "part" / "run" / "weights" / "last.pt").train(resume=True)
    one, other = tmp_path / "whole" / "run", tmp_path / "part" / "run"
    assert same(one / "weights" / "last.pt", other / "weights" / "last.pt")
    assert columns(one) == columns(other) and len(columns(one)) == 7


@pytest.mark.parametrize("recipe", [pytest.param("rtdetr.yaml", marks=pytest.mark.nightly), "rtdetrv2.yaml"])
def test_a_run_by_the_recipe_keeps_its_switches(recipe, data, tmp_path):
    seen = []

    def look(trainer):
        seen.append(type(trainer.model.criterion).__name__)
        assert trainer.args.loss == "official" and torch.isfinite(trainer.loss)
        mixins = {cls.__name__ for m in trainer.model.modules() for cls in type(m).__mro__}
        assert mixins >= {"RecomputingModel", "RecomputedConv", "HeadOfContiguousTokens", "AttentionWithoutWeights"}

    arguments = settings(recipe, epochs=3)
    with pytest.raises(Crash):
        train(tmp_path, data, "rtdetr-tiny.yaml", stop=(0, 2), callbacks=[("on_train_batch_end", look)], **arguments)
    last = tmp_path / "run" / "weights" / "last.pt"
    before = last.read_bytes()
    for change in ({"loss": "mal"}, {"freeze_norm": False}, {"no_aug_epochs": 2}, {"cls": 1.0}):
        ((key, value),) = change.items()
        with pytest.raises(Refused, match=f"{key}={value}: the run of .*last.pt has {key}=.*keeps it") as e:
            RTDETR(last).train(resume=True, **change)
        assert "\n" not in str(e.value) and last.read_bytes() == before
    assert set(seen) == {"OfficialCriterion"}
    saved = torch.load(last, weights_only=False)["ema"]
    assert all(p.is_contiguous() for p in saved.parameters())  # whatever the layout of the training
