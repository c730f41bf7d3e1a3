"""A run with other tensors leaves a network as it is, also one that shares its modules."""

import torch
from torch import nn

from ultralytics.fork.functional_call import call_on_meta, call_with, find_idle_parameters
from ultralytics.fork.pretrained.alignment import find_strides
from ultralytics.nn.tasks import RTDETRDetectionModel


class Shared(nn.Module):
    """One convolution and its norm under two names, and a parameter in two layers."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.layers = nn.ModuleList([self.one, nn.Conv2d(3, 3, 1)])
        self.layers[1].weight = self.one[0].weight
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return self.layers[1](self.layers[0](self.one(x))) * self.scale


def test_network_stays_as_it_is():
    """Every tensor is replaced in the run, and is the network's own behind it."""
    net = Shared()
    before = dict(net.named_parameters()) | dict(net.named_buffers())
    out = call_on_meta(net, torch.empty(1, 3, 8, 8, device="meta"))
    assert out.is_meta and out.shape == (1, 3, 8, 8)
    zeros = call_with(net, torch.zeros_like, torch.rand(1, 3, 8, 8), buffers=False)
    assert not zeros.any()
    after = dict(net.named_parameters()) | dict(net.named_buffers())
    assert all(after[key] is tensor for key, tensor in before.items())
    assert net.layers[0] is net.one and net.layers[1].weight is net.one[0].weight


def test_parameters_that_no_output_depends_on():
    """Also where a layer has two names, or is not run at all."""
    net = Shared()
    net.idle = nn.Linear(2, 2)
    before = dict(net.named_parameters())
    assert find_idle_parameters(net, torch.empty(1, 3, 8, 8, device="meta")) == ["idle.weight", "idle.bias"]
    assert all(dict(net.named_parameters())[key] is p and p.grad is None for key, p in before.items())


def test_statistics_of_a_second_run_are_thrown_away():
    """As a search for a layer that is not finite runs the batch again."""
    net = Shared().train()
    mean = net.one[1].running_mean.clone()
    call_with(net, torch.clone, torch.rand(4, 3, 8, 8), buffers=True)
    assert torch.equal(net.one[1].running_mean, mean)


def test_strides_of_a_model_that_shares_a_layer():
    """Its weights do not stay on the meta device."""
    model = RTDETRDetectionModel("rtdetr-tiny.yaml", verbose=False)
    model.model[3].m[2] = model.model[3].m[1]
    assert find_strides(model)[3] == 8
    assert not any(p.is_meta for p in model.parameters())
