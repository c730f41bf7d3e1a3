"""The global batch: each process takes its share of the batches that one process would draw, the last short one too.

RT-DETR's authors train with synchronised batch norms and divide the losses by the number of boxes of all processes.
Here one step of all processes equals the step that one process takes with the whole batch: the same images, statistics
and losses (`reductions`), the same denoising queries (`denoising`). What differs is the order of sums. Augmentation and
dropout are each process's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ultralytics.fork.distributed.elastic_launch import WORLD_SIZE, broadcast_result
from ultralytics.utils import RANK

SEED_STEP = 0x9E3779B97F4A7C15  # keeps the seeds of processes and epochs apart


@dataclass
class SharedStep:
    """Whether the processes' steps are parts of one, and whether this process has a share of the current one.

    The last batch may have fewer images than there are processes. A process without one goes through the step with an
    image that counts for nothing, since the sums of the other processes wait for it.
    """

    is_active: bool = False
    is_idle: bool = False


shared_step = SharedStep()


@contextlib.contextmanager
def share_steps() -> Iterator[None]:
    """Let all processes take each step together."""
    shared_step.is_active = True
    try:
        yield
    finally:
        shared_step.is_active = shared_step.is_idle = False


def begin_step(batch: dict) -> None:
    """Note whether the batch that a `ShareLoader` yields is a stand-in."""
    shared_step.is_idle = batch.pop("idle", False)


def seed_dropout_by_rank(seed: int, epoch: int) -> None:
    """Let dropout and the like differ between the processes; the first one goes on as one process does."""
    if RANK > 0:
        torch.manual_seed(seed + (epoch + 1) * SEED_STEP % 2**62 + RANK)


def share_of_batch(images: int, rank: int = RANK) -> tuple[int, int]:
    """Return the [start, end) slice of a batch for one rank.

    If the batch does not divide evenly, the first ranks get one image more.
    """
    least, more = divmod(images, WORLD_SIZE)
    start = rank * least + min(rank, more)
    return start, start + least + (rank < more)


class ShareBatchSampler:
    """Batch sampler that yields this process's share of each batch of indices, or one index where it has none."""

    def __init__(self, batches: Any):
        self.batches = batches  # the batch sampler of one process

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[slice(*share_of_batch(len(batch)))] or batch[:1]


class ShareSampler:
    """Sampler over this process's images in their order; its length is that of the whole data set.

    Upstream asks it for the images that the validator sees, for the size of the last batch of all, and to shuffle by
    epoch, which the generator does here.
    """

    def __init__(self, batches: Any):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches.sampler)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from batch[slice(*share_of_batch(len(batch)))]

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all processes draw each epoch's order from generators in the same state."""


class ShareLoader:
    """Loader of this process's shares, made from a loader of whole batches; it marks a batch without a share.

    Args:
        loader: Upstream's loader of one process; every other attribute is its own.
    """

    def __init__(self, loader: Any):
        batches = loader.batch_sampler.sampler  # behind upstream's endless repetition
        loader.batch_sampler.sampler = ShareBatchSampler(batches)
        loader.worker_init_fn = seed_worker_by_rank
        loader.generator.set_state(broadcast_result(loader.generator.get_state))  # or they would cut different batches
        self.loader, self.sampler = loader, ShareSampler(batches)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet, in a copy
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for i, batch in enumerate(self.loader):
            start, end = share_of_batch(min(self.batch_size, len(self.sampler) - i * self.batch_size))
            batch["idle"] = start == end
            if batch["idle"]:
                batch.update({k: batch[k][:0] for k in ("cls", "bboxes", "batch_idx")})
            yield batch


def seed_worker_by_rank(worker_id: int) -> None:
    """Seed a loader's worker as upstream does, but differently in each process, or they would augment alike."""
    from ultralytics.data.build import seed_worker

    torch.manual_seed(torch.initial_seed() + SEED_STEP * RANK % 2**62)
    seed_worker(worker_id)
