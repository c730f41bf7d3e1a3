"""What each epoch of a training does to its images: all of the augmentation, a part of it, or none.

The official training of RT-DETRv2 ends with epochs whose images are not augmented, `no_aug_epochs`. DEIM
(`aug_policy=deim`, https://arxiv.org/abs/2412.04234) also begins with four of them, and mixes images, by mosaics and
mixup, until the epoch in which its learning rate begins to fall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ultralytics.utils import LOGGER, RANK

DEIM_PLAIN_EPOCHS = 4  # epochs without augmentation


@dataclass(frozen=True)
class EpochPlan:
    """What an epoch does to its images."""

    augments: bool = True  # distorts, zooms out and crops
    mixes: bool = True  # by mosaics and mixup
    resizes: bool = True  # batches to several sizes


def count_flat_epochs(epochs: int, no_aug_epochs: int) -> int:
    """Give the number of epochs before DEIM's learning rate begins to fall, and its images are no longer mixed."""
    return max(min(DEIM_PLAIN_EPOCHS + epochs // 2, epochs - no_aug_epochs), 0)


def plan_epoch(args: Any, epoch: int, epochs: int) -> EpochPlan:
    """Plan an epoch of a training, counted from 0."""
    if epoch >= epochs - args.no_aug_epochs:
        return EpochPlan(augments=False, mixes=False, resizes=False)
    if args.aug_policy is None:
        return EpochPlan(mixes=False)
    if epoch < DEIM_PLAIN_EPOCHS:
        return EpochPlan(augments=False, mixes=False)
    return EpochPlan(mixes=epoch < count_flat_epochs(epochs, args.no_aug_epochs))


def begin_planned_epoch(trainer: Any) -> None:
    """Let images be augmented as the trainer's epoch has it; workers are started anew where that changes."""
    loader = getattr(trainer.train_loader, "loader", trainer.train_loader)
    if not hasattr(loader.dataset, "plan"):
        return
    plan = plan_epoch(trainer.args, trainer.epoch, trainer.epochs)
    if plan == loader.dataset.plan:
        return
    loader.dataset.plan = plan
    if RANK in {-1, 0} and trainer.fork.has_begun:
        what = "is augmented" if plan.augments else "is no longer augmented"
        what += ", and mixes images" if plan.mixes and (trainer.args.mosaic or trainer.args.mixup) else ""
        LOGGER.info(f"Epoch {trainer.epoch + 1} {what}")
    if loader.num_workers and loader.iterator is not None:  # they have copies of the data set
        loader.reset()
