"""Norms and activations that are computed again: the same loss, gradients and running statistics, from less memory."""

import copy
import gc

import pytest
import torch
from torch import nn

from tests.training.test_activation_checkpoints import TINY, assert_same_gradients, build, step
from ultralytics import YOLO
from ultralytics.fork.errors import Refused
from ultralytics.fork.training import norm_recomputation
from ultralytics.fork.training.norm_recomputation import (
    Recomputation,
    RecomputedConv,
    RecomputingModel,
    pack,
    recompute_norms,
    unpack,
)
from ultralytics.nn.modules.conv import Conv


def run_in_double(model):
    """Run a model in double precision, in training without denoising; give a sum of its outputs, differentiated."""
    torch.manual_seed(1)
    outputs = model(torch.rand(2, 3, 96, 96, dtype=torch.double))[:4]
    total = sum(x.square().sum() for x in outputs)
    total.backward()
    return total.detach()


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("name", TINY)
def test_a_step_is_the_same(name, layout):
    plain = build(name).double()
    if layout == "channels last":
        plain.to(memory_format=torch.channels_last)
    saving = copy.deepcopy(plain)
    recompute_norms(saving)
    assert sum(isinstance(m, RecomputedConv) for m in saving.modules()) > 10
    torch.testing.assert_close(run_in_double(plain), run_in_double(saving), rtol=1e-10, atol=0)
    assert_same_gradients(saving, plain, rtol=1e-7, share=1e-9, zero=1e-12)
    for (key, a), (_, b) in zip(plain.named_buffers(), saving.named_buffers()):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=key)  # the running statistics, updated once


def make_pair(act, frozen=False, bias=True):
    """Two convolutions in double precision, plain and recomputed."""
    torch.manual_seed(0)
    plain = nn.Sequential(Conv(3, 6, 3, 2, act=act), Conv(6, 5, 1, act=act)).double().train()
    for m in plain.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, -1, 2)  # a negative weight, too
            nn.init.normal_(m.bias)
            m.train(not frozen)
            m.requires_grad_(not frozen)
    saving = copy.deepcopy(plain)
    for conv in saving:
        norm_recomputation.mix_into(conv, RecomputedConv)
    return plain, saving


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU(), False])
def test_gradients_in_double_precision(act, frozen):
    plain, saving = make_pair(act, frozen)
    x = torch.randn(4, 3, 9, 7, dtype=torch.double)
    outputs = []
    for model in (plain, saving):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = model(leaf)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        outputs.append([y.detach(), leaf.grad, *[p.grad for p in model.parameters() if p.requires_grad]])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def train_both(act, compute):
    """Train a pair of models by a loss, and compare their gradients."""
    plain, saving = make_pair(act)
    x = torch.randn(4, 3, 9, 7, dtype=torch.double)
    for model in (plain, saving):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            compute(model, x).backward()
    assert_same_gradients(saving, plain, rtol=1e-10, share=0, zero=1e-12)


def test_an_output_that_is_written_to_is_kept():
    train_both(nn.ReLU(), lambda model, x: model[1](model[0](x).mul_(3)).square().sum())


def test_two_readers_of_an_output_and_one_that_keeps_nothing():
    def compute(model, x):
        y = model[0](x)
        return model[1](y).square().sum() + y.square().sum() + y.sum()

    train_both(nn.SiLU(), compute)


def test_fewer_bytes_are_kept_and_all_are_freed():
    model = build("rtdetr-tiny-FLA")
    recompute_norms(model)
    kept, dropped = {}, {}
    with pytest.MonkeyPatch.context() as patch:

        def watch(x):
            packed = pack(x)
            of = kept if isinstance(packed, torch.Tensor) else dropped
            if x.dim() == 4 and not isinstance(x, nn.Parameter):  # a map
                of[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return packed

        patch.setattr(norm_recomputation, "pack", watch)
        step(model)
    assert sum(dropped.values()) > 0.1 * sum(kept.values())
    gc.collect()
    assert not [x for x in gc.get_objects() if isinstance(x, Recomputation)]


def test_hooks_see_what_the_layers_give():
    _, saving = make_pair(nn.ReLU())
    seen = []
    saving[0].act, saving[1].act = nn.ReLU(), nn.ReLU()
    saving[0].act.register_forward_hook(lambda m, x, y: seen.append(y.shape))
    saving[1].bn.register_forward_hook(lambda m, x, y: seen.append(y.shape))
    saving(torch.randn(2, 3, 9, 7, dtype=torch.double))
    assert seen == [(2, 6, 5, 4), (2, 5, 5, 4)]


def test_a_step_in_bfloat16():
    plain = build("rtdetr-tiny")
    saving = copy.deepcopy(plain)
    recompute_norms(saving)
    gradients = []
    for model in (plain, saving):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.model[0](torch.linspace(0, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)).float().square().mean()
        loss.backward()
        gradients.append([p.grad for p in model.model[0].parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.linalg.vector_norm(a - b) <= 0.02 * torch.linalg.vector_norm(a)


def test_a_second_backward_pass_is_refused():
    _, saving = make_pair(nn.ReLU())
    y = saving(torch.randn(4, 3, 9, 7, dtype=torch.double)).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="there is no second"):
        y.backward()


def test_a_norm_over_one_value_is_torchs_error():
    _, saving = make_pair(nn.ReLU())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        saving(torch.randn(1, 3, 1, 1, dtype=torch.double))


def test_evaluation_and_copies_are_those_of_the_model():
    model = build("rtdetr-tiny")
    plain = copy.deepcopy(model).eval()
    recompute_norms(model)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x)[0], plain(x)[0])
    assert not any(isinstance(m, (RecomputedConv, RecomputingModel)) for m in copy.deepcopy(model).modules())


def test_another_model_is_refused():
    with pytest.raises(Refused, match="checkpoint_activations=norms is for RT-DETR"):
        recompute_norms(YOLO("yolo11n.yaml").model)
