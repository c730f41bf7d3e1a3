"""A teacher's losses: those of a naive form, nothing where both models are the same, no trace in a checkpoint."""

import copy
import csv
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from short_runs import Crash, data, train, weights  # noqa: F401 - a fixture
from torch import nn

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import get_cfg
from ultralytics.fork.checkpoints.load import load_checkpoint
from ultralytics.fork.errors import Refused
from ultralytics.fork.training import distillation
from ultralytics.fork.training.distillation import Distillation, Seen
from ultralytics.nn.tasks import RTDETRDetectionModel

CLASSES = [0, 1, 2]
GAINS = dict.fromkeys(distillation.TERMS, 1.0)


def build(name="rtdetr-tiny", seed=0):
    torch.manual_seed(seed)
    model = RTDETRDetectionModel(f"{name}.yaml", nc=3, verbose=False)
    model.args, model.nc = get_cfg(), 3
    return model


def make_batch(images=2, objects=3, side=64):
    torch.manual_seed(1)
    return {
        "img": torch.rand(images, 3, side, side),
        "batch_idx": torch.arange(images).repeat_interleave(objects).float(),
        "cls": torch.randint(0, 3, (images * objects, 1)).float(),
        "bboxes": torch.rand(images * objects, 4) * 0.4 + 0.3,
    }


def freeze_norms(model):
    """Norms of a student use the statistics of the batch, those of a teacher do not."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    return model


@pytest.mark.parametrize("objects", [3, 0])
def test_a_teacher_that_is_the_student_teaches_nothing(objects):
    """Each term and its gradient are zero, with denoising queries in the student's training."""
    student = build()
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    student.distillation = Distillation(teacher, student, CLASSES, GAINS)
    freeze_norms(student.train())
    batch = make_batch(objects=objects)
    with distillation.watch_head(student) as seen:
        loss, _ = RTDETRDetectionModel.loss.__wrapped__(student, batch)
    terms = student.distillation(student, batch, seen)
    assert all(float(term.detach()) == pytest.approx(0, abs=1e-5) for term in terms.values()), terms
    sum(terms.values()).backward()
    gradients = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert gradients.abs().max() < 1e-3
    student.zero_grad()
    loss, items = student.loss(batch)
    loss.backward()
    whole = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert whole.abs().max() > 100 * gradients.abs().max()
    assert {"dis_logits", "dis_boxes", "dis_feats"} < items.keys()


def test_terms_by_hand():
    """One image, of whose two objects the teacher finds one and half of the other."""
    torch.manual_seed(0)
    objects = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    batch = {"img": torch.zeros(1, 3, 32, 32), "batch_idx": torch.zeros(2), "cls": torch.tensor([[1.0], [0.0]])}
    batch["bboxes"] = objects
    boxes = torch.tensor([[0.7, 0.7, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2]])
    logits = torch.tensor([[2.0, -3.0], [-4.0, -4.0], [-3.0, 1.0]])
    own_boxes = torch.tensor([[0.32, 0.3, 0.2, 0.2], [0.7, 0.68, 0.2, 0.2]], requires_grad=True)
    own_logits = torch.tensor([[-2.0, 0.5], [1.0, -1.0]], requires_grad=True)
    maps, own_maps = [torch.rand(1, 4, 4, 4)], [torch.rand(1, 4, 4, 4)]
    found = object.__new__(Distillation)
    nn.Module.__init__(found)
    found.strides, found.projections, found.gains = [8], nn.ModuleDict(), {"logits": 1.0, "boxes": 2.0, "features": 3.0}
    found.ask_teacher = lambda image: (maps, boxes[None], logits[None])
    seen = Seen()
    seen.inputs, seen.outputs = own_maps, (own_boxes[None, None], own_logits[None, None], None, None, None)
    terms = found(SimpleNamespace(criterion=build().init_criterion()), batch, seen)

    def entropy(p, q):
        return -(p * q.log() + (1 - p) * (1 - q).log()).sum()

    pairs = [(0, 2, 0, 1.0), (1, 0, 1, 0.5)]  # object, the teacher's query, the student's, overlap of the teacher's box
    expected_logits = expected_boxes = 0.0
    for _, theirs, ours, weight in pairs:
        p, q = logits[theirs].sigmoid(), own_logits[ours].sigmoid()
        expected_logits += weight * (entropy(p, q) - entropy(p, p)) / 2
        first, second = own_boxes[ours], boxes[theirs]
        corners = [torch.cat([b[:2] - b[2:] / 2, b[:2] + b[2:] / 2]) for b in (first, second)]
        inside = (torch.minimum(corners[0][2:], corners[1][2:]) - torch.maximum(corners[0][:2], corners[1][:2])).prod()
        union = first[2] * first[3] + second[2] * second[3] - inside
        hull = (torch.maximum(corners[0][2:], corners[1][2:]) - torch.minimum(corners[0][:2], corners[1][:2])).prod()
        giou = inside / union - (hull - union) / hull
        expected_boxes += weight * (5 * (first - second).abs().sum() + 2 * (1 - giou)) / 2
    correlations = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(maps[0][0], own_maps[0][0])
    ]
    torch.testing.assert_close(terms["logits"], expected_logits)
    torch.testing.assert_close(terms["boxes"], 2 * expected_boxes)
    torch.testing.assert_close(terms["features"], 3 * (1 - torch.stack(correlations)).mean(), rtol=1e-4, atol=1e-5)


def test_projections_where_channels_differ():
    student, teacher = build("rtdetr-tiny"), build("rtdetr-tiny-timm", seed=3)
    same = Distillation(teacher, student, CLASSES, GAINS)
    assert same.strides == [8, 16, 32] and not same.projections
    wide = copy.deepcopy(teacher)
    assert distillation.measure_inputs(teacher, 128) == {8: 96, 16: 96, 32: 96}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            distillation, "measure_inputs", lambda m, _: {8: 96, 16: 96} if m is student else {8: 64, 16: 96, 32: 9}
        )
        other = Distillation(wide, student, CLASSES, GAINS)
    assert other.strides == [8, 16] and {k: p.weight.shape for k, p in other.projections.items()} == {
        "8": (64, 96, 1, 1)
    }


def test_the_teacher_is_no_part_of_copies():
    student = build()
    student.distillation = Distillation(build(), student, CLASSES, GAINS)
    assert not any(key.startswith("distillation.teacher") for key in student.state_dict())
    assert not hasattr(copy.deepcopy(student).distillation, "teacher")
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in build().parameters())


def test_classes_are_matched_by_name():
    """A teacher that knows the classes in another order, and more of them, teaches the same."""
    names = {0: "circle", 1: "Square", 2: "triangle"}
    teacher = SimpleNamespace(names={0: "dog", 1: "triangle", 2: "circle", 3: "square "})
    assert distillation.match_classes(teacher, names) == [2, 3, 1]
    with pytest.raises(Refused, match="does not know hexagon; its classes are dog, triangle"):
        distillation.match_classes(teacher, {0: "hexagon"})


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    text = (ROOT / "cfg_custom" / "models" / "rtdetr-tiny.yaml").read_text()
    (folder / "wide.yaml").write_text(text.replace("96", "64"))  # its decoder has other inputs than the student's
    train(folder, data, str(folder / "wide.yaml"), epochs=1)
    return folder / "run" / "weights" / "last.pt"


def test_a_taught_run_goes_on_to_the_bit_and_leaves_no_trace(data, teacher, tmp_path):
    settings = dict(distill_model=str(teacher), loss="official", epochs=2)
    train(tmp_path / "whole", data, "rtdetr-tiny.yaml", **settings)
    with pytest.raises(Crash):
        train(tmp_path / "part", data, "rtdetr-tiny.yaml", stop=(1, 1), **settings)
    last = tmp_path / "part" / "run" / "weights" / "last.pt"
    assert not hasattr(load_checkpoint(last)["ema"], "distillation")
    assert any("distillation.projections" in key for key in load_checkpoint(last)["training"]["model"])
    RTDETR(last).train(resume=True)
    whole, part = weights(tmp_path / "whole" / "run" / "weights" / "last.pt"), weights(last)
    assert whole.keys() == part.keys() and all(torch.equal(whole[key], part[key]) for key in whole)
    assert not any("distillation" in key for key in whole)
    rows = (tmp_path / "whole" / "run" / "results.csv").read_text().splitlines()
    assert len(rows) == 3 and "train/dis_logits,train/dis_boxes,train/dis_feats" in rows[0]
    column = rows[0].split(",").index("train/dis_logits")
    assert all(float(row.split(",")[column]) > 0 for row in rows[1:])


@pytest.mark.nightly
def test_two_processes_learn_what_one_does(data, teacher, tmp_path):
    """The same figures of the first epoch, whose last batch is of two images."""
    still = dict.fromkeys(("mosaic", "mixup", "fliplr", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "erasing"), 0)
    settings = {**still, "epochs": 1, "imgsz": 64, "batch": 4, "nbs": 4, "loss": "official", "device": "cpu"}
    settings |= {"optimizer": "SGD", "lr0": 1e-3, "plots": False, "workers": 0, "distill_model": str(teacher)}
    script = tmp_path / "train.py"
    settings |= {"data": str(data), "project": str(tmp_path)}
    lines = "import sys", "from ultralytics import RTDETR", f"settings = {settings}"
    train = "RTDETR('rtdetr-tiny.yaml').train(**settings, name=sys.argv[1])\n"
    script.write_text("\n".join([*lines, train]))
    subprocess.run([sys.executable, script, "one"], check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, script, "two"], check=True)
    one, two = (next(csv.DictReader((tmp_path / name / "results.csv").open())) for name in ("one", "two"))
    losses = [key for key in one if key.startswith("train/")]
    assert len(losses) == 6
    assert [float(two[key]) for key in losses] == pytest.approx([float(one[key]) for key in losses], rel=1e-3)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"distill_logits": -1}, "distill_logits=-1: expected a number from 0"),
        ({"compile": True}, "a taught model is not compiled"),
        ({"distill_model": "nothing.pt"}, "nothing.pt"),
    ],
)
def test_wrong_input_is_one_line(data, teacher, tmp_path, change, says):
    with pytest.raises((Refused, FileNotFoundError), match=says) as error:
        train(tmp_path, data, "rtdetr-tiny.yaml", **{"distill_model": str(teacher), **change})
    assert "\n" not in str(error.value).strip()


def test_a_teacher_of_another_kind(data, tmp_path):
    YOLO("yolo11n.yaml").save(tmp_path / "yolo.pt")
    with pytest.raises(Refused, match=r"yolo\.pt is not an RT-DETR, and rtdetr-tiny\.yaml learns from one only"):
        train(tmp_path, data, "rtdetr-tiny.yaml", distill_model=str(tmp_path / "yolo.pt"))
