"""Gradients of a batch of one image are right on a CPU."""

import pytest
import torch
from conftest import TINY
from short_runs import data  # noqa: F401 - a fixture
from torch import nn

from ultralytics import RTDETR
from ultralytics.fork.training.norm_gradients import match_gradient_layout
from ultralytics.nn.tasks import RTDETRDetectionModel


@pytest.mark.parametrize("name", TINY)
def test_gradients_of_one_image_are_right(name):
    """As those of the same image twice, of which the loss is the same: on a CPU torch's own are of another order."""
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).train()
    model.nc = 3
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
        elif isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    model.model[-1].num_denoising = 0  # whose noise is drawn for each image
    image = torch.rand(1, 3, 96, 96)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.7, 0.3, 0.2]])
    objects = {"cls": torch.tensor([[0.0], [2.0]]), "bboxes": boxes}

    def gradients(copies: int) -> list[torch.Tensor]:
        model.zero_grad()
        indices = torch.arange(copies).repeat_interleave(2).float()
        batch = {k: v.repeat(copies, 1) for k, v in objects.items()} | {"batch_idx": indices}
        loss, _ = model.loss({"img": image.repeat(copies, 1, 1, 1), **batch})
        loss.sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    hooks = match_gradient_layout(model)
    one = gradients(1)
    for hook in hooks:
        hook.remove()
    two = gradients(2)
    assert len(one) == len(two) > 100
    for a, b in zip(one, two):
        assert (a - b).norm() <= 2e-3 * b.norm() + 1e-6


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)], ids=["batch", "instance"])
def test_a_norm_before_tokens_has_right_gradients(norm):
    """Of one image as of the same image twice, whose mean loss is the same."""
    x = torch.rand(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(30, 4, generator=torch.Generator().manual_seed(1))

    def gradient(copies: int) -> torch.Tensor:
        image = x.repeat(copies, 1, 1, 1).requires_grad_()
        tokens = norm.train()(image).flatten(2).transpose(1, 2)  # (B, N, C), whose gradient lies channels last
        (tokens.square() * weight).sum(dim=(1, 2)).mean().backward()
        return image.grad.sum(0)

    right = gradient(2)
    hooks = match_gradient_layout(nn.Sequential(norm))
    assert len(hooks) == 1
    torch.testing.assert_close(gradient(1), right, atol=1e-5, rtol=1e-4)


def test_a_trainer_on_a_cpu_lays_gradients_out(data, tmp_path):
    seen = []

    def look(trainer):
        norms = [m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        seen.append(all(m._forward_hooks for m in norms))
        averaged = [m for m in trainer.ema.ema.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        seen.append(not any(m._forward_hooks for m in averaged))  # it is what a checkpoint holds

    model = RTDETR("rtdetr-tiny.yaml")
    model.add_callback("on_train_start", look)
    settings = dict(epochs=1, imgsz=64, batch=1, fraction=0.2, plots=False, val=False, workers=0)
    model.train(data=data, project=tmp_path, name="run", **settings)
    assert seen == [True, True]
