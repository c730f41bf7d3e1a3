"""Keep no output of a batch norm and its activation for the backward pass, which computes both again.

A convolution's output is the norm's input, and is kept. What the norm and the activation make of it is computed from it
again, in two passes over memory; no convolution or matrix product is computed twice. The idea is that of In-Place ABN
(https://arxiv.org/abs/1712.02616), which keeps the output instead and so excludes ReLU and SiLU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from ultralytics.fork.errors import Refused
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.fork.rtdetr import find_head
from ultralytics.fork.training.norm_gradients import make_gradient_contiguous
from ultralytics.nn.modules.conv import Conv

ACTIVATIONS = nn.Identity, nn.ReLU, nn.SiLU


class Recomputation:
    """What computes the output of a batch norm and its activation again.

    Args:
        x: The norm's input, (B, C, H, W).
        norm: The batch norm.
        act: The activation, one of `ACTIVATIONS`.
        mean, invstd: Of the batch, (C,); not used where the norm has its running statistics.
    """

    def __init__(self, x: torch.Tensor, norm: nn.BatchNorm2d, act: nn.Module, mean: torch.Tensor, invstd: torch.Tensor):
        self.x: Any = x
        self.norm, self.act, self.mean, self.invstd = norm, type(act), mean, invstd
        self.is_of_batch = norm.training
        self.normalised: torch.Tensor | None = None
        self.activated: torch.Tensor | None = None

    def normalise(self) -> torch.Tensor:
        """Compute the norm's output, which SiLU's gradient needs."""
        if self.normalised is None:
            norm, mean, var = self.norm, self.norm.running_mean, self.norm.running_var
            if self.is_of_batch:
                mean, var = self.mean, self.invstd.square().reciprocal().sub_(norm.eps)
            output, _, _ = torch.native_batch_norm(self.x, norm.weight, norm.bias, mean, var, False, 0.0, norm.eps)
            self.normalised = output
        return self.normalised

    def activate(self) -> torch.Tensor:
        """Compute the activation's output, which the next layer and ReLU's gradient need."""
        if self.activated is None:
            y = self.normalise()
            if self.act is nn.ReLU:
                y, self.normalised = y.relu_(), None
            self.activated = F.silu(y) if self.act is nn.SiLU else y
        return self.activated

    def differentiate(self, gradient: torch.Tensor) -> torch.Tensor:
        """Compute the gradient at the norm's output from that at the activation's."""
        if self.act is nn.ReLU:
            return torch.ops.aten.threshold_backward(gradient, self.activate(), 0)
        return torch.ops.aten.silu_backward(gradient, self.normalise()) if self.act is nn.SiLU else gradient

    def forget(self) -> None:
        """Free all maps."""
        self.x = self.normalised = self.activated = None


class NormActivation(torch.autograd.Function):
    """A batch norm and its activation, of which only the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, norm: Any, act: Any) -> tuple:
        """Compute activation(norm(x)), and what computes it again."""
        ctx.set_materialize_grads(False)
        output, mean, invstd = torch.native_batch_norm(
            x, weight, bias, norm.running_mean, norm.running_var, norm.training, norm.momentum, norm.eps
        )
        if norm.training:
            norm.num_batches_tracked.add_(1)
        ctx.recomputation = Recomputation(x, norm, act, mean, invstd)
        y = output.relu_() if type(act) is nn.ReLU else F.silu(output, inplace=True) if type(act) is nn.SiLU else output
        return y, ctx.recomputation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor | None, _: None) -> tuple:
        """Compute the gradients of the input, the weight and the bias.

        Raises:
            RuntimeError: If it is called twice.
        """
        if gradient is None:
            return (None,) * 5
        saved, norm = ctx.recomputation, ctx.recomputation.norm
        if saved.x is None:
            raise RuntimeError(
                "checkpoint_activations=norms frees its maps in the first backward pass; there is no second"
            )
        if saved.x.is_contiguous(memory_format=torch.channels_last):  # a gradient in another layout is slow to read
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        else:
            gradient = gradient.contiguous()
        found = torch.ops.aten.native_batch_norm_backward(
            *(saved.differentiate(gradient), saved.x, norm.weight, norm.running_mean, norm.running_var),
            *(saved.mean, saved.invstd, saved.is_of_batch, norm.eps, list(ctx.needs_input_grad[:3])),
        )
        saved.forget()
        return *found, None, None


class RecomputedConv(InstanceMixin):
    """Put in front of the class of a `Conv` whose output is computed again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply convolution, norm and activation to a map of shape (B, C, H, W)."""
        conv: Any = self
        if not can_recompute(conv):
            return super().forward(x)  # pyright: ignore[reportAttributeAccessIssue] - of the Conv
        x = conv.conv(x)
        if conv.bn.training and x.numel() == x.shape[1]:
            return conv.act(conv.bn(x))  # torch's error for a norm over one value
        y, recomputation = NormActivation.apply(x, conv.bn.weight, conv.bn.bias, conv.bn, conv.act)  # type: ignore
        y.recomputed = recomputation, y._version
        return y


def can_recompute(conv: Any) -> bool:
    """Whether a Conv is trained, plainly, and nothing looks at what its norm and its activation give."""
    norm, act = conv.bn, conv.act
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and type(act) in ACTIVATIONS
        and not (act._forward_hooks or act._forward_pre_hooks or norm._forward_pre_hooks)
        and all(hook is make_gradient_contiguous for hook in norm._forward_hooks.values())
    )


class RecomputingModel(InstanceMixin):
    """Put in front of the class of a model in which no layer keeps an output that is computed again."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        with saved_tensors_hooks(pack, unpack):
            return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue] - of the model


def pack(x: torch.Tensor) -> Any:
    """Give what computes a tensor again in its place; one that was written to since is kept."""
    recomputation, version = getattr(x, "recomputed", (None, 0))
    if recomputation is not None and version == x._version:
        return recomputation
    return x.detach()  # see findings/torch-saved-tensors-hooks-that-keep-the-graph.sh


def unpack(packed: Any) -> torch.Tensor:
    """Give the tensor of `pack`."""
    return packed.activate() if isinstance(packed, Recomputation) else packed


def recompute_norms(model: Any) -> None:
    """Let an RT-DETR compute the outputs of its norms and activations again in the backward pass.

    Raises:
        Refused: If the model is no RT-DETR.
    """
    if not find_head(model):
        raise Refused("checkpoint_activations=norms is for RT-DETR")
    mix_into(model, RecomputingModel)
    for m in model.modules():
        if isinstance(m, Conv) and type(m).forward is Conv.forward:
            mix_into(m, RecomputedConv)
