"""An opened RT-DETR trains: its loss is that of transformers, and its classes are matched by name."""

import shutil

import torch
from huggingface_models import draw_image
from small_detector import small  # noqa: F401 - a fixture

from ultralytics import RTDETR, YOLO
from ultralytics.fork.pretrained.detectors import load_detector
from ultralytics.nn.tasks import RTDETRDetectionModel, load_checkpoint


def test_use_as_a_model(small, tmp_path, shapes):
    """A folder predicts, is saved as a checkpoint, and trains with the heads of classes of the same names."""
    folder = tmp_path / "r18"
    shutil.copytree(small[0], folder)
    model = YOLO(folder)
    assert type(model) is RTDETR and model.names == {0: "disc", 1: "square", 2: "triangle"}
    image = (torch.rand(96, 128, 3) * 255).byte().numpy()
    before = model.predict(image, imgsz=128, conf=0.0, verbose=False)[0].boxes.data
    model = RTDETR(str(folder))
    model.save(tmp_path / "saved.pt")
    after = RTDETR(tmp_path / "saved.pt").predict(image, imgsz=128, conf=0.0, verbose=False)[0].boxes.data
    assert after.shape == before.shape and (after[:, 4].mean() - before[:, 4].mean()).abs() < 0.01
    options = {"data": shapes, "epochs": 1, "imgsz": 64, "batch": 4, "project": tmp_path, "plots": False}
    model.train(**options, fraction=0.5, val=False, lr0=0.0, warmup_bias_lr=0.0, optimizer="SGD", exist_ok=True)
    trained = load_checkpoint(tmp_path / "train" / "weights" / "last.pt")[0]
    assert trained.yaml["norm_eps"] == 1e-5
    weight = "model.5.conv.weight"
    expected = load_detector(folder)[0].state_dict()[weight]
    assert torch.allclose(trained.state_dict()[weight], expected, atol=1e-3)


def shift(f):
    """The index of a layer of the neck, behind one that was inserted at the end of the backbone."""
    return [shift(x) for x in f] if isinstance(f, list) else f + 1 if f >= 4 else f


def test_pretrained_classes_are_matched_by_name(small, caplog):
    """The rows of the class heads go to the classes of their names; an unknown class starts anew."""
    source, _ = load_checkpoint(small[0])
    target = RTDETRDetectionModel(source.yaml, nc=2, verbose=False)
    target.names = {0: "triangle", 1: "hexagon"}
    before = target.model[-1].enc_score_head.weight.clone()
    target.load(source)
    after = target.model[-1].enc_score_head.weight
    assert torch.equal(after[0], source.model[-1].enc_score_head.weight[2]) and torch.equal(after[1], before[1])
    assert "1/2 decoder cls head rows" in caplog.text
    yaml = {**source.yaml, "backbone": [*source.yaml["backbone"], [-1, 1, "FocusedLinearAttention", [32, 4]]]}
    yaml["head"] = [[shift(f), *row] for f, *row in source.yaml["head"]]  # one layer further
    other = RTDETRDetectionModel(yaml, nc=4, verbose=False)
    other.load(source)
    assert torch.equal(other.model[4].blocks[0].cv1.conv.weight, source.model[4].blocks[0].cv1.conv.weight)
    assert "score_head" in caplog.text or "class" in caplog.text


def test_a_process_that_is_given_a_path_trains_the_model(small, shapes, tmp_path):
    """A launched process has the path only, no model."""
    from ultralytics.models.rtdetr.train import RTDETRTrainer

    options = {"model": str(small[0]), "data": str(shapes), "epochs": 1, "imgsz": 64, "batch": 4, "plots": False}
    trainer = RTDETRTrainer(overrides={**options, "project": str(tmp_path)})
    trainer.setup_model()
    expected = load_detector(small[0])[0]
    assert trainer.model.yaml["backbone"] == expected.yaml["backbone"]
    weight = "model.5.conv.weight"
    assert torch.equal(trainer.model.state_dict()[weight], expected.state_dict()[weight])


def run_with_the_same_noise(theirs, ours, image, objects, classes, monkeypatch):
    """The losses of a training step of both models, for the denoising queries that `transformers` draws."""
    from transformers.models.rt_detr import modeling_rt_detr as module

    from ultralytics.models.utils import ops

    drawn, draw = [], module.get_contrastive_denoising_training_group
    monkeypatch.setattr(
        module, "get_contrastive_denoising_training_group", lambda **kw: drawn.append(draw(**kw)) or drawn[-1]
    )
    labels = [{"class_labels": c, "boxes": b} for c, b in zip(classes, objects, strict=True)]
    expected = theirs.train()(image, labels=labels).loss
    ((embed, boxes, mask, meta),) = drawn
    counts = [len(b) for b in objects]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    told = {
        "dn_pos_idx": list(meta["dn_positive_idx"]),
        "dn_gt_idx": [torch.arange(n) + start for n, start in zip(counts, starts)],
        "dn_num_group": meta["dn_num_group"],
        "dn_num_split": meta["dn_num_split"],
    }
    blocked = mask if mask.dtype is torch.bool else mask < 0
    monkeypatch.setattr(ops, "get_cdn_group", lambda *_: (embed.detach(), boxes, blocked, told))
    batch = {
        "img": image,
        "batch_idx": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        "cls": torch.cat(classes)[:, None],
        "bboxes": torch.cat(objects),
    }
    ours.nc, ours.args = ours.yaml["nc"], {"loss": "official"}
    found, _ = ours.train()(batch)
    return found, expected


def test_a_training_step_has_the_loss_of_transformers(small, monkeypatch):
    """Batch norms, denoising, matching and all terms together; and the gradient that reaches the first convolution."""
    folder, theirs = small
    ours, _ = load_detector(folder)
    ours.requires_grad_(True)
    torch.manual_seed(3)
    objects = [torch.rand(n, 4) * 0.3 + 0.3 for n in (3, 1)]
    classes = [torch.tensor([0, 2, 1]), torch.tensor([1])]
    image = draw_image(2, 128, 160)
    try:
        found, expected = run_with_the_same_noise(theirs, ours, image, objects, classes, monkeypatch)
        torch.testing.assert_close(found.sum(), expected, rtol=1e-4, atol=0)
        (one,) = torch.autograd.grad(found.sum(), ours.model[0].convs[0].conv.weight)
        (other,) = torch.autograd.grad(expected, theirs.model.backbone.model.embedder.embedder[0].convolution.weight)
        assert (one - other).norm() < 5e-3 * other.norm()  # of all layers, in single precision
    finally:
        theirs.eval()
