"""Run a network with other tensors than its own, and leave it as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


def call_with(net: nn.Module, replace: Callable[[torch.Tensor], torch.Tensor], *inputs: Any, buffers: bool) -> Any:
    """Run a network with its tensors replaced.

    Each tensor is named once for each module that holds it. `torch.func.functional_call` sets a tensor once for each
    name, and puts the replacement back as the original where one module has two names.

    Args:
        net: The network.
        replace: Gives what takes the place of a tensor.
        inputs: Of the network.
        buffers: Whether only buffers are replaced, and no parameters.
    """
    held = {
        f"{prefix}.{name}".lstrip("."): tensor
        for prefix, m in net.named_modules()
        for name, tensor in (m._buffers if buffers else {**m._parameters, **m._buffers}).items()
        if tensor is not None
    }
    tensors = {name: replace(tensor) for name, tensor in held.items()}
    return torch.func.functional_call(net, tensors, inputs, tie_weights=False)


def call_on_meta(net: nn.Module, *inputs: torch.Tensor) -> Any:
    """Run a network on the meta device, where only shapes are computed."""
    return call_with(net, lambda tensor: tensor.detach().to("meta"), *inputs, buffers=False)


def find_idle_parameters(net: nn.Module, *inputs: torch.Tensor) -> list[str]:
    """Find the parameters that a network's outputs do not depend on.

    Args:
        net: The network, whose outputs are tensors, or None.
        inputs: Of the network, on the meta device.

    Returns:
        Their names.
    """
    replaced: dict[int, torch.Tensor] = {}

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in replaced:
            replaced[id(tensor)] = tensor.detach().to("meta").requires_grad_(isinstance(tensor, nn.Parameter))
        return replaced[id(tensor)]

    with torch.enable_grad():
        outputs = [x for x in tree_leaves(call_with(net, replace, *inputs, buffers=False)) if x is not None]
        parameters = dict(net.named_parameters())
        wanted = [replaced[id(p)] for p in parameters.values()]
        found = torch.autograd.grad([x.sum() for x in outputs], wanted, allow_unused=True)
    return [name for name, gradient in zip(parameters, found) if gradient is None]
