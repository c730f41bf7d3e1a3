"""Fold the batch norms of any network into the convolutions before them, found by running it once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ()

NORMS = nn.BatchNorm2d, nn.BatchNorm1d
TOLERANCE = 1e-4  # of the largest output, between a network and the folded one


def fold_norms(net: nn.Module, image: torch.Tensor) -> int:
    """Fold batch norms whose only input is the output of a convolution, and keep the outputs.

    A batch norm with an activation inside, as timm has, leaves its activation. If the outputs for the image change,
    nothing is folded: somebody else reads the output of a convolution.

    Args:
        net: The network, in evaluation mode.
        image: What it takes, (B, C, H, W).

    Returns:
        How many norms were folded.
    """
    pairs = find_pairs(net, image)
    before = list_tensors(run(net, image))
    kept: list[tuple[Any, ...]] = [
        (conv, conv._parameters["weight"], conv._parameters["bias"], *place) for conv, *place in pairs
    ]
    for conv, norm, parent, name in pairs:
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        parent._modules[name] = rest_of_norm(norm)
    after = list_tensors(run(net, image))
    if all((a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in zip(after, before)):
        return len(pairs)
    for conv, weight, bias, norm, parent, name in kept:
        conv._parameters.update(weight=weight, bias=bias)
        parent._modules[name] = norm
    return 0


def find_pairs(net: nn.Module, image: torch.Tensor) -> list[tuple[Any, Any, Any, str]]:
    """Find convolutions whose output goes into a batch norm; with the norm's place: its parent and its name there."""
    producer: dict[
        int, tuple[nn.Module, torch.Tensor]
    ] = {}  # by id of a tensor, which is held so that the id is its own
    calls: dict[nn.Module, int] = {}
    source: dict[nn.Module, nn.Module] = {}

    def see(m: nn.Module, inputs: tuple, output: Any) -> None:
        calls[m] = calls.get(m, 0) + 1
        if isinstance(m, nn.Conv2d):
            producer[id(output)] = m, output
        elif inputs and id(inputs[0]) in producer:
            source[m] = producer[id(inputs[0])][0]

    seen = [m for m in net.modules() if isinstance(m, (nn.Conv2d, *NORMS))]
    hooks = [m.register_forward_hook(see) for m in seen]
    try:
        run(net, image)
    finally:
        for hook in hooks:
            hook.remove()
    places = {child: (parent, name) for parent in net.modules() for name, child in parent._modules.items() if child}
    found = []
    for norm, conv in source.items():
        is_plain = type(norm).forward in (nn.BatchNorm2d.forward, nn.BatchNorm1d.forward) or has_activation(norm)
        once = calls[norm] == calls[conv] == list(source.values()).count(conv) == 1
        # A convolution that computes its weight, as of standardised weights, has a forward of its own
        if is_plain and once and norm.running_var is not None and has_plain_weight(conv):
            found.append((conv, norm, *places[norm]))
    return found


def has_plain_weight(conv: Any) -> bool:
    """Whether a convolution uses its weight as it is: torch's own, or one that only pads its input.

    One that serves no output has its weight as a buffer, and is left.
    """
    padded = type(conv).forward is not nn.Conv2d.forward
    return "weight" in conv._parameters and (not padded or type(conv).__name__ == "Conv2dSame")


def has_activation(norm: Any) -> bool:
    """Whether a batch norm is timm's, with dropout and an activation inside."""
    return type(norm).__name__ == "BatchNormAct2d" and hasattr(norm, "act")


def rest_of_norm(norm: Any) -> nn.Module:
    """Give what a folded norm leaves: its activation, or nothing."""
    return norm.act if has_activation(norm) else nn.Identity()


def run(net: nn.Module, image: torch.Tensor) -> Any:
    """Run a network for inference."""
    with torch.no_grad():
        return net(image)


def list_tensors(output: Any) -> list[torch.Tensor]:
    """List the tensors of an output."""
    found = output if isinstance(output, (list, tuple)) else [output]
    return [x for x in found if isinstance(x, torch.Tensor)]
