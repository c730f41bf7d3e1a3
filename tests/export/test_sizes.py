"""Every shipped model runs at any height and width that are multiples of 32, in inference and in training."""

import random

import pytest
import torch
from conftest import MODELS, TINY, mark_nightly

from ultralytics.nn.tasks import RTDETRDetectionModel

LARGE = [name for name in MODELS if name not in TINY]
EDGES = [(32, 32), (32, 1280), (1280, 32), (128, 416), (640, 384), (1280, 736)]
SIDES = range(32, 1281, 32)


def drawn(name: str, count: int, most: int) -> list[tuple[int, int]]:
    """Draw sizes of at most so many pixels, the same each time."""
    generator = random.Random(name)
    sizes = ((generator.choice(SIDES), generator.choice(SIDES)) for _ in iter(int, 1))
    return [next(size for size in sizes if size[0] * size[1] <= most) for _ in range(count)]


def build(name: str) -> RTDETRDetectionModel:
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
    model.nc = model.model[-1].nc  # as the trainer sets it
    return model


def labelled(batch: int, size: tuple[int, int]) -> dict:
    """Give images with two boxes each."""
    boxes = torch.rand(2 * batch, 4) * 0.3 + 0.3
    number = torch.arange(batch).repeat_interleave(2).float()
    return {"img": torch.rand(batch, 3, *size), "cls": torch.zeros(2 * batch, 1), "bboxes": boxes, "batch_idx": number}


def infer(model, batch, size):
    """Run a model, and see that each image has as many boxes as queries, or as positions and classes give."""
    with torch.no_grad():
        y = model.eval()(torch.rand(batch, 3, *size))[0]
    head, positions = model.model[-1], sum((size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32))
    assert y.shape[:2] == (batch, min(head.num_queries, positions * head.nc)) and y.isfinite().all()
    assert (y[..., :4] >= 0).all() and (y[..., :4] <= 1).all()


@pytest.mark.parametrize("name", mark_nightly(TINY, {*TINY} - {"rtdetr-tiny-timm"}))
def test_tiny_models(name):
    model = build(name)
    for size in EDGES:
        infer(model, 1, size)
    for batch, size in zip((1, 2, 3), drawn(name, 3, most=640 * 640)):
        infer(model, batch, size)
    for batch, size in ((2, (32, 32)), (1, (64, 32)), *zip((1, 2), drawn(f"{name} learns", 2, most=256 * 256))):
        loss = model.train().loss(labelled(batch, size))[0].sum()
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert loss.isfinite() and grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", mark_nightly(LARGE, {"rtdetr-l-HGBlock_Biformer", "rtdetr-ResNetLayer_MQA_SR"}))
def test_large_models(name):
    model = build(name)
    for batch, size in ((1, (32, 32)), (2, (32, 160)), *((1, size) for size in drawn(name, 2, most=256 * 256))):
        infer(model, batch, size)
    loss = model.train().loss(labelled(2, (32, 64)))[0].sum()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name, row", [("rtdetr-tiny", 6), ("rtdetr-tiny-EMO", 0)])
def test_a_map_too_small_to_learn_from_is_named(name, row):
    with pytest.raises(ValueError, match=f"{name}.yaml, row {row} .*1x1.*larger images"):
        build(name).train().loss(labelled(1, (32, 32)))
