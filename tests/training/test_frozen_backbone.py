"""Frozen norms, stem and stages: which rows they are, that nothing of them moves, and that no file shows it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from short_runs import EPOCHS, Crash, data, train, weights  # noqa: F401 - a fixture
from torch import nn

from ultralytics import RTDETR
from ultralytics.cfg import get_cfg
from ultralytics.fork.errors import Refused
from ultralytics.fork.training import frozen_backbone
from ultralytics.fork.training.run_state import RunState
from ultralytics.nn.tasks import RTDETRDetectionModel, yaml_model_load


def build(name, pretrained=False):
    model = RTDETRDetectionModel(f"{name}.yaml", nc=3, verbose=False)
    for m in model.modules() if pretrained else ():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1, 0.1)
            nn.init.normal_(m.bias, 0, 0.1)
    return model


def freeze(model, **arguments):
    trainer = SimpleNamespace(
        args=get_cfg(overrides={"model": "x.yaml", **arguments}), model=model, resume=False, fork=RunState()
    )
    frozen_backbone.train_new_backbone(trainer, model)
    frozen_backbone.freeze_backbone(trainer, model)
    return trainer


@pytest.mark.parametrize(
    "name, stages",
    [
        ("rtdetr-l", [[0], [1], [2, 3], [4, 5, 6, 7], [8, 9]]),
        ("rtdetr-l-HGBlock_FLA", [[0], [1], [2, 3], [4, 5, 6, 7], [8, 9]]),
        ("rtdetr-resnet50", [[0], [1], [2], [3], [4]]),
        ("rtdetr-tiny-EMO", []),
    ],
)
def test_the_stages_of_a_backbone(name, stages):
    assert frozen_backbone.list_stages(build(name)) == stages


@pytest.mark.parametrize(
    "name, stages",
    [
        ("resnet10t", [["conv1", "bn1", "act1", "maxpool"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]),
        ("test_convnext", [["stem_0", "stem_1"], ["stages_0"], ["stages_1"], ["stages_2"], ["stages_3"]]),
        (
            "mobilenetv4_conv_small",  # two groups of blocks have stride 32
            [["conv_stem", "bn1", "act1"], *([f"blocks.{i}"] for i in range(3)), ["blocks.3", "blocks.4"]],
        ),
        (
            "ghostnet_050",  # the map of stride 2 is read before the norm of its stem
            [["conv_stem", "bn1", "act1"], *([f"blocks_{i}", f"blocks_{i + 1}"] for i in (0, 2, 4, 6))],
        ),
    ],
)
def test_the_stages_of_a_backbone_of_timm(name, stages):
    model = build_on_timm(name)
    assert frozen_backbone.list_stages(model) == [[f"0.features.{part}" for part in stage] for stage in stages]


def build_on_timm(name):
    settings = yaml_model_load("rtdetr-tiny-timm.yaml")
    settings["backbone"][0][3] = [name]
    return RTDETRDetectionModel(settings, nc=3, verbose=False)


def test_the_stem_and_a_stage_of_a_backbone_of_timm_are_frozen():
    model = build_on_timm("resnet10t")
    for m in model.model[0].modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1, 0.1)
    args = freeze(model, freeze_at=1).args
    assert args.freeze == [f"0.features.{part}" for part in ("conv1", "bn1", "act1", "maxpool", "layer1")]
    model.train()
    still = {name for name, m in model.model[0].features.named_modules() if name and not m.training}
    assert {"conv1.1", "bn1", "layer1.0.bn1"} <= still
    assert all(name.startswith(("conv1", "bn1", "layer1")) for name in still)


def test_norms_and_the_stem_are_frozen():
    model = build("rtdetr-tiny", pretrained=True)
    freeze(model, freeze_norm=True, freeze_at=0)
    model.train()
    norms = {m for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    frozen = {m for m in norms if not m.training}
    assert frozen == {m for row in model.model[:8] for m in row.modules() if isinstance(m, nn.BatchNorm2d)}
    x = torch.rand(2, 3, 64, 64)
    before = copy.deepcopy([b for row in model.model[:8] for b in row.buffers()])
    with torch.no_grad():
        model.model[1](model.model[0](x))
    assert all(torch.equal(a, b) for a, b in zip(before, (b for row in model.model[:8] for b in row.buffers())))
    assert all(type(m) is nn.BatchNorm2d for m in copy.deepcopy(model).modules() if isinstance(m, nn.BatchNorm2d))


def test_what_is_frozen_beside_freeze():
    args = freeze(build("rtdetr-tiny", pretrained=True), freeze=[9], freeze_at=1).args
    assert args.freeze == [9, 0, 1]
    args = freeze(build("rtdetr-tiny", pretrained=True), freeze=2, freeze_norm=True).args
    assert (
        args.freeze[:2] == [0, 1] and "0.stem1.bn" in args.freeze and all(isinstance(x, str) for x in args.freeze[2:])
    )


def test_a_norm_that_was_added_to_a_pretrained_backbone_is_trained():
    model = build("rtdetr-tiny", pretrained=True)
    added = model.model[3].m[0].bn = nn.BatchNorm2d(32)
    args = freeze(model, freeze_norm=True).args
    model.train()
    assert added.training and "3.m.0.bn" not in args.freeze and not model.model[3].m[1].bn.training


def test_a_backbone_that_starts_from_scratch_is_trained_whole(monkeypatch):
    said = []
    monkeypatch.setattr(frozen_backbone.LOGGER, "warning", said.append)
    for name in ("rtdetr-tiny", "rtdetr-tiny-EMO"):
        model = build(name)
        trainer = freeze(model, freeze_norm=True, freeze_at=0, backbone_lr=0.1)
        assert trainer.fork.trains_new_backbone and trainer.args.freeze is None
        assert all(m.training for m in model.modules())
    assert len(said) == 2 and all("100% of the backbone starts from scratch" in line for line in said)
    assert all("freeze_norm=True, freeze_at=0, backbone_lr=0.1" in line for line in said)


def test_a_backbone_that_has_loaded_weights_by_itself_is_not_new():
    assert frozen_backbone.new_share(build("rtdetr-tiny", pretrained=True)) == 0
    assert frozen_backbone.new_share(build("rtdetr-tiny")) == 1


@pytest.mark.parametrize(
    "name, arguments, line",
    [
        ("rtdetr-tiny-EMO", {"freeze_at": 0}, r"freeze_at=0: the backbone of x.yaml is one row.*freeze=\"\[0\.stage0"),
        ("rtdetr-tiny", {"freeze_at": 5}, "freeze_at=5: the backbone of x.yaml has a stem, 0, and stages 1 to 4"),
    ],
)
def test_stages_that_there_are_not(name, arguments, line):
    with pytest.raises(Refused, match=line):
        freeze(build(name, pretrained=True), **arguments)


def test_a_backbone_without_batch_norms():
    model = build("rtdetr-tiny", pretrained=True)
    model.yaml = {"backbone": [], "head": []}
    with pytest.raises(Refused, match="freeze_norm=True: the backbone of x.yaml has no batch norm"):
        frozen_backbone.freeze_backbone(
            SimpleNamespace(args=get_cfg(overrides={"model": "x.yaml", "freeze_norm": True}), fork=RunState()), model
        )


def test_a_training_moves_nothing_of_it_and_a_resume_neither(data, tmp_path):
    """The backbone of a run that was stopped and resumed is, in every file, the one that it began with."""
    source = RTDETR("rtdetr-tiny.yaml")
    source.model.load_state_dict(build("rtdetr-tiny", pretrained=True).state_dict())
    source.save(tmp_path / "source.pt")
    settings = dict(pretrained=str(tmp_path / "source.pt"), freeze_norm=True, freeze_at=4, loss="official")

    with pytest.raises(Crash):
        train(tmp_path, data, "rtdetr-tiny.yaml", stop=(2, 1), **settings)
    RTDETR(tmp_path / "run" / "weights" / "last.pt").train(resume=True)
    before, after = weights(tmp_path / "source.pt"), weights(tmp_path / "run" / "weights" / "last.pt")
    backbone = [key for key in before if key.startswith("model.") and int(key.split(".")[1]) < 8]
    assert all(torch.equal(before[key].half(), after[key].half()) for key in backbone)
    assert any(not torch.equal(before[key].half(), after[key].half()) for key in before if key not in backbone)
    assert (tmp_path / "run" / "results.csv").read_text().count("\n") == EPOCHS + 1
