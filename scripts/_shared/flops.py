"""Count a model's floating-point operations, attention included, without running it."""

from __future__ import annotations

import contextlib
import copy
import sys
from unittest.mock import patch

import thop
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw


def count_gflops(model: nn.Module, imgsz: int | tuple[int, int] = 640) -> float:
    """Count the GFLOPs (10^9 multiplications and additions) of one image in eval mode with torch's `FlopCounterMode`.

    The figure in a model's summary comes from hooks on known modules; what it misses depends on the release (all
    attention on the tutorials'). This function counts operators. Tensors are fake, so no size is too large.

    Args:
        model: A detection model; it is not changed.
        imgsz: Side of the square image, or its height and width.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return count_flops(model, (1, 3, height, width)) / 1e9


def count_published_gflops(model: nn.Module, imgsz: int | tuple[int, int] = 640) -> float:
    """Count the GFLOPs of one image by the rules of the profiler with which the published tables were made.

    That profiler counts convolutions, linear layers, norms and the like by hooks. It misses what attention computes in
    functions or in `nn.MultiheadAttention`, and the first convolution of bi-level routing attention, which the
    published code called without its hooks. Only this figure is comparable with those of papers and tutorials.

    Args:
        model: A detection model; it is not changed.
        imgsz: Side of the square image, or its height and width.
    """
    model = copy.deepcopy(model).eval()
    call_as_published(model)
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    x = torch.zeros(1, 3, height, width)
    with patch.object(sys.modules["thop.profile"], "_COUNTS_FUNCTIONS", False, create=True):
        products, _ = thop.profile(model, [x], {nn.MultiheadAttention: lambda *_: None}, verbose=False)
    return 2 * products / 1e9


def call_as_published(model: nn.Module) -> None:
    """Call a model's convolutions as the published code did, so that the profiler counts the same ones.

    The published bi-level routing attention ran its first convolution as `self.qkv_linear.forward(x)`. Such a call
    skips the hooks with which thop counts, so the published GFLOPs do not include it.
    """
    for m in model.modules():
        if isinstance(m, BiLevelRoutingAttention_nchw):
            # An attribute of the instance shadows the registered module, whose parameters are still counted
            vars(m)["qkv_linear"] = m.qkv_linear.forward


def count_flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Count a module's multiplications and additions for an input shape, as `count_gflops` does."""
    module = copy.deepcopy(module).eval()
    for tensors in (FakeTensorMode(allow_non_fake_inputs=True), contextlib.nullcontext()):
        try:
            # The counter knows matrix products, not every fused attention
            plain = sdpa_kernel(SDPBackend.MATH)
            with tensors, torch.no_grad(), FlopCounterMode(display=False) as counter, plain:
                module(torch.zeros(shape))
            break
        except DataDependentOutputException:  # YOLO's head reads the values of its strides
            continue
    return counter.get_total_flops()
