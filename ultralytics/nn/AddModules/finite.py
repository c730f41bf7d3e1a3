"""Losses and gradients that are not finite: who is to blame, and no harm to what was learned.

One such step would make every weight NaN, and the checkpoints after it worthless. It is left out instead, and the run
says which layer's output was the first that was not finite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from ultralytics.nn.AddModules.compatibility import bare
from ultralytics.utils import LOGGER

__all__ = ()

NAMED = 3  # times a run says where; the cause is mostly the same
SEARCH = 16  # steps that a gradient scaler may leave out in a row, on its way from 65,536 to 1
LIMIT = 100  # steps left out in a row, after which the run ends: nothing is learned any more


def watched(setup_train: Callable) -> Callable:
    """Wrap the trainer's `_setup_train`: each loss is looked at between the forward pass and the backward pass."""

    @functools.wraps(setup_train)
    def setup(self: Any, *args: Any) -> None:
        setup_train(self, *args)
        self.pending = 0  # batches whose gradients wait for the optimiser's step
        preprocess, scale = self.preprocess_batch, self.scaler.scale

        def keep(batch: dict) -> dict:
            heal(self)
            self.batch = preprocess(batch)
            return self.batch

        # Upstream calls the first for what it gives the model, and the second with the loss, once a batch
        self.preprocess_batch, self.scaler.scale = keep, lambda loss: scale(look(self, loss))

    return setup


def look(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """Say where a loss stopped being finite, if it did; give it back."""
    trainer.pending += 1
    if torch.isfinite(loss):
        trainer.good += 1
        trainer.mean = trainer.tloss = mean(trainer)
        return loss
    if trainer.good:
        trainer.tloss = trainer.mean
    trainer.named = getattr(trainer, "named", 0) + 1
    if trainer.named <= NAMED:
        dtype = torch.bfloat16 if trainer.args.amp == "bf16" else torch.float16
        with torch.autocast(trainer.device.type, dtype, enabled=bool(trainer.amp)):  # as the batch was run
            where = blame(bare(trainer.model), trainer.batch)
        LOGGER.error(f"The loss of epoch {trainer.epoch + 1} is {loss.item()}: {where}. The step is left out.")
    trainer.spoiled = True
    return loss


def mean(trainer: Any) -> Any:
    """Give the mean of the epoch's losses that were finite, as upstream computes it of all."""
    items, n = trainer.loss_items, trainer.good
    if n == 1:
        return items
    if not isinstance(items, dict):  # in older releases a tensor
        return (trainer.mean * (n - 1) + items) / n
    return {key: (trainer.mean[key] * (n - 1) + value) / n for key, value in items.items()}


def clipped(optimizer_step: Callable) -> Callable:
    """Wrap the trainer's `optimizer_step`, which clips gradients to a norm of upstream's, to clip them as asked for."""

    @functools.wraps(optimizer_step)
    def step(self: Any) -> None:
        clip = nn.utils.clip_grad_norm_
        with patch.object(nn.utils, "clip_grad_norm_", lambda *_, **__: clip_gradients(self, clip)):
            optimizer_step(self)

    return step


def clip_gradients(trainer: Any, clip: Callable) -> None:
    """Clip the gradient's norm to `clip_grad`; of one that is not finite, let the optimiser step on nothing.

    A gradient scaler leaves such a step out by itself: it looks for the largest scale by them.

    Args:
        trainer: The trainer, with gradients that are not scaled any more.
        clip: torch's `clip_grad_norm_`.

    Raises:
        FloatingPointError: If too many steps in a row had to be left out.
    """
    trainer.pending = 0
    heal(trainer)
    named = [(name, p) for name, p in trainer.model.named_parameters() if p.grad is not None]
    try:
        clip([p for _, p in named], trainer.args.clip_grad, error_if_nonfinite=True)  # an error changes no gradient
        trainer.left_out = 0
        return
    except RuntimeError as e:
        if "non-finite" not in str(e):
            raise
    trainer.left_out = getattr(trainer, "left_out", 0) + 1
    scaled = trainer.scaler.is_enabled()
    said = trainer.left_out - SEARCH if scaled else trainer.left_out
    if torch.isfinite(trainer.loss) and 0 < said <= NAMED:
        bad = (name for name, p in reversed(named) if not torch.isfinite(p.grad).all())
        name = next(bad, "all parameters together")
        LOGGER.error(f"The gradient of {name} is not finite, the loss is. The step is left out.")
    for _, p in named if not scaled else ():
        p.grad = None
    if trainer.left_out >= LIMIT:
        raise FloatingPointError(
            f"{LIMIT} steps in a row had a loss or a gradient that was not finite; {trainer.last} is the last good "
            "checkpoint. A smaller lr0, clip_grad=0.1 or amp=False may help."
        )


def calm(handle_nan_recovery: Callable) -> Callable:
    """Wrap the trainer's `_handle_nan_recovery`, which goes back to last.pt where the epoch's last loss is not finite.

    Its step was left out. Only an epoch without a good one is run again.
    """

    @functools.wraps(handle_nan_recovery)
    def recover(self: Any, epoch: int) -> bool:
        loss = self.loss
        if self.good and loss is not None and not torch.isfinite(loss):
            self.loss = torch.zeros_like(loss)
        try:
            return handle_nan_recovery(self, epoch)
        finally:
            self.loss = loss

    return recover


def blame(model: nn.Module, batch: dict) -> str:
    """Name the first layer of a model whose output for a batch is not finite, by running it once more.

    It runs to its end, as other processes may wait for their part of a sum in it.
    """
    names, found = {m: name for name, m in model.named_modules()}, []

    def look(m: nn.Module, _: Any, out: Any) -> None:
        if not found and not all(torch.isfinite(t).all() for t in tensors(out)):
            found.append(place(model, names[m]))

    hooks = [m.register_forward_hook(look) for m in names if m is not model]
    # The backward pass needs the model's own buffers as they are
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    devices = [batch["img"].device] if batch["img"].is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.func.functional_call(model, buffers, (batch,))
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.isfinite(batch["img"]).all():
        return "the images of the batch are not finite"
    bad = next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if bad:
        return f"the weight {bad} is not finite"
    if found:
        return f"the first output that is not finite is that of {found[0]}"
    images = ", ".join(batch.get("im_file", [])[:4])
    return f"all outputs were finite when the batch was run again; its images: {images}"


def tensors(out: Any) -> list[torch.Tensor]:
    """Give the floating-point tensors of a layer's output."""
    if isinstance(out, torch.Tensor):
        return [out] if out.is_floating_point() else []
    items = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else ()
    return [t for item in items for t in tensors(item)]


def place(model: nn.Module, name: str) -> str:
    """Say what a module is: the layer's index and class, and the module within it."""
    _, number, *inner = name.split(".") if name.startswith("model.") else ("", "", name)
    if not number:
        return name
    layer = model.model[int(number)]
    said = f"layer {layer.i}, {type(layer).__name__}"
    return f"{said}, in {'.'.join(inner)} ({type(model.get_submodule(name)).__name__})" if inner else said


def heal(trainer: Any) -> None:
    """Take the running statistics that a forward pass has spoiled from the average of the weights.

    It waits until the backward pass is over, which needs them as they are.
    """
    if not trainer.__dict__.pop("spoiled", False):
        return
    good = dict(trainer.ema.ema.named_buffers())
    for name, b in bare(trainer.model).named_buffers():
        if b.is_floating_point() and name in good and not torch.isfinite(b).all():
            b.copy_(good[name])
