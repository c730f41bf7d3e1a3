"""Pretrained weights find the layers that play their part, whatever rows were inserted, replaced or wrapped."""

import copy
import csv
import itertools
from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, TINY, mark_nightly
from torch import nn

from ultralytics import RTDETR, YOLO
from ultralytics.fork.pretrained import transfer_report
from ultralytics.fork.pretrained.alignment import find_strides
from ultralytics.fork.training.run_state import RunState
from ultralytics.nn.modules import HGBlock
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, yaml_model_load

# Of rtdetr-l's layers: the index in the variant, for all that are carried
INTO = {
    "rtdetr-l-FLA": {i: i + (i > 8) for i in range(29)},
    "rtdetr-l-HGBlock_FLA": {i: i for i in range(29)},
    "rtdetr-l-HGBlock_Biformer": {i: i for i in range(29)},
    "rtdetr-l-Biformer": {i: i for i in range(29) if i not in {9, 10}},  # 10 projects another width
    "rtdetr-l-EMO": {i: i - 5 for i in range(11, 29) if i not in {14, 19}},
    "rtdetr-resnet50": {i: i - 5 for i in range(10, 29)},
}


PAIRS = list(itertools.permutations(TINY, 2))


def build(cfg, nc=1):
    """Build a model; its random weights are its own."""
    return RTDETRDetectionModel(cfg if isinstance(cfg, dict) else f"{cfg}.yaml", nc=nc, verbose=False)


def rows(name):
    """Read the rows of a model file, to change them."""
    return yaml_model_load(f"{name}.yaml")


def marked(model):
    """Fill each layer's tensors with its index."""
    for m in model.model:
        for tensor in m.state_dict().values():
            tensor.fill_(m.i)
    return model


def origins(source, target):
    """Load marked weights and tell of each layer of the target from which layers its tensors came."""
    for tensor in target.state_dict().values():
        tensor.fill_(-1)
    target.load(marked(source), verbose=False)
    return {m.i: {int(v) for t in m.state_dict().values() for v in t.unique() if v >= 0} for m in target.model}


def layer(model, i):
    return next(m for m in model.model if m.i == i)


@pytest.mark.parametrize("name", mark_nightly(INTO, {"rtdetr-l-FLA", "rtdetr-l-Biformer", "rtdetr-l-EMO"}))
def test_published_variants_get_all_that_has_a_place(name):
    source, target = build("rtdetr-l"), build(name)
    before = {m.i: copy.deepcopy(m.state_dict()) for m in target.model}
    target.load(source, verbose=False)
    for i, j in INTO[name].items():
        arrived = layer(target, j).state_dict()
        for key, tensor in layer(source, i).state_dict().items():
            assert torch.equal(arrived[key], tensor), f"{key} of layer {i} in layer {j}"
    for m in target.model:
        if m.i not in INTO[name].values() and name != "rtdetr-l-Biformer":
            assert all(torch.equal(t, before[m.i][key]) for key, t in m.state_dict().items()), f"layer {m.i} changed"


def test_resnet50_arrives_whole_in_the_mqa_variant():
    source, target = build("rtdetr-resnet50"), build("rtdetr-ResNetLayer_MQA")
    target.load(source, verbose=False)
    arrived = target.state_dict()
    assert all(torch.equal(arrived[key], tensor) for key, tensor in source.state_dict().items())


@pytest.mark.parametrize("source, target", mark_nightly(PAIRS, set(zip(TINY, [*TINY[1:], TINY[0]]))))
def test_between_any_two_variants_the_neck_arrives_in_order(source, target):
    source, target = build(source), build(target)
    necks = [[m for m in model.model[len(model.yaml["backbone"]) : -1] if m.state_dict()] for model in (source, target)]
    came = origins(source, target)
    for s, t in zip(*necks, strict=True):
        shapes = [{key: v.shape for key, v in m.state_dict().items()} for m in (s, t)]
        assert came[t.i] == ({s.i} if shapes[0] == shapes[1] else set())
    backbones = [{m.i for m in model.model[: len(model.yaml["backbone"])]} for model in (source, target)]
    assert all(came[i] <= backbones[0] and len(came[i]) <= 1 for i in backbones[1])
    if backbones[0] == backbones[1] == set(range(8)):  # both are PP-HGNetV2's, with or without attention in a block
        assert all(came[i] == {i} for i in backbones[1])
    assert came[target.model[-1].i] == {source.model[-1].i}


SAME_ROWS = [("rtdetr-l", 3), ("rtdetr-tiny", 3), ("rtdetr-resnet50", 2)]


@pytest.mark.parametrize("name, nc", mark_nightly(SAME_ROWS, {("rtdetr-tiny", 3)}))
def test_same_rows_give_what_upstream_gives(name, nc):
    source, target = build(name), build(name, nc)
    expected = target.state_dict() | {}
    expected = {
        key: source.state_dict()[key].clone() if source.state_dict()[key].shape == t.shape else t.clone()
        for key, t in expected.items()
    }
    target.load(source, verbose=False)
    assert all(torch.equal(t, expected[key]) for key, t in target.state_dict().items())


def test_same_rows_with_another_width_give_what_upstream_gives():
    wide = rows("rtdetr-tiny")
    wide["head"][0][3] = [96, 3, 1, None, 1, 1, False]  # the P5 projection, with another kernel
    source, target = build("rtdetr-tiny", 3), build(wide, 3)
    target.load(source, verbose=False)
    arrived = target.state_dict()
    for key, tensor in source.state_dict().items():
        assert arrived[key].shape != tensor.shape or torch.equal(arrived[key], tensor)


@pytest.mark.parametrize("name", ["yolo26n.yaml", "yolo11n-seg.yaml", "yolov8n-world.yaml"])
def test_yolo_models_load_as_before(name):
    source, target = YOLO(name), YOLO(name)
    target.model.load(source.model, verbose=False)
    arrived = target.model.state_dict()
    assert all(torch.equal(arrived[key], tensor) for key, tensor in source.model.state_dict().items())


def shifted(cfg, at, by=1):
    """Move the layer indices in `from` that lie at or behind an inserted or removed row."""
    for row in [*cfg["backbone"], *cfg["head"]]:
        if isinstance(row[0], int):
            row[0] += by * (row[0] >= at)
        else:
            row[0] = [f + by * (f >= at) for f in row[0]]
    return cfg


@pytest.mark.end_to_end("transfer")
def test_a_row_inserted_into_the_neck_shifts_nothing():
    cfg = shifted(rows("rtdetr-tiny"), 10)
    cfg["head"].insert(2, [-1, 1, "Conv", [96, 1, 1]])  # of the shape of the Y5 row behind it
    came = origins(build("rtdetr-tiny", 3), build(cfg, 3))
    assert came[10] == set()
    assert {i: came[i] for i in (8, 9, 11, 15, 16, 27)} == {8: {8}, 9: {9}, 11: {10}, 15: {14}, 16: {15}, 27: {26}}


def test_of_equal_blocks_each_keeps_its_neighbours():
    twice = rows("rtdetr-l")  # a further block like 6 and 7 between them
    twice = shifted(twice, 7)
    twice["backbone"].insert(7, [-1, 6, "HGBlock", [192, 1024, 5, True, True]])
    came = origins(build("rtdetr-l"), build(twice))
    assert (came[6], came[7], came[8], came[9]) == ({6}, set(), {7}, {8})


def test_a_removed_row_shifts_nothing():
    fewer = shifted(rows("rtdetr-l"), 7, -1)
    del fewer["backbone"][6]
    came = origins(build("rtdetr-l"), build(fewer))
    assert came[5] == {5} and came[7] == {8} and came[8] == {9} and came[27] == {28}
    assert came[6] in ({6}, {7})


def test_another_row_moved_and_one_removed_is_no_pair_of_same_rows():
    """The rows have the same numbers and sources, but the modules in them have moved."""
    cfg = rows("rtdetr-l")
    del cfg["backbone"][6]
    cfg["backbone"].insert(4, [-1, 1, "FocusedLinearAttention", [512]])
    came = origins(build("rtdetr-l"), build(cfg))
    assert came[4] == set() and came[5] == {4} and came[6] == {5} and came[7] in ({6}, {7})
    assert came[8] == {8} and came[28] == {28}


class Wrapped(nn.Module):
    """A block in a module of somebody's own."""

    def __init__(self, *args):
        super().__init__()
        self.inner, self.gate = HGBlock(*args), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.inner(x) * self.gate


def wrap(model, i):
    m = model.model[i]
    args = (128, 64, 192, 5, 3, True, False)
    model.model[i] = Wrapped(*args)
    model.model[i].i, model.model[i].f, model.model[i].type = m.i, m.f, "Wrapped"
    return model


def test_a_wrapped_block_gets_and_gives_its_weights():
    plain, wrapped = build("rtdetr-tiny", 3), wrap(build("rtdetr-tiny", 3), 7)
    wrapped.load(plain, verbose=False)
    for key, tensor in plain.model[7].state_dict().items():
        assert torch.equal(wrapped.model[7].state_dict()[f"inner.{key}"], tensor)
    again = build("rtdetr-tiny", 3)
    again.load(wrapped, verbose=False)
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in plain.state_dict().items())


class Another(nn.Module):
    """An attention with the names and shapes of focused linear attention's projections, and another formula."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(128, 128), nn.Linear(128, 256)

    def forward(self, x):
        return x


def test_one_attention_never_gets_another_s_weights():
    source, target = build("rtdetr-tiny-FLA", 3), build("rtdetr-tiny-FLA", 3)
    target.model[5].cv = Another()
    before = copy.deepcopy(target.model[5].cv.state_dict())
    target.load(source, verbose=False)
    assert all(torch.equal(t, before[key]) for key, t in target.model[5].cv.state_dict().items())
    assert torch.equal(target.model[5].sc.conv.weight, source.model[5].sc.conv.weight)


def test_levels_of_a_head_follow_their_stride():
    lower = rows("rtdetr-tiny")
    lower["head"][-1][0] = [14, 19, 25]  # strides 16, 8 and 32 in place of 8, 16 and 32
    source, target = build("rtdetr-tiny", 3), build(lower, 3)
    target.load(source, verbose=False)
    ours, theirs = target.model[-1].input_proj, source.model[-1].input_proj
    for j, i in enumerate((1, 0, 2)):
        assert torch.equal(ours[j][0].weight, theirs[i][0].weight)
    assert torch.equal(target.model[-1].dec_score_head[0].weight, source.model[-1].dec_score_head[0].weight)


def test_classes_are_remapped_by_name_behind_an_inserted_row():
    source, target = build("rtdetr-l", 2), build("rtdetr-l-FLA", 3)
    source.names, target.names = {0: "cat", 1: "dog"}, {0: "dog", 1: "bird", 2: "cat"}
    target.load(source, verbose=False)
    ours, theirs = target.model[-1].enc_score_head.weight, source.model[-1].enc_score_head.weight
    assert torch.equal(ours[0], theirs[1]) and torch.equal(ours[2], theirs[0])


def test_a_load_touches_nothing_else():
    source, target = build("rtdetr-l").eval(), build("rtdetr-l-EMO")
    before = copy.deepcopy(source.state_dict())
    state = torch.get_rng_state()
    target.load(source, verbose=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not source.training and target.training
    assert all(torch.equal(t, before[key]) for key, t in source.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in (source, target) for m in model.modules())


ALL = [*MODELS, "rtdetr-l", "rtdetr-resnet50", "yolo26n"]


@pytest.mark.parametrize("name", mark_nightly(ALL, {*TINY, "rtdetr-l-Biformer", "rtdetr-resnet50", "yolo26n"}))
def test_strides_of_all_layers_are_told(name):
    model = (YOLO if "yolo" in name else RTDETR)(f"{name}.yaml").model
    stride = find_strides(model)
    assert set(stride) == set(range(len(model.model) - 1))
    assert {8, 16, 32} <= {*stride.values()} <= {2, 4, 8, 16, 32}


def test_eps_follows_the_statistics():
    source, target = build("rtdetr-l"), build("rtdetr-l-FLA")
    source.model[9].sc.bn.eps = 1e-5
    target.load(source, verbose=False)
    assert target.model[10].sc.bn.eps == 1e-5 and target.model[10].ec.bn.eps == 1e-3


def test_the_table_has_a_row_a_layer_and_a_warning_below_half(monkeypatch):
    said, warned = [], []
    monkeypatch.setattr(transfer_report.LOGGER, "info", said.append)
    monkeypatch.setattr(transfer_report.LOGGER, "warning", warned.append)
    source, target, other = build("rtdetr-l"), build("rtdetr-l-FLA"), build("rtdetr-l-EMO")
    warned.clear()
    target.load(source)
    table = next(text for text in said if text.startswith("from"))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "from to tensors share"
    assert "9 HGBlock 10 HGBlock 84 of 84 100%" in lines and "- 9 FocusedLinearAttention 0 of 9 0%" in lines
    assert len(lines) == 1 + sum(bool(m.state_dict()) for m in target.model)
    assert any("941 of 941 tensors" in text and "100.0%" in text for text in said) and not warned
    other.load(source)
    assert len(warned) == 1 and "47.1%" in warned[0]
    new = 1 - 443 / len(other.state_dict())  # 47.1 % of 941
    assert f"{new:.1%} of whose own start from scratch" in warned[0]
    said.clear()
    build("rtdetr-l").load(source)
    assert not any(text.startswith("from") for text in said)  # all came, which upstream's line says


def test_weights_of_which_nothing_fits_are_refused():
    target = build("rtdetr-tiny")
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match="yolo11n.yaml: none of its tensors"):
        target.load(DetectionModel("yolo11n.yaml", verbose=False))
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_python_load_takes_files_and_leaves_the_report_to_the_run(tmp_path):
    RTDETR("rtdetr-tiny.yaml").save(tmp_path / "tiny.pt")
    model = RTDETR("rtdetr-tiny-FLA.yaml").load(tmp_path / "tiny.pt").model

    run = SimpleNamespace(save_dir=tmp_path, resume=False, model=model, fork=RunState())
    transfer_report.write_transfer_report(run)
    assert run.fork.has_pretrained_weights
    with open(tmp_path / "transfer.csv", encoding="utf-8", newline="") as f:
        table = list(csv.DictReader(f))
    assert {row["source"] for row in table} == {str(tmp_path / "tiny.pt")}
    assert next(row for row in table if row["to"] == "5 HGBlock_FLA")["from"] == "5 HGBlock"
    assert sum(int(row["tensors"]) for row in table) == 479
