"""Right gradients of batch and instance norms on a CPU for a batch of one image, where torch's are wrong.

Their backward reads the gradient of one image in another order where it lies in memory channels last and the norm's
input does not, without an error: see findings/torch-norm-gradients-of-one-image.sh. Such gradients come from whatever
turns a map into tokens: RT-DETR's decoder and its attention layers.
"""

from __future__ import annotations

import torch
from torch import nn

NORMS = nn.BatchNorm2d, nn.InstanceNorm2d


def match_gradient_layout(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Let each such norm of a model get gradients that lie in memory as its output does; give the hooks."""
    return [m.register_forward_hook(make_gradient_contiguous) for m in model.modules() if isinstance(m, NORMS)]


def make_gradient_contiguous(m: nn.Module, _: tuple, out: torch.Tensor) -> None:
    """Let the gradient of one image's map lie as the map does."""
    if len(out) == 1 and out.requires_grad and out.is_contiguous():
        out.register_hook(torch.Tensor.contiguous)
