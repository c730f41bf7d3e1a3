"""Feature maps as tokens, (B, N, C): heads, and the layers that work on each token alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.layers.execution_mode import has_hooks, is_eager

__all__ = ()

DILATION = 2  # of a kernel of one pixel: see `convolve`


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Part the heads: (B, N, C) to (B, heads, N, d), a view."""
    B, N, C = x.shape
    return x.reshape(B, N, heads, C // heads).transpose(1, 2)  # unflatten() fixes the shape of an ONNX graph


def project(layer: nn.Linear | nn.Conv2d, tokens: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer or a 1x1 convolution to (B, N, C) tokens; returns (B, N, C')."""
    return project_in_parts(layer, tokens, 1)[0]


def project_in_parts(layer: nn.Linear | nn.Conv2d, tokens: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """Apply such a layer and cut its result's channels; each part has memory of its own, which lives as long as it."""
    if is_hooked(layer):
        linear = isinstance(layer, nn.Linear)
        whole = layer(tokens) if linear else layer(tokens.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        return [t.contiguous() for t in cut(whole, parts, -1)]
    biases = [None] * parts if layer.bias is None else cut(layer.bias, parts, 0)
    weights, convolution = cut(layer.weight.flatten(1), parts, 0), isinstance(layer, nn.Conv2d)
    return [multiply(tokens, weight, bias, convolution) for weight, bias in zip(weights, biases)]


def cut(x: torch.Tensor, parts: int, dim: int) -> tuple[torch.Tensor, ...]:
    """Cut a tensor into equal parts; converters to LiteRT and CoreML fail at a chunk() into one."""
    return (x,) if parts == 1 else x.chunk(parts, dim=dim)


def is_hooked(layer: nn.Module) -> bool:
    """Whether a layer must be called as a module: it was replaced, or hooks, such as profilers', want to see it."""
    forward = getattr(type(layer), "forward", None)
    replaced = forward not in (nn.Linear.forward, nn.Conv2d.forward) or "forward" in vars(layer)
    return replaced or has_hooks(layer) or bool(layer._backward_hooks or layer._backward_pre_hooks)


def multiply(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, convolution: bool = False
) -> torch.Tensor:
    """Multiply (B, N, C) tokens with (C', C) weights.

    On a CPU it is a 1x1 convolution, channels last: on AMD's processors its kernels have been twice as fast as the
    matrix product that torch's builds for x86 have for a linear layer. On a GPU what is a convolution stays one, which
    by default may use TF32 where a matrix product may not.
    """
    on_cpu = tokens.device.type == "cpu"
    if not (tokens.dtype == torch.float32 if on_cpu else convolution) or not (tokens.numel() and is_eager()):
        return F.linear(tokens, weight, bias)
    if on_cpu and weight.requires_grad and torch.is_grad_enabled() and has_slow_weight_gradients():
        return PixelProduct.apply(tokens, weight, bias)  # pyright: ignore[reportReturnType]
    return convolve(tokens, weight, bias)


def convolve(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply (B, N, C) tokens with (C', C) weights by a 1x1 convolution.

    A kernel of one pixel is the same with any dilation. With one, torch takes oneDNN's kernels on one thread, too; they
    are twice as fast with AVX-512: see findings/torch-pointwise-convolution-on-one-thread.sh.
    """
    out = F.conv2d(as_pixels(tokens), weight[:, :, None, None], bias, dilation=DILATION).permute(0, 2, 3, 1)
    return out.reshape(*tokens.shape[:2], len(weight))


def as_pixels(tokens: torch.Tensor) -> torch.Tensor:
    """View (B, N, C) tokens as a map that lies channels last, (1, C, B * N, 1)."""
    return tokens.reshape(1, -1, 1, tokens.shape[2]).permute(0, 3, 1, 2)


def has_slow_weight_gradients() -> bool:
    """Whether a 1x1 convolution's gradient of its weights takes longer than a matrix product.

    It does without AVX-512: oneDNN computes it in one thread, whatever the number. Under autocast torch chooses.
    """
    return torch.backends.cpu.get_cpu_capability() != "AVX512" and not torch.is_autocast_cpu_enabled()


class PixelProduct(torch.autograd.Function):
    """`convolve`, with the gradient of the weights as a matrix product."""

    @staticmethod
    def forward(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Map (B, N, C) to (B, N, C')."""
        return convolve(tokens, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        """Keep the tokens and the weights."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        """Give the gradients of tokens, weights and bias."""
        tokens, weight = ctx.saved_tensors
        d_tokens = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            options = [len(weight)], [1, 1], [0, 0], [DILATION] * 2, False, [0, 0], 1, [True, False, False]
            pixels = as_pixels(grad), as_pixels(tokens), weight[:, :, None, None]
            d_pixels, _, _ = torch.ops.aten.convolution_backward(*pixels, *options)
            d_tokens = d_pixels.permute(0, 2, 3, 1).reshape(tokens.shape)
        if ctx.needs_input_grad[1]:
            d_weight = grad.flatten(0, 1).t() @ tokens.flatten(0, 1)
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum(dim=(0, 1))
        return d_tokens, d_weight, d_bias
