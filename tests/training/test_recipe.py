"""The official recipe and its switches; what is said of a start from nothing."""

from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, ROOT
from torch import nn

from ultralytics.cfg import get_cfg
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.fork.errors import Refused
from ultralytics.fork.training import nonfinite_steps, recipe
from ultralytics.fork.training.frozen_backbone import pretrained_share
from ultralytics.fork.training.run_state import RunState
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

RECIPES = sorted(file.name for file in (ROOT / "cfg_custom" / "recipes").glob("*.yaml"))
# Of ../shared/facts: figures of the official repositories, R50 or HGNetv2 L
COMMON = dict(optimizer="AdamW", batch=16, nbs=16, weight_decay=1e-4, clip_grad=0.1, warmup_steps=2000, momentum=0.9)
AUGMENTED = dict(photometric=0.5, zoom_out=0.5, iou_crop=0.8, fliplr=0.5, multi_scale=0.25, base_size_repeat=3)
FROZEN = dict(freeze_norm=True, freeze_at=0)
OFFICIAL = {
    "rtdetr.yaml": dict(loss="official", lr0=1e-4, lrf=1.0, backbone_lr=0.1, epochs=72, mosaic=0.0, **FROZEN),
    "rtdetrv2.yaml": dict(
        loss="official", lr0=1e-4, lrf=1.0, backbone_lr=0.05, epochs=72, no_aug_epochs=1, bias_decay=True, **FROZEN
    ),
    "deim.yaml": dict(
        **dict(loss="mal", lr0=2e-4, lrf=0.5, lr_schedule="flat-cosine", backbone_lr=0.1, epochs=60, mosaic=0.5),
        **dict(mixup=0.5, aug_policy="deim", no_aug_epochs=2, bias_decay=True),
    ),
}


def build(name):
    return RTDETRDetectionModel(f"{name}.yaml", nc=3, verbose=False)


def trainer(model, **settings):
    """Stand for a trainer that has built its optimiser, as upstream's code does."""
    args = get_cfg(overrides=settings)
    self = SimpleNamespace(args=args, model=model, data={"nc": 3}, resume=False, fork=RunState())
    self.optimizer = BaseTrainer.build_optimizer(
        self, model, args.optimizer, args.lr0, args.momentum, args.weight_decay
    )
    return self


@pytest.mark.parametrize("file", RECIPES)
def test_recipes_are_found_by_bare_name_and_hold_only_what_upstream_reads(file):
    settings = YAML.load(check_yaml(file))
    read = get_cfg(overrides=settings)
    assert all(getattr(read, key) == value for key, value in settings.items())


@pytest.mark.parametrize("file", OFFICIAL)
def test_the_official_settings(file):
    settings, expected = YAML.load(check_yaml(file)), {**COMMON, **AUGMENTED, **OFFICIAL[file]}
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_backbone_is_slow_and_norms_and_biases_do_not_decay(name):
    model = build(name)
    groups = trainer(model, **YAML.load(check_yaml("rtdetr.yaml"))).optimizer.param_groups
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    group = {id(p): g for g in groups for p in g["params"]}
    assert len(group) == len(list(model.parameters()))
    rows = len(model.yaml["backbone"])
    for i, m in enumerate(model.model):
        assert all(group[id(p)]["lr"] == pytest.approx(1e-5 if i < rows else 1e-4) for p in m.parameters())
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))]
    free = [p for m in norms for p in m.parameters()] + [p for key, p in model.named_parameters() if "bias" in key]
    assert norms and all(group[id(p)]["weight_decay"] == 0 for p in free)
    decayed = [g for g in groups if g["weight_decay"]]
    assert decayed and all(g["weight_decay"] == 1e-4 and min(p.ndim for p in g["params"]) > 1 for g in decayed)


def test_without_the_switch_the_groups_are_upstream_s():
    model = build("rtdetr-tiny")
    build_optimizer = BaseTrainer.build_optimizer.__wrapped__
    before = build_optimizer(SimpleNamespace(args=get_cfg()), model, "AdamW", 1e-3, 0.9, 1e-4).param_groups
    after = trainer(model, optimizer="AdamW", lr0=1e-3).optimizer.param_groups
    assert [len(g["params"]) for g in before] == [len(g["params"]) for g in after]
    assert {g["lr"] for g in after} == {1e-3}


def test_gradients_are_clipped_to_the_norm():
    for norm in (0.1, 10.0):
        model = nn.Linear(3, 2)
        self = SimpleNamespace(model=model, scaler=torch.amp.GradScaler("cpu", enabled=False), args=get_cfg())
        self.fork = RunState()
        self.args.clip_grad, self.loss = norm, torch.ones(())
        for p in model.parameters():
            p.grad = torch.full_like(p, 100.0)
        nonfinite_steps.clip_gradients(self, torch.nn.utils.clip_grad_norm_)
        total = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert total == pytest.approx(norm, rel=1e-4)


WRONG = [
    *(("clip_grad", value, "a number above 0") for value in (0.0, -1, "a", True)),
    ("backbone_lr", 1.5, "a number above 0 to 1"),
    *(("warmup_steps", value, "a whole number from 0") for value in (-1, 2.5)),
    *(("photometric", value, "a number from 0 to 1") for value in (1.5, float("nan"))),
    ("freeze_at", 9, "a whole number from -1 to 4"),
    ("freeze_norm", "yes", "True or False"),
    ("lr_schedule", "cosine", "flat-cosine"),
    ("aug_policy", "deimv2", "deim"),
]


@pytest.mark.parametrize("key, value, expected", WRONG, ids=str)
def test_wrong_values_are_refused_before_anything_is_made(key, value, expected, tmp_path):
    overrides = {"model": "rtdetr-tiny.yaml", "data": "shapes.yaml", "project": str(tmp_path), key: value}
    with pytest.raises(Refused, match=f"{key}={value!r}: expected {expected}") as e:
        RTDETRTrainer(overrides=overrides)
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given, line",
    [
        ({"no_aug_epochs": 1}, "no_aug_epochs=1 ends photometric, zoom_out and iou_crop, which are all 0"),
        ({"no_aug_epochs": 5, "iou_crop": 0.5, "epochs": 4}, "no_aug_epochs=5 is more than epochs=4"),
        ({"checkpoint_activations": True, "compile": True}, "torch cannot compile these checkpoints"),
        ({"lr_schedule": "flat-cosine", "cos_lr": True}, "these are two schedules"),
        ({"lr_schedule": "flat-cosine", "time": 1.0}, "time=1 lr_schedule=flat-cosine: it needs the number of epochs"),
        ({"aug_policy": "deim"}, "aug_policy=deim plans photometric, zoom_out and iou_crop, which are all 0"),
    ],
    ids=str,
)
def test_switches_that_do_not_go_together(given, line, tmp_path):
    overrides = {"model": "rtdetr-tiny.yaml", "data": "shapes.yaml", "project": str(tmp_path), **given}
    with pytest.raises(Refused, match=line):
        RTDETRTrainer(overrides=overrides)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key, value", [("loss", "official"), ("iou_crop", 0.5), ("checkpoint_activations", True)])
def test_another_model_does_not_take_them(key, value, tmp_path):
    overrides = {"model": "yolo11n.yaml", "data": "shapes.yaml", "project": str(tmp_path), key: value}
    with pytest.raises(Refused, match=f"{key}={value} is for RT-DETR, and yolo11n.yaml is not an RT-DETR"):
        DetectionTrainer(overrides=overrides)
    assert not list(tmp_path.iterdir())


def test_a_switch_that_a_user_s_own_class_leaves_out_is_refused(shapes, tmp_path):
    class Plain(RTDETRTrainer):
        def build_dataset(self, img_path, mode="train", batch=None):
            data = super().build_dataset(img_path, mode, batch)
            data.transforms.transforms = data.transforms.transforms[-1:]
            return data

    settings = dict(model="rtdetr-tiny.yaml", data=shapes, epochs=1, imgsz=64, batch=4, project=str(tmp_path))
    with pytest.raises(Refused, match="do nothing with the data set of this trainer"):
        Plain(overrides={**settings, "iou_crop": 0.8})._setup_train()
    model = build("rtdetr-tiny")
    model.init_criterion = lambda: RTDETRDetectionLoss(nc=3, use_vfl=True)
    trainer = SimpleNamespace(args=get_cfg(overrides={"loss": "mal"}), train_loader=SimpleNamespace(dataset=None))
    with pytest.raises(Refused, match="loss=mal does nothing with RTDETRDetectionModel, which has its own loss"):
        recipe.check_that_switches_act(trainer, model)


def test_biases_decay_but_those_of_norms():
    model = build("rtdetr-tiny")
    groups = trainer(model, optimizer="AdamW", bias_decay=True, weight_decay=1e-4).optimizer.param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for m in model.modules():
        is_norm = isinstance(m, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))
        for p in m.parameters(recurse=False):
            assert decay[id(p)] == (0 if is_norm else 1e-4)


def test_a_slow_backbone_without_weights_is_warned_of(monkeypatch):
    source, target, other = build("rtdetr-l"), build("rtdetr-l-FLA"), build("rtdetr-l-EMO")
    said = []
    monkeypatch.setattr(recipe.LOGGER, "warning", said.append)
    target.load(source, verbose=False)
    other.load(source, verbose=False)
    assert pretrained_share(target, len(target.yaml["backbone"])) > 0.9
    assert pretrained_share(other, len(other.yaml["backbone"])) == pretrained_share(source, 10) == 0
    for model in (target, other):
        trainer(model, optimizer="AdamW", backbone_lr=0.1)
    assert len(said) == 1 and "100% of the backbone starts from scratch" in said[0] and "backbone_lr=1" in said[0]


@pytest.mark.parametrize(
    "name, start",
    [
        ("rtdetr-l", "pretrained=timm/hgnetv2_b4"),
        ("rtdetr-l-HGBlock_FLA", "pretrained=timm/hgnetv2_b4"),
        ("rtdetr-x", "pretrained=timm/hgnetv2_b5"),
        ("rtdetr-resnet50", "pretrained=timm/resnet50"),
        ("rtdetr-resnet101", "pretrained=timm/resnet101"),
        ("rtdetr-ResNetLayer_MQA", "pretrained=timm/resnet50"),
        ("rtdetr-l-EMO", "pretrained=rtdetr-l.pt"),
        ("rtdetr-tiny-EMO", None),
        ("rtdetr-tiny-MQA", None),
    ],
)
def test_the_advice_names_what_fits(name, start):
    assert recipe.suggest_pretrained(build(name)) == start


def test_the_advice_is_one_line_for_a_start_from_nothing_on_few_images(monkeypatch):
    said = []
    monkeypatch.setattr(recipe.LOGGER, "warning", said.append)
    few = SimpleNamespace(dataset=range(512))
    self = SimpleNamespace(model=build("rtdetr-tiny"), train_loader=few, resume=False, fork=RunState())
    recipe.warn_of_start_from_scratch(self)
    assert len(said) == 1 and "from scratch on 512 images" in said[0] and "\n" not in said[0]
    for changed in (
        {"fork": RunState(has_pretrained_weights=True)},
        {"resume": True},
        {"train_loader": SimpleNamespace(dataset=range(5000))},
    ):
        recipe.warn_of_start_from_scratch(SimpleNamespace(**{**vars(self), **changed}))
    assert len(said) == 1
