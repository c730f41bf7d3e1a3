"""Train in the layouts and by the kernels that are fast, where results differ from Ultralytics' by rounding only.

On a CPU, maps lie in memory channels last where convolutions gain by it; on a GPU, Ultralytics does that. On one
thread, convolutions of one pixel are oneDNN's. Attention is computed as one operation, which keeps no map of weights
(https://arxiv.org/abs/2205.14135), and the tokens of the decoder lie in memory as its products read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ultralytics.fork.errors import Refused
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.fork.pointwise_convolutions import use_onednn_on_one_thread
from ultralytics.fork.rtdetr import find_head
from ultralytics.fork.training.cpu_memory import map_large_buffers
from ultralytics.nn.modules.transformer import DeformableTransformerDecoderLayer, TransformerEncoderLayer

LAYERS = DeformableTransformerDecoderLayer, TransformerEncoderLayer


class AttentionWithoutWeights(InstanceMixin):
    """Put in front of the class of an attention whose map of weights nobody reads."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Give the output, and None for the weights."""
        return super().forward(*args, **{**kwargs, "need_weights": False})  # pyright: ignore


class HeadOfContiguousTokens(InstanceMixin):
    """Put in front of the class of an RT-DETR's head, whose decoder layers would each copy strided tokens."""

    def _get_encoder_input(self, x: list[torch.Tensor]) -> tuple[torch.Tensor, list[list[int]]]:
        """Give the tokens of all maps, (B, sum of H*W, C), and the maps' sizes."""
        tokens, shapes = super()._get_encoder_input(x)  # pyright: ignore[reportAttributeAccessIssue] - of the head
        return tokens.contiguous(), shapes


def use_fast_kernels(model: Any, device: torch.device) -> None:
    """Train an RT-DETR by the fast kernels of a device.

    Raises:
        Refused: If the model is no RT-DETR.
    """
    found = find_head(model)
    if found is None:
        raise Refused("fast_kernels=True is for RT-DETR")
    mix_into(found[1], HeadOfContiguousTokens)
    for layer in [m for m in model.modules() if isinstance(m, LAYERS)]:
        for m in layer.children():
            if type(m) is nn.MultiheadAttention:
                mix_into(m, AttentionWithoutWeights)
    if device.type == "cpu":
        map_large_buffers()
        use_onednn_on_one_thread(model)
    if prefers_channels_last(device):
        model.to(memory_format=torch.channels_last)


def prefers_channels_last(device: torch.device) -> bool:
    """Whether convolutions of a training on a CPU gain by maps that lie in memory channels last.

    Without AVX-512, 1x1 convolutions lose more by it than others gain.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
