"""Run a network with other tensors than its own, and leave it as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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
