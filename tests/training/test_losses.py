"""The class losses of the official trainings, against `transformers`, an implementation that owes ours nothing."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.cfg import get_cfg
from ultralytics.fork.errors import Refused
from ultralytics.fork.training import losses
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils.loss import VarifocalLoss

IMAGES, QUERIES, LAYERS, GROUPS = 3, 60, 4, 2


def make_model(classes, **arguments):
    """A model as a trainer has it."""
    model = RTDETRDetectionModel("rtdetr-tiny.yaml", nc=classes, verbose=False)
    model.nc, model.args = classes, get_cfg(overrides=arguments)
    return model


def criterion(classes, **arguments):
    return make_model(classes, **arguments).init_criterion()


def make_outputs(classes, counts, denoising, seed=0, dtype=torch.float32):
    """Draw outputs of encoder and decoder and objects, without ties in the matching."""
    draw = torch.Generator().manual_seed(seed)

    def boxes(*shape):
        centre, size = torch.rand(2, *shape, 2, generator=draw, dtype=dtype)
        return torch.cat([0.2 + 0.6 * centre, 0.003 + 0.3 * size**3], -1)  # many of a few pixels

    def logits(*shape):
        return 3 * torch.randn(*shape, classes, generator=draw, dtype=dtype) - 3

    total = sum(counts)
    targets = {
        "cls": torch.randint(classes, (total,), generator=draw),
        "bboxes": boxes(total),
        "batch_idx": torch.repeat_interleave(torch.arange(IMAGES), torch.tensor(counts)),
        "gt_groups": counts,
    }
    outputs = {"boxes": boxes(LAYERS, IMAGES, QUERIES), "scores": logits(LAYERS, IMAGES, QUERIES)}
    meta = None
    if denoising and total:
        most = max(counts)
        queries = 2 * most * GROUPS
        outputs |= {"dn_boxes": boxes(LAYERS - 1, IMAGES, queries), "dn_scores": logits(LAYERS - 1, IMAGES, queries)}
        positive = [torch.cat([torch.arange(n) + 2 * most * g for g in range(GROUPS)]) for n in counts]
        begin = [sum(counts[:i]) for i in range(IMAGES)]
        meta = {
            "dn_pos_idx": positive,
            "dn_num_group": GROUPS,
            "dn_gt_idx": [torch.arange(n) + begin[i] for i, n in enumerate(counts)],
        }
    return {k: v.requires_grad_() for k, v in outputs.items()}, targets, meta


def ours(outputs, targets, meta, **arguments):
    """Give the sums of each kind of term, by our criterion."""
    loss = criterion(outputs["scores"].shape[-1], **arguments)(
        (outputs["boxes"], outputs["scores"]),
        targets,
        dn_bboxes=outputs.get("dn_boxes"),
        dn_scores=outputs.get("dn_scores"),
        dn_meta=meta,
    )
    kinds = {"class": "vfl", "bbox": "bbox", "giou": "giou"}
    return {theirs: sum(v for k, v in loss.items() if k.startswith(f"loss_{kind}")) for kind, theirs in kinds.items()}


def theirs(outputs, targets, meta):
    """Give the same by `transformers`."""
    from transformers.loss import loss_rt_detr

    config = SimpleNamespace(
        **{"matcher_class_cost": 2.0, "matcher_bbox_cost": 5.0, "matcher_giou_cost": 2.0, "use_focal_loss": True},
        **{"matcher_alpha": 0.25, "matcher_gamma": 2.0, "num_labels": outputs["scores"].shape[-1]},
        **{"weight_loss_vfl": 1.0, "weight_loss_bbox": 5.0, "weight_loss_giou": 2.0, "eos_coefficient": 1e-4},
        **{"focal_loss_alpha": 0.75, "focal_loss_gamma": 2.0},
    )
    layers = [{"logits": s, "pred_boxes": b} for s, b in zip(outputs["scores"].unbind(), outputs["boxes"].unbind())]
    whole = {**layers[-1], "auxiliary_outputs": layers[:-1]}
    if meta:
        dn = zip(outputs["dn_scores"].unbind(), outputs["dn_boxes"].unbind())
        whole["dn_auxiliary_outputs"] = [{"logits": s, "pred_boxes": b} for s, b in dn]
        whole["denoising_meta_values"] = {"dn_positive_idx": meta["dn_pos_idx"], "dn_num_group": meta["dn_num_group"]}
    objects = [
        {
            "class_labels": targets["cls"][targets["batch_idx"] == i],
            "boxes": targets["bboxes"][targets["batch_idx"] == i],
        }
        for i in range(IMAGES)
    ]
    loss = loss_rt_detr.RTDetrLoss(config)(whole, objects)
    return {kind: sum(v for k, v in loss.items() if k.startswith(f"loss_{kind}")) for kind in ("vfl", "bbox", "giou")}


def gradients(value, outputs):
    found = torch.autograd.grad(value, list(outputs.values()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(o) if g is None else g for g, o in zip(found, outputs.values())]


@pytest.mark.parametrize("denoising", [True, False])
@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 0], [50, 3, 20]], ids=str)
@pytest.mark.parametrize("classes", [1, 80])
def test_each_term_and_its_gradient_are_those_of_transformers(classes, counts, denoising):
    outputs, targets, meta = make_outputs(classes, counts, denoising)
    a, b = ours(outputs, targets, meta, loss="official"), theirs(outputs, targets, meta)
    for kind in b:
        assert float(a[kind]) == pytest.approx(float(b[kind]), rel=1e-5, abs=1e-9), kind
        if sum(counts) or kind == "vfl":
            for x, y in zip(gradients(a[kind], outputs), gradients(b[kind], outputs)):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-8 + 1e-5 * float(y.abs().max()), msg=kind)


@pytest.mark.parametrize("counts", [[0, 0, 0], [7, 0, 2]], ids=str)
def test_mal_is_its_formula(counts):
    """DEIM: the target is the overlap to the power 1.5; negatives weigh p^1.5, positives 1."""
    outputs, targets, _ = make_outputs(5, counts, False)
    one = criterion(5, loss="mal")
    boxes, scores = outputs["boxes"][-1], outputs["scores"][-1]
    loss = one._get_loss(boxes, scores, targets["bboxes"], targets["cls"], targets["gt_groups"])["loss_class"]
    p, target, label = scores.detach().sigmoid(), torch.zeros_like(scores), torch.zeros_like(scores)
    matches = one.matcher(boxes, scores, targets["bboxes"], targets["cls"], targets["gt_groups"])
    for i, (queries, objects) in enumerate(matches):
        for q, o in zip(queries, objects):
            a, b = (
                torch.cat([x[:2] - x[2:] / 2, x[:2] + x[2:] / 2]) for x in (boxes[i, q].detach(), targets["bboxes"][o])
            )
            both = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
            overlap = both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)
            label[i, q, targets["cls"][o]], target[i, q, targets["cls"][o]] = 1, overlap**1.5
    element = -(target * p.log() + (1 - target) * (1 - p).log()) * (label + (1 - label) * p**1.5)
    assert float(loss) == pytest.approx(float(element.sum() / max(sum(counts), 1)), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, scores)
    expected = (p - target) * (label + (1 - label) * p**1.5) / max(sum(counts), 1)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-7)


def test_without_the_switch_the_loss_is_upstream_s_to_the_bit():
    outputs, targets, meta = make_outputs(3, [2, 0, 5], True)
    init_criterion, model = RTDETRDetectionModel.init_criterion.__wrapped__, make_model(3)
    preds = (outputs["boxes"], outputs["scores"])
    denoising = {"dn_bboxes": outputs["dn_boxes"], "dn_scores": outputs["dn_scores"], "dn_meta": meta}
    before = init_criterion(model)(preds, targets, **denoising)
    after = criterion(3)(preds, targets, **denoising)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert type(criterion(3)) is RTDETRDetectionLoss and isinstance(criterion(3).vfl, VarifocalLoss)


def test_half_precision_gives_finite_losses_of_fp32():
    outputs, targets, meta = make_outputs(3, [2, 0, 5], True)
    exact = ours(outputs, targets, meta, loss="official")["vfl"]
    with torch.autocast("cpu", torch.bfloat16):
        half = ours(outputs, targets, meta, loss="official")["vfl"]
    assert half.dtype == torch.float32 and float(half) == pytest.approx(float(exact), rel=1e-3)


def test_gains_act():
    outputs, targets, meta = make_outputs(3, [2, 0, 5], True)
    for kind in (None, "official", "mal"):
        plain = ours(outputs, targets, meta, loss=kind)
        gained = ours(outputs, targets, meta, loss=kind, cls=1.0, box=15.0)
        assert all(float(gained[k]) == pytest.approx(2 * float(plain[k])) for k in plain)


def test_classes_are_weighed():
    outputs, targets, _ = make_outputs(3, [2, 0, 5], False)
    model = make_model(3, loss="official", cls_pw=0.5)
    model.class_weights = torch.tensor([1.0, 0, 0])
    one = model.init_criterion()
    arguments = targets["bboxes"], targets["cls"], targets["gt_groups"]
    loss = one._get_loss(outputs["boxes"][-1], outputs["scores"][-1], *arguments)["loss_class"]
    (gradient,) = torch.autograd.grad(loss, outputs["scores"])
    assert gradient[-1, ..., 0].any() and not gradient[..., 1:].any()


@pytest.mark.parametrize("classes", [1, 3, 20, 80])
@pytest.mark.parametrize("name", ["rtdetr-tiny", "rtdetr-tiny-EMO"])
def test_every_score_starts_at_a_hundredth(name, classes):
    model = RTDETRDetectionModel(f"{name}.yaml", nc=classes, verbose=False)
    losses.init_score_biases(model)
    head = model.model[-1]
    for layer in (head.enc_score_head, *head.dec_score_head):
        torch.testing.assert_close(layer.bias.sigmoid(), torch.full((classes,), 0.01))


def test_pretrained_scores_stay():
    source = RTDETRDetectionModel("rtdetr-tiny.yaml", nc=3, verbose=False)
    source.names = {0: "cat", 1: "dog", 2: "cow"}
    for layer in source.model[-1].dec_score_head:
        nn.init.constant_(layer.bias, -1.5)
    target = RTDETRDetectionModel("rtdetr-tiny.yaml", nc=2, verbose=False)
    target.names = {0: "cow", 1: "fox"}
    target.load(source, verbose=False)
    losses.init_score_biases(target)
    for layer in target.model[-1].dec_score_head:
        assert layer.bias.tolist() == pytest.approx([-1.5, -4.595], abs=1e-3)


@pytest.mark.parametrize(
    "given, line",
    [
        ({"loss": "focal"}, "loss='focal': expected one of official, mal"),
        ({"dfl": 3.0}, "dfl=3: RT-DETR has no distribution focal loss"),
        ({"cls_pw": 0.5}, "cls_pw=0.5 weighs classes in loss=official and loss=mal"),
        ({"box": -1.0}, "box=-1.0: expected a number from 0"),
    ],
    ids=str,
)
def test_what_the_loss_does_not_have_is_refused(given, line, tmp_path):
    with pytest.raises(Refused, match=line):
        RTDETRTrainer(overrides={"model": "rtdetr-tiny.yaml", "data": "x.yaml", "project": str(tmp_path), **given})
    assert not list(tmp_path.iterdir())


def test_a_criterion_can_be_copied():
    one = copy.deepcopy(criterion(3, loss="mal"))
    assert isinstance(one.vfl, losses.MatchabilityAwareLoss)
    assert float(one.vfl(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))) == pytest.approx(
        3 * 0.5**1.5 * float(F.softplus(torch.zeros(())))
    )
