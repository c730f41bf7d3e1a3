"""The floor of a case, a lower bound of its time: its matrix products and convolutions, and nothing between them.

The products are recorded from the textbook form of the formula (`naive_formulas.py`), so that a module's own code
cannot raise its floor. There are two floors: one with the kernels that torch uses for the textbook form, and one with
the fastest kernel that torch has for each product in another form or memory order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from _bench import naive_formulas
from _shared.timing import time_quickest
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling

aten = torch.ops.aten
PRODUCTS = {
    aten.convolution.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
}


class ProductRecorder(TorchDispatchMode):
    """Records each product with the shapes and types of its operands."""

    def __init__(self):
        super().__init__()
        self.products: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            operands = [(tuple(a.shape), a.dtype) if isinstance(a, torch.Tensor) else a for a in args]
            self.products.append((func, operands, kwargs or {}))
        return func(*args, **(kwargs or {}))


def record_products(module: nn.Module, x: torch.Tensor) -> list[tuple]:
    """List the products of a module's formula for an input; only shapes are computed.

    Multi-query attention counts as one fused attention, with all query heads as queries of the one key head, so that
    its scores need no memory.
    """
    recorder = ProductRecorder()

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        B, heads, N, d = q.shape
        shapes = (B, 1, heads * N, d), tuple(k.shape), tuple(v.shape)
        recorder.products.append((F.scaled_dot_product_attention, [(s, q.dtype) for s in shapes], {"scale": scale}))
        return q.new_empty(B, heads, N, v.shape[-1])

    formulas = {
        **naive_formulas.FORMULAS,
        MultiQueryAttentionLayerWithDownSampling: functools.partial(naive_formulas.mqa, attend=fused),
    }
    module = naive_formulas.naive_copy(module, formulas).eval()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), recorder:
        module(mode.from_tensor(x))
    return recorder.products


def list_kernel_forms(func: Callable, operands: list, kwargs: dict) -> list[Callable[[], torch.Tensor]]:
    """List the forms of a product: as it is, and as a convolution in channels-last order."""
    found = [lambda: func(*operands, **kwargs)]
    if func is aten.convolution.default:
        pixels, weight, *options = operands
        by_pixel = pixels.contiguous(memory_format=torch.channels_last)
        found.append(lambda: func(by_pixel, weight, *options))
    elif func in (aten.mm.default, aten.addmm.default):
        *bias, tokens, matrix = operands
        pixels = tokens.reshape(1, -1, 1, tokens.shape[1]).permute(0, 3, 1, 2)  # (1, C, N, 1)
        weight = matrix.t().contiguous()[:, :, None, None]
        found.append(lambda: F.conv2d(pixels, weight, *bias))
    return found


def make_floor_call(
    module: nn.Module,
    x: torch.Tensor,
    outputs: list[torch.Tensor],
    autocast: torch.dtype | None = None,
    fastest: bool = False,
) -> Callable[[], None]:
    """Return a function that runs a case's products on tensors of their shapes, reads its input and writes its output.

    Args:
        module: The module of the case.
        x: Its input.
        outputs: What it gives, for the sizes.
        autocast: The type of the operands, which autocast gives products; theirs without it.
        fastest: Take each product in the fastest form of `list_kernel_forms`, in place of the textbook's.
    """
    made: dict[tuple, torch.Tensor] = {}

    def tensor(operand: object) -> object:
        if not (isinstance(operand, tuple) and len(operand) == 2 and isinstance(operand[1], torch.dtype)):
            return operand
        if operand not in made:
            made[operand] = torch.randn(operand[0], device=x.device).to(autocast or operand[1])
        return made[operand]

    ways = [
        list_kernel_forms(func, [tensor(o) for o in operands], kwargs)
        for func, operands, kwargs in record_products(module, x)
    ]
    with torch.inference_mode():
        calls = [min(way, key=lambda call: time_quickest(call, x.device)) if fastest else way[0] for way in ways]
    written = [torch.empty_like(y) for y in outputs]

    def run() -> None:
        for call in calls:
            call()
        x.sum()
        for y in written:
            y.fill_(1)

    return run
