"""Let what layers keep of a forward in inference mode be used in training."""

from __future__ import annotations

import torch
from torch import nn


def thaw(model: nn.Module) -> None:
    """Copy tensors that layers have kept in `torch.inference_mode()`, which autograd refuses to save.

    RT-DETR's head keeps its anchors for the next image of the same size; other layers keep masks, biases or grids. A
    logger that traces the model before the first step, as TensorBoard's does, makes them in inference mode.
    """
    for layer in model.modules():
        for held in (vars(layer), layer._buffers):
            for key, value in held.items():
                if isinstance(value, torch.Tensor) and value.is_inference():
                    held[key] = value.clone()
