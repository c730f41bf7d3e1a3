"""Right batch-norm gradients on a CPU for a batch of one image, where torch's are wrong.

The backward of torch's batch norm (seen in 1.13 to 2.15) reads the gradient of one image in another order where it lies
in memory channels last and the norm's input does not, without an error: `findings/batch_norm_one_image.sh`. Such
gradients come from whatever turns a map into tokens: RT-DETR's decoder and its attention layers.
"""

from __future__ import annotations

import torch
from torch import nn


def match_gradient_layout(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Let each batch norm of a model get gradients that lie in memory as its output does; give the hooks."""
    return [m.register_forward_hook(make_gradient_contiguous) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def make_gradient_contiguous(m: nn.Module, _: tuple, out: torch.Tensor) -> None:
    """Let the gradient of one image's map lie as the map does."""
    if len(out) == 1 and out.requires_grad and out.is_contiguous():
        out.register_hook(torch.Tensor.contiguous)
