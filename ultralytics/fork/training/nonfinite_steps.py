"""Skip training steps whose loss or gradient is NaN or Inf, and report the first layer that produced one.

One such step would make every weight NaN, and the checkpoints after it worthless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from ultralytics.fork.functional_call import call_with
from ultralytics.fork.rtdetr import unwrap_model
from ultralytics.fork.training.accumulation import average_gradients, weigh_batch
from ultralytics.utils import LOGGER

MAX_REPORTS = 3  # of a run; the cause is mostly the same
SCALER_STEPS = 16  # steps that a gradient scaler may skip in a row, on its way from 65,536 to 1
MAX_SKIPPED_STEPS = 100  # in a row, after which the run ends: it no longer learns anything


def watch_losses(trainer: Any) -> None:
    """Look at each loss between the forward pass and the backward pass."""
    trainer.fork.accumulated_batches = 0
    preprocess, scale = trainer.preprocess_batch, trainer.scaler.scale

    def preprocess_batch(batch: dict) -> dict:
        restore_spoiled_statistics(trainer)
        trainer.fork.batch = preprocess(batch)
        return trainer.fork.batch

    # Upstream calls the first for what it gives the model, and the second with the loss, once a batch
    trainer.preprocess_batch = preprocess_batch
    trainer.scaler.scale = lambda loss: scale(weigh_batch(trainer, check_loss(trainer, loss)))


def check_loss(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """Report a loss that is not finite, and keep it out of the epoch's mean; return the loss."""
    run = trainer.fork
    run.accumulated_batches += 1
    if torch.isfinite(loss):
        run.finite_batches += 1
        run.mean_loss = trainer.tloss = mean_of_finite_losses(trainer)
        return loss
    if run.finite_batches:
        trainer.tloss = run.mean_loss
    run.reported_losses += 1
    if run.reported_losses <= MAX_REPORTS:
        dtype = torch.bfloat16 if trainer.args.amp == "bf16" else torch.float16
        with torch.autocast(trainer.device.type, dtype, enabled=bool(trainer.amp)):  # as the batch was run
            cause = find_nonfinite_output(unwrap_model(trainer.model), run.batch)
        LOGGER.error(f"The loss of epoch {trainer.epoch + 1} is {loss.item()}: {cause}. The step is skipped.")
    run.has_spoiled_statistics = True
    return loss


def mean_of_finite_losses(trainer: Any) -> Any:
    """Give the mean of the epoch's finite losses, as upstream computes it of all losses."""
    items, mean, n = trainer.loss_items, trainer.fork.mean_loss, trainer.fork.finite_batches
    if n == 1:
        return items
    if not isinstance(items, dict):  # a tensor in older releases
        return (mean * (n - 1) + items) / n
    return {key: (mean[key] * (n - 1) + value) / n for key, value in items.items()}


@contextmanager
def clip_gradients_instead(trainer: Any) -> Iterator[None]:
    """Let the trainer's `optimizer_step` clip gradients by `clip_gradients`, not to upstream's fixed norm."""
    clip = nn.utils.clip_grad_norm_
    with patch.object(nn.utils, "clip_grad_norm_", lambda *_, **__: clip_gradients(trainer, clip)):
        yield


def clip_gradients(trainer: Any, clip: Callable) -> None:
    """Clip the gradient's norm to `clip_grad`; drop a gradient that is not finite, so that the step changes nothing.

    A gradient scaler skips such a step by itself: it finds the largest scale by them.

    Args:
        trainer: The trainer, with gradients that are no longer scaled.
        clip: torch's `clip_grad_norm_`.

    Raises:
        FloatingPointError: If too many steps in a row had to be skipped.
    """
    run = trainer.fork
    average_gradients(trainer)
    run.accumulated_batches = 0
    restore_spoiled_statistics(trainer)
    named = [(name, p) for name, p in trainer.model.named_parameters() if p.grad is not None]
    try:
        clip([p for _, p in named], trainer.args.clip_grad, error_if_nonfinite=True)  # an error changes no gradient
        run.skipped_steps = 0
        return
    except RuntimeError as e:
        if "non-finite" not in str(e):
            raise
    run.skipped_steps += 1
    is_scaled = trainer.scaler.is_enabled()
    unexpected = run.skipped_steps - SCALER_STEPS if is_scaled else run.skipped_steps
    if torch.isfinite(trainer.loss) and 0 < unexpected <= MAX_REPORTS:
        bad = (name for name, p in reversed(named) if not torch.isfinite(p.grad).all())
        name = next(bad, "all parameters together")
        LOGGER.error(f"The gradient of {name} is not finite, the loss is. The step is skipped.")
    for _, p in named if not is_scaled else ():
        p.grad = None
    if run.skipped_steps >= MAX_SKIPPED_STEPS:
        raise FloatingPointError(
            f"{MAX_SKIPPED_STEPS} steps in a row had a loss or a gradient that was not finite; {trainer.last} is the "
            "last good checkpoint. A smaller lr0, clip_grad=0.1 or amp=False may help."
        )


def recover_epoch(handle_nan_recovery: Callable, trainer: Any, epoch: int) -> bool:
    """Let upstream go back to last.pt only if the epoch had no finite loss; it does so for the epoch's last loss."""
    loss = trainer.loss
    if trainer.fork.finite_batches and loss is not None and not torch.isfinite(loss):
        trainer.loss = torch.zeros_like(loss)
    try:
        return handle_nan_recovery(trainer, epoch)
    finally:
        trainer.loss = loss


def find_nonfinite_output(model: nn.Module, batch: dict) -> str:
    """Name the first layer of a model whose output for a batch is not finite, by running the batch once more.

    The forward pass runs to its end, as other processes may wait for their part of a sum in it.
    """
    names, found = {m: name for name, m in model.named_modules()}, []

    def check_output(m: nn.Module, _: Any, out: Any) -> None:
        if not found and not all(torch.isfinite(t).all() for t in floating_tensors(out)):
            found.append(describe_module(model, names[m]))

    hooks = [m.register_forward_hook(check_output) for m in names if m is not model]
    devices = [batch["img"].device] if batch["img"].is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            call_with(model, torch.clone, batch, buffers=True)  # the backward pass needs the model's own as they are
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


def floating_tensors(out: Any) -> list[torch.Tensor]:
    """List the floating-point tensors of a layer's output."""
    if isinstance(out, torch.Tensor):
        return [out] if out.is_floating_point() else []
    items = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else ()
    return [t for item in items for t in floating_tensors(item)]


def describe_module(model: Any, name: str) -> str:
    """Describe a module by its layer's index and class, and the module within it."""
    _, number, *inner = name.split(".") if name.startswith("model.") else ("", "", name)
    if not number:
        return name
    layer = model.model[int(number)]
    where = f"layer {layer.i}, {type(layer).__name__}"
    return f"{where}, in {'.'.join(inner)} ({type(model.get_submodule(name)).__name__})" if inner else where


def restore_spoiled_statistics(trainer: Any) -> None:
    """Take running statistics that a forward pass has made non-finite from the average of the weights.

    It waits until the backward pass is over, which needs them as they are.
    """
    if not trainer.fork.has_spoiled_statistics:
        return
    trainer.fork.has_spoiled_statistics = False
    averaged = dict(trainer.ema.ema.named_buffers())
    for name, b in unwrap_model(trainer.model).named_buffers():
        if b.is_floating_point() and name in averaged and not torch.isfinite(b).all():
            b.copy_(averaged[name])
