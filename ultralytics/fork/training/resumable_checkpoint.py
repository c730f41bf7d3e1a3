"""Checkpoints that a run can be resumed from to the bit, written atomically.

Upstream writes a checkpoint in place, so that a kill or a full disk leaves half a file, and it keeps only the average
of the weights, in half precision. Until the run is over, checkpoints here also hold the weights, their average and the
optimiser in full, the gradients that wait for a step, and the state of every random generator.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ultralytics.fork.atomic_write import link_atomically, write_atomically
from ultralytics.fork.checkpoints import own_checkpoints
from ultralytics.fork.checkpoints.model_to_save import check_model_to_save
from ultralytics.fork.rtdetr import unwrap_model
from ultralytics.fork.training.nonfinite_steps import restore_spoiled_statistics

TRAINING_STATE_KEY = "training"  # of a checkpoint: what a resume needs beside what upstream keeps


def save_resumable_checkpoint(save_model: Callable, trainer: Any) -> Any:
    """Let upstream's `save_model` write checkpoints atomically, with the training state in them."""
    save, state = torch.save, training_state(trainer)
    checkpoint: dict = {}
    written: list[Path] = []

    def keep(obj: dict, *_: Any, **__: Any) -> None:
        if isinstance(obj.get("ema"), torch.nn.Module):
            obj["ema"].to(memory_format=torch.contiguous_format)  # earlier releases keep the layout of the training
        if "optimizer" in state.get(TRAINING_STATE_KEY, ()):
            obj["optimizer"] = state[TRAINING_STATE_KEY]["optimizer"]  # in full, and thus once
        checkpoint.update(obj, **state)

    def write(file: Path, _: bytes) -> None:
        if written:
            link_atomically(written[0], file)
        else:  # straight from the tensors: upstream's detour over memory takes the size of the file twice
            write_atomically(file, lambda f: save(checkpoint, f))
            written.append(file)
        own_checkpoints.add(file)

    with patch.object(torch, "save", keep), patch.object(Path, "write_bytes", write):
        saved = save_model(trainer)
    if not trainer.fork.has_saved and trainer.last.exists():
        trainer.fork.has_saved = True
        check_model_to_save(trainer.ema.ema, "The next checkpoint of this run")  # what its forward passes have added
    return saved


def training_state(trainer: Any) -> dict:
    """Give what a checkpoint must hold so that the run can go on from it as if it had never stopped."""
    model = unwrap_model(trainer.model)
    if hasattr(model, "teacher_model"):
        return {}  # knowledge distillation: upstream's own resume, which rebuilds the teacher
    restore_spoiled_statistics(trainer)
    if has_ended(trainer):  # what is left is the last validation, of weights that upstream keeps
        return {TRAINING_STATE_KEY: {"epochs": trainer.epoch + 1, "done": True, "is_best": is_best(trainer)}}
    loader, run = trainer.train_loader, trainer.fork
    numpy_state: Any = np.random.get_state()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    state = {
        "epochs": trainer.epoch + 1 if run.has_begun else 0,
        "done": False,
        "is_best": is_best(trainer),
        "seconds": time.time() - trainer.train_time_start,
        "model": model.state_dict(),
        "ema": (trainer.ema.ema if run.has_begun else model).state_dict(),  # equal before the first step: kept once
        "optimizer": trainer.optimizer.state_dict(),
        "trains_new_backbone": run.trains_new_backbone,
        "pending": run.accumulated_batches,
        "objects": (run.first_objects, run.accumulated_objects),
        "gradients": gradients if run.accumulated_batches else {},
        "stopper": vars(trainer.stopper),
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(trainer.device) if trainer.device.type == "cuda" else None,
        "loader": loader.generator.get_state() if loader.generator is not None else None,
        "iterates": loader.iterator is not None,
        "buffer": list(mosaic_buffer(loader.dataset)),
    }
    return {TRAINING_STATE_KEY: state}


def is_best(trainer: Any) -> bool:
    """Whether the epoch is the best so far, of which upstream writes best.pt, too."""
    return trainer.fitness == trainer.best_fitness


def has_ended(trainer: Any) -> bool:
    """Whether a run has had all its epochs, or its patience has ended; a callback's `stop` only stops it."""
    if not trainer.stop or trainer.args.time:
        return False
    epoch, stopper = trainer.epoch + 1, trainer.stopper
    return epoch >= trainer.epochs or epoch - stopper.best_epoch >= stopper.patience


def mosaic_buffer(dataset: Any) -> list:
    """Give the indices of the images in memory that mosaics are made of."""
    buffer = getattr(dataset, "buffer", [])
    return buffer if isinstance(buffer, list) else []
