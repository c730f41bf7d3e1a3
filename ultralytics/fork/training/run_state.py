"""All state that this fork keeps on upstream's trainer, as the one object `trainer.fork`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class RunState:
    """State of one training in this process; what a resume needs of it goes into the checkpoint."""

    has_begun: bool = False  # the first epoch of this process has begun
    has_saved: bool = False  # a checkpoint was written, and tried as another process would open it
    has_pretrained_weights: bool = False
    trains_new_backbone: bool = False  # all of it, at the full rate, where the recipe is for a pretrained one
    teacher: str | None = None  # the file that `distill_model=` names
    is_complete: bool = False  # the launcher restarted workers whose run was over
    resumed: dict | None = None  # training state of the checkpoint, until the first epoch begins

    batch: dict | None = None  # the current one, as the model gets it
    finite_batches: int = 0  # of this epoch, with a finite loss
    mean_loss: Any = None  # of these
    accumulated_batches: int = 0  # batches whose gradients wait for the optimiser's step
    first_objects: int = 0  # of the first of these batches
    accumulated_objects: int = 0  # of all of them
    reported_losses: int = 0  # non-finite losses that were reported with their layer
    skipped_steps: int = 0  # in a row
    has_spoiled_statistics: bool = False  # a forward pass has put NaN or Inf into running statistics
