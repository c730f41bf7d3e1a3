"""Gradients of several batches are those of the whole, with the losses of the official trainings."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ultralytics.cfg import get_cfg
from ultralytics.fork.training import nonfinite_steps
from ultralytics.fork.training.norm_gradients import match_gradient_layout
from ultralytics.fork.training.resume import begin_epoch
from ultralytics.fork.training.run_state import RunState
from ultralytics.nn.tasks import RTDETRDetectionModel

COUNTS = [3, 0, 3, 2]  # objects of each image


def build(**arguments):
    torch.manual_seed(0)
    model = RTDETRDetectionModel("rtdetr-tiny.yaml", nc=3, verbose=False).train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # its statistics are of a batch, and not accumulated
    match_gradient_layout(model)  # as a trainer does on a CPU
    model.nc, model.args = 3, get_cfg(overrides=arguments)
    model.model[-1].num_denoising = 0  # its groups depend on the image with the most objects
    return model


def batches(parts):
    torch.manual_seed(1)
    images, boxes = torch.rand(4, 3, 64, 64), torch.rand(sum(COUNTS), 4) * 0.3 + 0.3
    index, classes = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS)), torch.arange(sum(COUNTS)) % 3
    for first in range(0, 4, 4 // parts):
        own = (index >= first) & (index < first + 4 // parts)
        yield {
            "img": images[first : first + 4 // parts],
            "cls": classes[own].view(-1, 1).float(),
            "bboxes": boxes[own],
            "batch_idx": (index[own] - first).float(),
        }


def gradients(parts, **arguments):
    model = build(**arguments)
    trainer = SimpleNamespace(
        **dict(args=model.args, model=model, accumulate=parts, fork=RunState(), loss_items={}, tloss=None, epoch=0),
        **dict(device=torch.device("cpu"), amp=False, preprocess_batch=lambda batch: batch),
        scaler=SimpleNamespace(scale=lambda loss: loss, is_enabled=lambda: False),
    )
    nonfinite_steps.watch_losses(trainer)
    for batch in batches(parts):
        trainer.loss = model.loss(trainer.preprocess_batch(batch))[0]
        trainer.scaler.scale(trainer.loss).backward()
    nonfinite_steps.clip_gradients(trainer, lambda *_, **__: None)
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("loss", ["official", "mal"])
def test_parts_are_the_whole(loss, parts):
    whole, parted = gradients(1, loss=loss), gradients(parts, loss=loss)
    assert whole.keys() == parted.keys()
    for key, g in whole.items():
        assert float((parted[key] - g).norm()) <= 2e-4 * float(g.norm()) + 1e-9, key


def test_gradients_that_wait_are_counted_until_they_are_dropped():
    """An epoch may end before the first step; upstream drops gradients where it begins an epoch again."""
    run, model = RunState(has_begun=True, accumulated_batches=3), nn.Linear(1, 1)
    trainer = SimpleNamespace(fork=run, model=model, train_loader=SimpleNamespace(dataset=None))
    model(torch.ones(1, 1)).sum().backward()
    assert begin_epoch(trainer, -1) == -1 and run.accumulated_batches == 3
    model.zero_grad()
    begin_epoch(trainer, -1)
    assert run.accumulated_batches == 0


def test_without_the_switch_they_are_upstream_s():
    whole, parted = gradients(1), gradients(2)
    key = "model.26.dec_bbox_head.0.layers.2.bias"
    assert not torch.allclose(whole[key], parted[key], rtol=1e-2)
