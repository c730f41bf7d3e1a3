"""Accumulate the gradients of several batches as one of the whole: each counts by the number of its objects.

RT-DETR's losses are sums over objects, divided by their number. Upstream adds the quotients of the batches; here their
weighted mean is what one batch of all images has, apart from the statistics of batch norms.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ultralytics.fork.distributed.global_batch import shared_step


def count_objects(trainer: Any) -> int:
    """Count the objects of the current batch of all processes, which weigh it alike."""
    count = 0 if shared_step.is_idle else len(trainer.fork.batch["cls"])
    if not (dist.is_available() and dist.is_initialized()):
        return count
    total = torch.tensor(count, device=trainer.device)
    dist.all_reduce(total)
    return int(total)


def weigh_batch(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """Weigh a batch's loss by its objects, relative to the first batch whose gradients wait for the same step."""
    run = trainer.fork
    if not trainer.args.loss or trainer.accumulate <= 1:
        run.first_objects = run.accumulated_objects = 0
        return loss
    objects = count_objects(trainer)
    if run.accumulated_batches <= 1:  # this one is counted
        run.first_objects = run.accumulated_objects = objects
        return loss
    run.accumulated_objects += objects
    return loss * (max(objects, 1) / max(run.first_objects, 1))


def average_gradients(trainer: Any) -> None:
    """Divide the gradients of several batches by their objects, before the step that they wait for."""
    run = trainer.fork
    if not trainer.args.loss or run.accumulated_batches <= 1:
        return
    scale = max(run.first_objects, 1) / max(run.accumulated_objects, 1)
    for p in trainer.model.parameters():
        if p.grad is not None:
            p.grad.mul_(scale)
