"""`model.fuse()` folds the norms of added modules and changes no result."""

import copy

import pytest
import torch
from conftest import MODELS, TINY, mark_nightly
from torch import nn

from ultralytics.fork.export.compare_detections import Bounds, compare_detections
from ultralytics.fork.export.verification import run_reference
from ultralytics.nn.AddModules.EMO import EMO_1M
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling
from ultralytics.nn.tasks import RTDETRDetectionModel


def with_statistics(module: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that folding has to carry over."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(std=0.1)
    return module.eval()


def added(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if ".AddModules." in type(m).__module__]


def found_again(model: nn.Module, fused: nn.Module, x: torch.Tensor) -> bool:
    """Whether a fused model finds the same boxes, to 1e-4 of the image, with the same scores, to 1e-4."""
    bounds = Bounds(box=1e-4, side=0.0, score=1e-4, share=1.0, counts=0.0, tie=1e-5, end=1e-5, least=0.95)
    expected, tied = run_reference(model, x, bounds)
    with torch.no_grad():
        return compare_detections("random", expected, fused(x)[0], (1, 1), bounds, tied).is_within(bounds)


@pytest.mark.parametrize(
    "name", mark_nightly(MODELS, {*TINY, "rtdetr-l-HGBlock_Biformer", "rtdetr-ResNetLayer_MQA_SR"})
)
def test_fused_equals_unfused(name):
    """What enters the decoder, and what is detected."""
    model = with_statistics(RTDETRDetectionModel(f"{name}.yaml", verbose=False))
    fused = copy.deepcopy(model).fuse(verbose=False)
    x, inputs = torch.rand(1, 3, 128, 96), []
    for m in (model, fused):
        m.model[-1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        with torch.no_grad():
            m(x)
    for a, b in zip(*inputs):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()
    assert found_again(model, fused, x)
    left = [m for part in added(fused) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == []


@pytest.mark.parametrize(
    "module, channels",
    [(lambda: EMO_1M(), 3), (lambda: MultiQueryAttentionLayerWithDownSampling(16, 2, 8, 8, 2, 2, 2), 16)],
)
def test_a_module_fuses_alone_and_twice(module, channels):
    module = with_statistics(module())
    x = torch.rand(1, channels, 32, 48)
    with torch.no_grad():
        before = module(x)
        for _ in range(2):
            for m in list(module.modules()):
                getattr(m, "fuse", lambda: None)()
        after = module(x)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


def test_a_state_dict_taken_before_stays():
    """It shares the memory of the parameters, which folding must not write to."""
    module = with_statistics(EMO_1M())
    state = module.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for m in list(module.modules()):
        getattr(m, "fuse", lambda: None)()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
