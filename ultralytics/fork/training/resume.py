"""Resume a run as if it had never stopped: to the bit on a CPU, and in the folder where its checkpoint is."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.checkpoints import load
from ultralytics.fork.distributed import run_folder
from ultralytics.fork.errors import Refused, quote
from ultralytics.fork.rtdetr import unwrap_model
from ultralytics.fork.training.augmentation_epochs import begin_planned_epoch
from ultralytics.fork.training.resumable_checkpoint import TRAINING_STATE_KEY, training_state
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK


class FinishedRun(Refused, AssertionError):
    """A run that is over cannot be resumed; upstream asserts that it is not."""


class AllEpochsDone(Exception):
    """A run that is resumed had all its epochs, and ended before its last validation."""


def read_checkpoint(file: Path) -> dict:
    """Open a checkpoint; its tensors are read when they are used."""
    return load.load_checkpoint(file, map_location="cpu", mmap=True)


def count_epochs(checkpoint: dict) -> int:
    """Give how many epochs a checkpoint of a run has behind it."""
    return checkpoint[TRAINING_STATE_KEY]["epochs"] if checkpoint.get(TRAINING_STATE_KEY) else checkpoint["epoch"] + 1


def stay_in_checkpoint_folder(trainer: Any, overrides: dict) -> None:
    """Let a run that was copied or moved go on where its checkpoint is now.

    Upstream goes on in the folder that the run had first, over what is there.

    Raises:
        Refused: If the checkpoint names a data set or a model elsewhere, which would be fetched.
        FinishedRun: If it is the end of a run.
    """
    if not trainer.args.resume:
        return
    file, before = Path(os.path.abspath(trainer.args.resume)), getattr(trainer.args, "save_dir", None)
    checkpoint = read_checkpoint(file)
    trainer.fork.trains_new_backbone = (checkpoint.get(TRAINING_STATE_KEY) or {}).get("trains_new_backbone", False)
    if overrides.get("save_dir"):
        return
    if not before and checkpoint.get("optimizer") is None:
        refuse_finished_checkpoint(file)
    for key in ("data", "distill_model", "pretrained"):
        if key not in overrides and "://" in str(getattr(trainer.args, key, None)):
            named = quote(getattr(trainer.args, key), 200)
            raise Refused(f"{file} names {named} as {key}: name it by {key}= to fetch it")
    folder = file.parents[1]
    is_run = file.parent.name == "weights" and (folder / "args.yaml").is_file()
    if is_run and folder.resolve() != Path(before or folder).resolve():
        LOGGER.info(f"The run was in {before}; it goes on in {folder}, where its checkpoint is")
        trainer.args.save_dir = str(folder)
    elif not is_run and not Path(before or folder, "args.yaml").is_file():
        # There is no run in the folder that the checkpoint names: take a new one
        trainer.args.save_dir = trainer.args.project = trainer.args.name = None


def refuse_finished_run(model: Any) -> None:
    """Refuse a model that `resume` names and that is the end of a run, not the middle of one."""
    if (model.ckpt or {}).get("train_args") and not model.ckpt.get("optimizer"):
        refuse_finished_checkpoint(Path(os.path.abspath(model.ckpt_path)))


def refuse_finished_checkpoint(file: Path) -> None:
    """Refuse to resume from a checkpoint that is the end of a run.

    Raises:
        FinishedRun: With what to do; or `SystemExit`, where the launcher has restarted workers whose run was over.
    """
    if run_folder.is_own_run(file.parent.parent):
        LOGGER.info(f"The run of {file} was complete when its workers ended: nothing is left to train.")
        raise SystemExit(0)
    raise FinishedRun(
        f"{file} is the result of a training that is over: there is nothing to resume. Resume a run that was stopped "
        f"with: yolo train resume model=RUN/weights/last.pt. Begin a new run from these weights with: yolo train "
        f"model={file} data=... epochs=..."
    )


def keep_training_state(resume_training: Callable, trainer: Any, checkpoint: dict | None) -> None:
    """Keep the state for `begin_epoch`, and let a run start its first epoch again.

    Raises:
        AllEpochsDone: If only the last validation is left.
    """
    state = (checkpoint or {}).get(TRAINING_STATE_KEY) if trainer.resume else None
    if state and state["done"]:
        restore_best(trainer, state)
        raise AllEpochsDone
    if state and not state["epochs"]:
        LOGGER.info(f"Resuming training {trainer.args.model} from its first epoch")
    else:
        resume_training(trainer, checkpoint)
    trainer.fork.resumed = state
    if trainer.resume and "objects" not in (state or {}):  # begun where `box` and `cls` did nothing
        trainer.args.box, trainer.args.cls = DEFAULT_CFG_DICT["box"], DEFAULT_CFG_DICT["cls"]


def begin_epoch(trainer: Any, last_opt_step: int) -> int:
    """Begin an epoch; before the first one of a process, restore the state, or save one that a new run can resume from.

    Args:
        trainer: The trainer, all of it set up.
        last_opt_step: The batch of the last optimiser step, counted from the first epoch.

    Returns:
        The same, as it was when the checkpoint was saved.
    """
    run = trainer.fork
    run.finite_batches = 0
    begin_planned_epoch(trainer)
    if all(p.grad is None for p in trainer.model.parameters()):  # upstream drops those of an epoch that begins again
        run.accumulated_batches = 0
    if run.has_begun:
        return last_opt_step
    state, run.resumed = run.resumed, None
    if state is not None:
        last_opt_step = len(trainer.train_loader) * trainer.start_epoch - 1 - state["pending"]
        restore_training_state(trainer, state)
    elif trainer.args.save and RANK in {-1, 0} and not trainer.resume and training_state(trainer):
        period, trainer.save_period = trainer.save_period, 0
        trainer.save_model()
        trainer.save_period = period
    run.has_begun = True
    return last_opt_step


def restore_training_state(trainer: Any, state: dict) -> None:
    """Restore weights, optimiser, loader and files; the random generators last, as the rest may draw from them."""
    model, loader = unwrap_model(trainer.model), getattr(trainer.train_loader, "loader", trainer.train_loader)
    is_first = RANK in {-1, 0}
    is_shared = loader is not trainer.train_loader  # by processes that take each batch together
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups):
        saved["fused"] = group.get("fused")  # today's device chooses the kernel
    trainer.optimizer.load_state_dict(state["optimizer"])
    for name, p in model.named_parameters():
        if name in state["gradients"]:
            p.grad = state["gradients"][name].to(p.device)
    trainer.fork.accumulated_batches = state["pending"]
    trainer.fork.first_objects, trainer.fork.accumulated_objects = state.get("objects", (0, 0))
    patience = trainer.stopper.patience  # the user may change it on resume
    vars(trainer.stopper).update(state["stopper"])
    trainer.stopper.patience = patience
    restore_loader(trainer, loader, state)
    if not trainer.args.time:  # which counts from today
        trainer.train_time_start = time.time() - state["seconds"]
    if is_first:
        trim_results(trainer.csv, trainer.start_epoch)
        restore_best(trainer, state)
        restore_generators(trainer, state)
    if (is_first or is_shared) and state["loader"] is not None and loader.generator is not None:
        loader.generator.set_state(state["loader"])


def restore_best(trainer: Any, state: dict) -> None:
    """Write best.pt, if the last epoch was the best: the kill may have come between the two files."""
    if RANK in {-1, 0} and state["is_best"]:
        write_atomically(trainer.best, Path(trainer.args.resume).read_bytes())


def restore_loader(trainer: Any, loader: Any, state: dict) -> None:
    """Fill the mosaic's memory again, and let the loader stand where it stood."""
    lost = [i for i in state["buffer"] if i >= len(loader.dataset)]
    if lost:
        LOGGER.warning(
            f"The data set has {len(loader.dataset)} images, and had more when the run stopped: it goes on with these, "
            "and not to the bit as it would have gone on"
        )
    for i in state["buffer"]:
        if i < len(loader.dataset):
            loader.dataset.load_image(i)
    if state["iterates"] and loader.iterator is None:
        loader.iterator = loader._get_iterator()
    if trainer.args.close_mosaic and trainer.start_epoch > trainer.epochs - trainer.args.close_mosaic:
        # Upstream will close the mosaic, as it did in this run before, and must not draw for another iterator again
        loader.reset = lambda: vars(loader).pop("reset")


def restore_generators(trainer: Any, state: dict) -> None:
    """Restore the states of the random generators of Python, numpy, torch and the device."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], trainer.device)


def trim_results(results: Path, epochs: int) -> None:
    """Remove from results.csv the epochs that will be run again, and the part of a line that a kill has left."""
    if not results.exists():
        return
    if not epochs:
        return results.unlink()
    head, *lines = results.read_text(encoding="utf-8").splitlines() or [""]
    done = [line for line in lines if line.count(",") == head.count(",") and int(line.split(",")[0]) <= epochs]
    if done != lines:
        write_atomically(results, "".join(f"{line}\n" for line in [head, *done]).encode())
