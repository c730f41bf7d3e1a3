"""RT-DETRv2's decoder against loops written from the paper, upstream's decoder, and its selections of queries."""

import pytest
import torch
import yaml
from conftest import ROOT, lively, mark_nightly

from ultralytics import RTDETR
from ultralytics.fork.training.losses import VarifocalLoss
from ultralytics.nn.AddModules.RTDETRv2 import MSDeformAttnV2, RTDETRDecoderV2, make_anchors
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.modules.transformer import MSDeformAttn
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import YAML

SHAPES = [[7, 12], [4, 6], [2, 3]]
BATCH, QUERIES, WIDTH, HEADS = 2, 5, 16, 4


def draw(layer):
    """Draw the weights of an attention, and queries, boxes, some of them beyond the image, and maps."""
    torch.manual_seed(0)
    for p in layer.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    query = torch.randn(BATCH, QUERIES, WIDTH, dtype=torch.double)
    boxes = torch.rand(BATCH, QUERIES, 1, 4, dtype=torch.double) * 1.2
    maps = torch.randn(BATCH, sum(h * w for h, w in SHAPES), WIDTH, dtype=torch.double)
    return layer.double(), query, boxes, maps


def bilinear(level, x, y):
    """A map (H, W, C) at a place of the image from 0 to 1; 0 beyond it."""
    h, w, c = level.shape
    column, row = float(x) * w - 0.5, float(y) * h - 0.5
    i, j = int(torch.tensor(row).floor()), int(torch.tensor(column).floor())
    found = torch.zeros(c, dtype=level.dtype)
    for a in (i, i + 1):
        for b in (j, j + 1):
            if 0 <= a < h and 0 <= b < w:
                found += level[a, b] * (1 - abs(row - a)) * (1 - abs(column - b))
    return found


def nearest(level, x, y):
    h, w, _ = level.shape
    a, b = int((float(y) * h + 0.5) // 1), int((float(x) * w + 0.5) // 1)
    return level[min(max(a, 0), h - 1), min(max(b, 0), w - 1)]


def loops(layer, query, boxes, maps, read):
    """The attention of the module's docstring, one number at a time."""
    value = layer.value_proj(maps).view(BATCH, -1, HEADS, WIDTH // HEADS)
    levels, start = [], 0
    for h, w in SHAPES:
        levels.append(value[:, start : start + h * w].view(BATCH, h, w, HEADS, -1))
        start += h * w
    total = sum(layer.points)
    offsets = layer.sampling_offsets(query).view(BATCH, QUERIES, HEADS, total, 2)
    weights = layer.attention_weights(query).view(BATCH, QUERIES, HEADS, total).softmax(-1)
    out = torch.zeros(BATCH, QUERIES, HEADS, WIDTH // HEADS, dtype=torch.double)
    for b in range(BATCH):
        for q in range(QUERIES):
            x, y, w, h = boxes[b, q, 0]
            for head in range(HEADS):
                p = 0
                for level, points in zip(levels, layer.points):
                    for _ in range(points):
                        dx, dy = offsets[b, q, head, p] / points * 0.5
                        sample = read(level[b, :, :, head], x + dx * w, y + dy * h)
                        out[b, q, head] += weights[b, q, head, p] * sample
                        p += 1
    return layer.output_proj(out.flatten(2))


@pytest.mark.parametrize("points", [[2, 2, 2], [3, 1, 2]])
@pytest.mark.parametrize("sampling, read", [("bilinear", bilinear), ("discrete", nearest)])
@torch.no_grad()
def test_attention_is_the_paper_s(points, sampling, read):
    layer, *inputs = draw(MSDeformAttnV2(WIDTH, HEADS, points, sampling))
    torch.testing.assert_close(layer(*inputs, SHAPES), loops(layer, *inputs, read), rtol=0, atol=1e-12)


@torch.no_grad()
def test_bilinear_attention_is_rt_detr_s():
    """With equal points, upstream's attention of the same weights."""
    layer, *inputs = draw(MSDeformAttnV2(WIDTH, HEADS, [4, 4, 4]))
    upstream = MSDeformAttn(WIDTH, len(SHAPES), HEADS, 4).double()
    upstream.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(*inputs, SHAPES), upstream(*inputs, SHAPES), rtol=0, atol=1e-12)
    mask = torch.rand(BATCH, inputs[2].shape[1]) > 0.5
    torch.testing.assert_close(layer(*inputs, SHAPES, mask), upstream(*inputs, SHAPES, mask), rtol=0, atol=1e-12)


def test_first_offsets_are_rt_detr_s():
    layer, upstream = MSDeformAttnV2(WIDTH, HEADS, [4, 4, 4]), MSDeformAttn(WIDTH, len(SHAPES), HEADS, 4)
    assert layer.state_dict().keys() == upstream.state_dict().keys()
    torch.testing.assert_close(layer.sampling_offsets.bias, upstream.sampling_offsets.bias)
    assert not layer.sampling_offsets.weight.any() and not layer.attention_weights.weight.any()


def test_discrete_sampling_has_no_gradient_of_offsets_and_bears_what_is_not_a_number():
    layer, *inputs = draw(MSDeformAttnV2(WIDTH, HEADS, [2, 2, 2], "discrete"))
    layer(*inputs, SHAPES).sum().backward()
    missing = {name for name, p in layer.named_parameters() if p.grad is None}
    assert missing == {"sampling_offsets.weight", "sampling_offsets.bias"}
    inputs[1][0, 0] = float("nan")
    assert layer(*inputs, SHAPES).shape == (BATCH, QUERIES, WIDTH)  # no place outside of a map


def make_yaml(*arguments):
    """A tiny RT-DETRv2; `arguments` follow `eval_idx`."""
    rows = YAML.load(ROOT / "cfg_custom" / "models" / "rtdetr-tiny.yaml")
    rows["head"][-1] = [[19, 22, 25], 1, "RTDETRDecoderV2", ["nc", 96, 60, 4, 4, 3, 192, -1, *arguments]]
    return rows


def make_batch():
    return {
        "img": torch.rand(2, 3, 96, 128),
        "batch_idx": torch.tensor([0.0, 1, 1]),
        "cls": torch.tensor([[0.0], [1], [2]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.1, 0.2]]),
    }


def train_step(model, loss=None):
    model.nc = model.yaml["nc"]
    model.args = {"loss": loss}
    torch.manual_seed(0)
    total, _ = model.train()(make_batch())
    total.backward()
    return total


@pytest.mark.parametrize("loss", [None, "official", "mal"])
@pytest.mark.parametrize("arguments", [(), ("discrete",), ("bilinear", "agnostic"), ("bilinear", "one2many")])
def test_training_step(arguments, loss):
    model = RTDETRDetectionModel(make_yaml(*arguments), verbose=False)
    total = train_step(model, loss)
    assert total.isfinite()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert missing == frozen and all("sampling_offsets" in name for name in missing)
    assert bool(missing) == ("discrete" in arguments)


@pytest.mark.parametrize("loss", [None, "official"])
def test_agnostic_selection_learns_objects_of_all_classes_alike(loss):
    """The encoder's part of the loss does not change with the classes; the rest is the loss of a decoder without it."""
    model = RTDETRDetectionModel(make_yaml("bilinear", "agnostic"), verbose=False)
    head = model.model[-1]
    assert head.enc_score_head.weight.shape == (1, 96)
    model.nc, model.args = 3, {"loss": loss}
    criterion = model.init_criterion()
    torch.manual_seed(0)
    boxes, scores = torch.rand(2, 1, 9, 4), torch.randn(2, 1, 9, 3)
    scores[0, ..., 1:] = -1e4
    objects = torch.rand(3, 4)
    found = []
    for classes in ([0, 1, 2], [0, 0, 0]):
        batch = {"cls": torch.tensor(classes), "bboxes": objects, "gt_groups": [3]}
        found.append(criterion((boxes, scores), batch)["loss_class_aux"])
        assert criterion((boxes, scores), batch)["loss_class"].isfinite()
    assert torch.equal(*found)
    if loss:  # one class: the varifocal loss of a single score
        alone = RTDETRDetectionModel(make_yaml(), nc=1, verbose=False)
        alone.nc, alone.args = 1, {"loss": loss}
        single = alone.init_criterion()
        assert isinstance(single.vfl, VarifocalLoss)
        batch = {"cls": torch.zeros(3, dtype=torch.long), "bboxes": objects, "gt_groups": [3]}
        expected = single((boxes, scores[..., :1]), batch)["loss_class_aux"]
        torch.testing.assert_close(found[0], expected)


@torch.no_grad()
def test_one_position_can_become_several_queries():
    model = RTDETRDetectionModel(make_yaml("bilinear", "one2many"), verbose=False).eval()
    head = model.model[-1]
    head.enc_score_head.weight[1] = head.enc_score_head.weight[0]
    head.enc_score_head.bias.copy_(torch.tensor([9.0, 9.0, -9.0]))  # two classes at every position
    feats = torch.randn(2, 80, 96)
    shapes = [[8, 8], [4, 4]]
    _, boxes, enc_boxes, scores = head._get_decoder_input(feats, shapes)
    assert boxes.shape == (2, 60, 4) and scores.shape == (2, 60, 3)
    assert all(len(image.unique(dim=0)) == 30 for image in enc_boxes)
    head.selection = "best_class"
    assert all(len(image.unique(dim=0)) == 60 for image in head._get_decoder_input(feats, shapes)[2])


def test_anchors_are_upstream_s():
    ours, valid = make_anchors(SHAPES, torch.zeros(()))
    theirs, there = RTDETRDecoder._generate_anchors(SHAPES, torch.zeros(()))
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(valid, there)


@torch.no_grad()
def test_samplings_find_different_boxes():
    """As a check of the other tests: the two forms of one model are not the same function."""
    model = lively("rtdetrv2-r18").model
    twin = RTDETRDetectionModel("rtdetrv2-r18-dsp.yaml", nc=model.yaml["nc"], verbose=False)
    twin.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, 96, 128)
    for m in (model, twin):
        torch.manual_seed(0)
        for layer in m.model[-1].dec_bbox_head:
            torch.nn.init.normal_(layer.layers[-1].weight, 0, 0.1)
    one, other = (m.eval()(image)[1][0] for m in (model, twin))
    assert one.shape == other.shape and 1e-5 < (one - other).abs().mean() < 0.3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"ndp": [4, 4]}, r"points \[4, 4\]; expected .* each of the 3 maps"),
        ({"ndp": 0}, "points 0; expected a number of at least 1"),
        ({"sampling": "nearest"}, "sampling 'nearest'; expected bilinear or discrete"),
        ({"selection": "best"}, "selection 'best'; expected best_class, agnostic, one2many"),
    ],
)
def test_what_is_no_decoder_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RTDETRDecoderV2(**arguments)


@pytest.mark.parametrize("selection", mark_nightly(["best_class", "one2many", "agnostic"], {"one2many"}))
def test_exports_for_any_size(selection, tmp_path):
    """Verified on other sizes and with another batch."""
    model = RTDETRDetectionModel(make_yaml("discrete", selection), verbose=False)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.model[-1].enc_score_head.weight, 0, 0.5)
    torch.save({"model": model}, tmp_path / "a.pt")
    file = RTDETR(tmp_path / "a.pt").export(format="torchscript", imgsz=96, dynamic=True)
    assert file == str(tmp_path / "a.torchscript")


def test_offsets_stay_frozen_in_training(shapes, tmp_path, caplog):
    """Upstream would unfreeze what it is not told to freeze, and say so layer by layer."""
    (tmp_path / "tiny-dsp.yaml").write_text(yaml.safe_dump(make_yaml("discrete")))
    model = RTDETR(tmp_path / "tiny-dsp.yaml")
    frozen = set()
    model.add_callback(
        "on_train_epoch_start",
        lambda trainer: frozen.update(name for name, p in trainer.model.named_parameters() if not p.requires_grad),
    )
    options = {"data": shapes, "epochs": 1, "imgsz": 64, "batch": 4, "project": tmp_path, "plots": False, "val": False}
    model.train(**options, freeze=1)
    assert {name for name in frozen if "sampling_offsets" in name} and {name for name in frozen if ".0.stem" in name}
    assert "for frozen layer" not in caplog.text
