"""Learning rates of the official trainings: a warm-up counted in steps, and DEIM's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from ultralytics.fork.training.augmentation_epochs import count_flat_epochs
from ultralytics.utils import LOGGER, RANK

LONG_WARM_UP = 0.2  # of a run's steps, from which on a line says so


def flat_cosine(epochs: int, no_aug_epochs: int, final: float) -> Callable[[int], float]:
    """Give DEIM's factor of the learning rate by epoch: 1, then down a cosine to `final` where augmentation ends."""
    flat, end = count_flat_epochs(epochs, no_aug_epochs), epochs - no_aug_epochs

    def factor(epoch: int) -> float:
        if epoch < flat:
            return 1.0
        if epoch >= end:
            return final
        return final + (1 - final) * (1 + math.cos(math.pi * (epoch - flat) / (end - flat))) / 2

    return factor


def choose_schedule(trainer: Any) -> None:
    """Put the schedule that `lr_schedule` names in place of upstream's."""
    args = trainer.args
    if args.lr_schedule is None:
        return
    trainer.lf = flat_cosine(trainer.epochs, args.no_aug_epochs, args.lrf)
    trainer.scheduler = LambdaLR(trainer.optimizer, lr_lambda=trainer.lf)


def count_warm_up_in_steps(trainer: Any, batches: int) -> None:
    """Give upstream the warm-up of `warmup_steps` in the epochs, of so many batches, in which it counts."""
    if trainer.args.warmup_steps is not None:
        trainer.args.warmup_epochs = trainer.args.warmup_steps / batches


def warn_of_long_warm_up(trainer: Any) -> None:
    """Warn of a `warmup_steps` that is a large part of the run."""
    args, steps = trainer.args, len(trainer.train_loader) * trainer.epochs
    if args.warmup_steps is not None and args.warmup_steps > LONG_WARM_UP * steps and RANK in {-1, 0}:
        LOGGER.warning(
            f"warmup_steps={args.warmup_steps} is {args.warmup_steps / steps:.0%} of this run's {steps} steps; the "
            f"official 2000 are for 530,000. warmup_steps={max(steps // 100, 1)} is one in a hundred."
        )


def square_warm_up(trainer: Any) -> None:
    """Let the learning rates of a warm-up rise with the square of the steps, as DEIM's do; upstream's rise evenly."""
    if trainer.args.lr_schedule is None:
        return
    preprocess = trainer.preprocess_batch

    def preprocess_batch(batch: dict) -> dict:  # called once a batch, after upstream has set its learning rates
        for group in trainer.optimizer.param_groups:
            full = group["initial_lr"] * trainer.lf(trainer.epoch)
            if 0 < group["lr"] < full:
                group["lr"] *= group["lr"] / full
        return preprocess(batch)

    trainer.preprocess_batch = preprocess_batch
