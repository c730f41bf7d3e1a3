"""Right gradients of batch and instance norms on a CPU for a batch of one image, where torch's are wrong.

Their backward reads the gradient of one image in another order where it lies in memory channels last and the norm's
input does not, without an error: see findings/torch-norm-gradients-of-one-image.sh. Such gradients come from whatever
turns a map into tokens: RT-DETR's decoder and its attention layers. For a map that lies channels last, a gradient in
another layout is right, and slow.
"""

from __future__ import annotations

import torch
from torch import nn

NORMS = nn.BatchNorm2d, nn.InstanceNorm2d


def match_gradient_layout(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Let each such norm of a model get gradients that lie in memory as its output does; give the hooks."""
    return [m.register_forward_hook(make_gradient_contiguous) for m in model.modules() if isinstance(m, NORMS)]


def make_gradient_contiguous(m: nn.Module, _: tuple, out: torch.Tensor) -> None:
    """Let the gradient of one image's map, or of a map that lies channels last, lie as the map does."""
    if not out.requires_grad:
        return
    if out.is_contiguous():
        if len(out) == 1:
            out.register_hook(torch.Tensor.contiguous)
    elif out.dim() == 4 and out.is_contiguous(memory_format=torch.channels_last):
        out.register_hook(make_channels_last)


def make_channels_last(gradient: torch.Tensor) -> torch.Tensor:
    """Lay a gradient channels last; torch reads it several times as fast beside a map that lies so."""
    return gradient.contiguous(memory_format=torch.channels_last)
