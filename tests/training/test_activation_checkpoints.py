"""Checkpointed activations: the same loss, gradients and running statistics, from less memory."""

import copy

import pytest
import torch
from torch import nn

from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.fork.errors import Refused
from ultralytics.fork.training.activation_checkpoints import CheckpointedBlock, checkpoint_activations
from ultralytics.nn.tasks import RTDETRDetectionModel

TINY = ["rtdetr-tiny", "rtdetr-tiny-FLA", "rtdetr-tiny-Biformer", "rtdetr-tiny-EMO", "rtdetr-tiny-MQA"]


def build(name):
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", nc=3, verbose=False).train()
    model.nc, model.args = 3, get_cfg(overrides={"loss": "official"})
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.1
    return model


def step(model):
    torch.manual_seed(1)
    batch = {
        "img": torch.rand(2, 3, 96, 96),
        "cls": torch.tensor([[0.0], [2.0], [1.0]]),
        "bboxes": torch.rand(3, 4) * 0.3 + 0.3,
        "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
    }
    loss = model(batch)[0]
    loss.backward()
    return loss.detach()


def assert_same_gradients(model, plain, rtol, share, zero=0.0):
    """Compare each gradient with that of another model; `share` of its largest entry is let pass, and `zero`."""
    gradients = {k: p.grad for k, p in plain.named_parameters()}
    for key, p in model.named_parameters():
        assert (p.grad is None) == (gradients[key] is None), key
        if p.grad is not None:
            least = share * float(gradients[key].abs().max()) + zero
            torch.testing.assert_close(p.grad, gradients[key], rtol=rtol, atol=least, msg=key)


@pytest.mark.parametrize("name", TINY)
def test_a_step_is_the_same(name):
    plain = build(name)
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    assert sum(isinstance(m, CheckpointedBlock) for m in saving.modules()) > 10
    torch.testing.assert_close(step(plain), step(saving), rtol=1e-6, atol=0)
    assert_same_gradients(saving, plain, rtol=1e-5, share=1e-6)
    for (key, a), (_, b) in zip(plain.named_buffers(), saving.named_buffers()):
        assert torch.equal(a, b), key  # the running statistics, updated once


def test_fewer_tensors_are_kept_for_the_backward_pass():
    kept = []
    for saves in (False, True):
        model, sizes = build("rtdetr-tiny-FLA"), []
        if saves:
            checkpoint_activations(model)

        def pack(x, sizes=sizes):
            sizes.append(x.untyped_storage().nbytes())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            neck = model.model[:-1]
            x, y = torch.rand(2, 3, 96, 96), []
            for m in neck:
                x = x if m.f == -1 else y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
                x = m(x)
                y.append(x)
        kept.append(sum(sizes))
    assert kept[1] < 0.3 * kept[0]


def test_evaluation_and_copies_are_those_of_the_model():
    model = build("rtdetr-tiny")
    plain = copy.deepcopy(model).eval()
    checkpoint_activations(model)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x)[0], plain(x)[0])
    assert not any(isinstance(m, CheckpointedBlock) for m in copy.deepcopy(model).modules())


def test_another_model_is_refused():
    with pytest.raises(Refused, match="checkpoint_activations=True is for RT-DETR"):
        checkpoint_activations(YOLO("yolo11n.yaml").model)
