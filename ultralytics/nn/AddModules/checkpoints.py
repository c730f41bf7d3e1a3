"""A run that loses nothing: checkpoints that are whole at any moment, and a resume that goes on to the bit.

Upstream writes a checkpoint in place, so that a kill or a full disk leaves half a file, and holds the average of the
weights in half precision only. Here it is written beside and moved over; it holds, until the run is over, the weights,
their average and the optimiser in full, the gradients not yet stepped with, and the state of every random generator.
One is there before the first step already.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ultralytics.nn.AddModules import launcher, restricted
from ultralytics.nn.AddModules.compatibility import bare
from ultralytics.nn.AddModules.datasets import Unreadable
from ultralytics.nn.AddModules.errors import Refused, plain, quoted
from ultralytics.nn.AddModules.finite import heal
from ultralytics.utils import LOGGER, RANK

__all__ = ()

KEY = "training"  # of a checkpoint: what training needs beside what upstream keeps; final checkpoints have it not
NO_SPACE = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


def write(file: str | Path, data: bytes | memoryview) -> None:
    """Write a file so that at any moment it is the old one or the new one, whole.

    Raises:
        OSError: If it cannot be written, with what is needed; the old file is as it was.
    """
    file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file():  # a pipe, /dev/null: nothing to move over
        with open(file, "wb") as f:
            f.write(data)
        return
    part = file.with_name(f".{file.name}.part")  # one name: what a kill leaves, the next write takes
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, file)
    except BaseException as e:
        part.unlink(missing_ok=True)
        if not isinstance(e, OSError):
            raise
        before = " What was saved there before is whole." if file.exists() else ""
        size = f"{len(data) / 2**20:.1f} MiB"
        raise OSError(e.errno, f"{file} ({size}) could not be saved: {os.strerror(e.errno)}.{before}") from None


def atomic(save: Callable) -> Callable:
    """Wrap `torch.save`: files are written as by `write`."""

    def to_file(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, (str, os.PathLike)):
            return save(obj, f, *args, **kwargs)
        buffer = io.BytesIO()
        save(obj, buffer, *args, **kwargs)
        again = restricted.is_own(f)  # as upstream strips a run's last checkpoints
        write(f, buffer.getbuffer())
        if again:
            restricted.own(f)

    return to_file


def whole(save_model: Callable) -> Callable:
    """Wrap the trainer's `save_model`: its files are written as by `write`, and hold all that a resume needs."""

    @functools.wraps(save_model)
    def save(self: Any) -> Any:
        into = torch.save
        state = training_state(self)
        with (
            patch.object(torch, "save", lambda obj, *args, **kwargs: into({**obj, **state}, *args, **kwargs)),
            patch.object(Path, "write_bytes", write_own),
        ):
            saved = save_model(self)
        if not getattr(self, "has_saved", False) and self.last.exists():
            self.has_saved = True
            warn_of_refusal(self.last)
        return saved

    return save


def write_own(file: Path, data: bytes) -> None:
    """Write a checkpoint of this process's training."""
    write(file, data)
    restricted.own(file)


def warn_of_refusal(file: Path) -> None:
    """Say at a run's begin, not at its end, that its checkpoints will not open elsewhere."""
    try:
        restricted.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Refused as e:
        LOGGER.warning(
            f"Other processes will refuse the checkpoints of this run: {e}. Better, keep a layer where you keep a "
            "function, and your classes in a file in ultralytics/nn/AddModules"
        )


def training_state(trainer: Any) -> dict:
    """Give what a checkpoint must hold so that the run can go on from it as if it had never stopped."""
    model = bare(trainer.model)
    if hasattr(model, "teacher_model"):
        return {}  # knowledge distillation: upstream's own resume, which rebuilds the teacher
    heal(trainer)
    loader = trainer.train_loader
    state = {
        "epochs": trainer.epoch + 1 if trainer.begun else 0,
        "done": is_over(trainer),
        "is_best": trainer.fitness == trainer.best_fitness,
        "seconds": time.time() - trainer.train_time_start,
        "model": model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "pending": trainer.pending,
        "gradients": {k: p.grad for k, p in model.named_parameters() if p.grad is not None} if trainer.pending else {},
        "stopper": vars(trainer.stopper),
        "python": random.getstate(),
        "numpy": (lambda s: (s[0], s[1].tolist(), *s[2:]))(np.random.get_state()),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(trainer.device) if trainer.device.type == "cuda" else None,
        "loader": loader.generator.get_state() if loader.generator is not None else None,
        "iterates": loader.iterator is not None,
        "buffer": list(mosaic_buffer(loader.dataset)),
    }
    return {KEY: state}


def is_over(trainer: Any) -> bool:
    """Whether a run has had all its epochs, or its patience has ended; a callback's `stop` only stops it."""
    if not trainer.stop or trainer.args.time:
        return False
    epoch, stopper = trainer.epoch + 1, trainer.stopper
    return epoch >= trainer.epochs or epoch - stopper.best_epoch >= stopper.patience


def load(file: Path) -> dict:
    """Open a checkpoint; its tensors are read when they are used."""
    return restricted.load(file, map_location="cpu", mmap=True)


def epochs_of(checkpoint: dict) -> int:
    """Tell how many epochs a checkpoint of a run has behind it."""
    return checkpoint[KEY]["epochs"] if checkpoint.get(KEY) else checkpoint["epoch"] + 1


def at_home(check_resume: Callable) -> Callable:
    """Wrap the trainer's `check_resume`: a run that was copied or moved goes on where its checkpoint is now.

    Upstream goes on in the folder that the run had first, over what is there.
    """

    @functools.wraps(check_resume)
    def check(self: Any, overrides: dict) -> None:
        check_resume(self, overrides)
        if not self.args.resume or overrides.get("save_dir"):
            return
        file, before = Path(os.path.abspath(self.args.resume)), getattr(self.args, "save_dir", None)
        if not before and load(file).get("optimizer") is None:
            refuse(file)
        for key in ("data", "distill_model", "pretrained"):
            if key not in overrides and "://" in str(getattr(self.args, key, None)):
                raise Refused(
                    f"{file} names {quoted(getattr(self.args, key), 200)} as {key}: name it by {key}= to fetch it"
                )
        home = file.parents[1]
        is_run = file.parent.name == "weights" and (home / "args.yaml").is_file()
        if is_run and home.resolve() != Path(before or home).resolve():
            LOGGER.info(f"The run was in {before}; it goes on in {home}, where its checkpoint is")
            self.args.save_dir = str(home)
        elif not is_run and not Path(before or home, "args.yaml").is_file():
            self.args.save_dir = self.args.project = self.args.name = (
                None  # there is no run where it says: a new folder
            )

    return check


def refuse_finished(model: Any) -> None:
    """Refuse a model that `resume` names and that is the end of a run, not the middle of one."""
    if (model.ckpt or {}).get("train_args") and not model.ckpt.get("optimizer"):
        refuse(Path(os.path.abspath(model.ckpt_path)))


class Finished(Refused, AssertionError):
    """A run that is over has been resumed; upstream asserts that it is not."""


def refuse(file: Path) -> None:
    """Refuse a checkpoint to resume that is the end of a run.

    Raises:
        Finished: With what to do; or `SystemExit`, where the launcher has restarted workers whose run was over.
    """
    if launcher.is_own(file.parent.parent):
        LOGGER.info(f"The run of {file} was complete when its workers ended: nothing is left to train.")
        raise SystemExit(0)
    raise Finished(
        f"{file} is the result of a training that is over: there is nothing to resume. A run that was stopped goes on "
        f"with: yolo train resume model=RUN/weights/last.pt; a new one from these weights begins with: yolo train "
        f"model={file} data=... epochs=..."
    )


class Complete(Exception):
    """A run that is resumed had all its epochs, and ended before its last validation."""


def resumable(resume_training: Callable) -> Callable:
    """Wrap the trainer's `resume_training`: keep the state for `begin`, and let a run start over its first epoch."""

    @functools.wraps(resume_training)
    def resume(self: Any, ckpt: dict | None) -> None:
        state = (ckpt or {}).get(KEY) if self.resume else None
        if state and state["done"]:
            raise Complete
        if state and not state["epochs"]:
            LOGGER.info(f"Resuming training {self.args.model} from its first epoch")
        else:
            resume_training(self, ckpt)
        self.state = state

    return resume


def begin(trainer: Any, last_opt_step: int) -> int:
    """Begin an epoch; before the first of a process, save what a new run can be resumed from, or put a state back.

    Args:
        trainer: The trainer, all of it set up.
        last_opt_step: The batch of the last optimiser step, counted from the first epoch.

    Returns:
        The same, as it was when the checkpoint was saved.
    """
    trainer.good = 0  # batches of this epoch whose loss was finite
    if getattr(trainer, "begun", False):
        return last_opt_step
    trainer.begun = False  # what is saved now has no epoch behind it
    state = trainer.__dict__.pop("state", None)
    if state is not None:
        last_opt_step = len(trainer.train_loader) * trainer.start_epoch - 1 - state["pending"]
        restore(trainer, state)
    elif trainer.args.save and RANK in {-1, 0} and not trainer.resume and training_state(trainer):
        period, trainer.save_period = trainer.save_period, 0
        trainer.save_model()
        trainer.save_period = period
    trainer.begun = True
    return last_opt_step


def restore(trainer: Any, state: dict) -> None:
    """Put a state back; the random generators last, as what goes before may draw from them."""
    model, loader = bare(trainer.model), getattr(trainer.train_loader, "loader", trainer.train_loader)
    first = RANK in {-1, 0}
    shared = loader is not trainer.train_loader  # by processes that take each batch together
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups):
        saved["fused"] = group.get("fused")  # the kernel is chosen by the device of today
    trainer.optimizer.load_state_dict(state["optimizer"])
    for name, p in model.named_parameters():
        if name in state["gradients"]:
            p.grad = state["gradients"][name].to(p.device)
    trainer.pending = state["pending"]
    patience = trainer.stopper.patience  # which may be changed on resume
    vars(trainer.stopper).update(state["stopper"])
    trainer.stopper.patience = patience
    for i in state["buffer"]:
        loader.dataset.load_image(i)
    if state["iterates"] and loader.iterator is None:
        loader.iterator = loader._get_iterator()
    if trainer.args.close_mosaic and trainer.start_epoch > trainer.epochs - trainer.args.close_mosaic:
        # Upstream will close the mosaic, as it did in this run before, and must not draw for another iterator again
        loader.reset = lambda: vars(loader).pop("reset")
    if not trainer.args.time:  # which counts from today
        trainer.train_time_start = time.time() - state["seconds"]
    if first:
        trim(trainer.csv, trainer.start_epoch)
        if state["is_best"]:  # the kill may have come between the two
            write(trainer.best, Path(trainer.args.resume).read_bytes())
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and trainer.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], trainer.device)
    if (first or shared) and state["loader"] is not None and loader.generator is not None:
        loader.generator.set_state(state["loader"])


def mosaic_buffer(dataset: Any) -> list:
    """Give the indices of the images that mosaics are made of, which are in memory."""
    buffer = getattr(dataset, "buffer", [])
    return buffer if isinstance(buffer, list) else []


def trim(results: Path, epochs: int) -> None:
    """Take from results.csv the epochs that will be run again, and what a kill has left of a line."""
    if not results.exists():
        return
    if not epochs:
        return results.unlink()
    head, *lines = results.read_text(encoding="utf-8").splitlines() or [""]
    kept = [line for line in lines if line.count(",") == head.count(",") and int(line.split(",")[0]) <= epochs]
    if kept != lines:
        write(results, "".join(f"{line}\n" for line in [head, *kept]).encode())


def guarded(do_train: Callable) -> Callable:
    """Wrap the trainer's loop: what ends it from outside is one line that says what is saved and how to go on.

    Ctrl-C, a full disk, an image that is gone.
    """

    @functools.wraps(do_train)
    def train(self: Any, *args: Any) -> None:
        try:
            return do_train(self, *args)
        except Complete:
            LOGGER.info(f"All epochs of {self.args.model} are done; what is left is the last validation")
            self.epoch = self.epochs - 1
            self.final_eval()
            if RANK in {-1, 0}:
                if self.args.plots:
                    self.plot_metrics()
                self.run_callbacks("on_train_end")
        except KeyboardInterrupt:
            if RANK in {-1, 0}:
                LOGGER.info(f"\nStopped by Ctrl-C. {kept(self)}")
            raise
        except OSError as e:
            if e.errno not in NO_SPACE:
                raise
            said = e.strerror if e.filename is None else f"{e.filename}: {e.strerror}."
            raise plain(OSError(e.errno, f"{said} {kept(self)}")) from None
        except Unreadable as e:
            raise Refused(f"{e}. {kept(self)}") from None
        except FloatingPointError as e:
            raise plain(e) from None

    return train


def kept(trainer: Any) -> str:
    """Say what a run that stops has saved, and how it goes on."""
    if not trainer.last.exists() or not (trainer.resume or getattr(trainer, "begun", False)):
        return "Nothing was saved yet."
    checkpoint = load(trainer.last)
    if checkpoint.get("optimizer") is None:
        return f"All epochs were done; {trainer.last} and best.pt beside it are the result."
    epochs = epochs_of(checkpoint)
    return (
        f"{trainer.last} holds {epochs} of {trainer.epochs} epochs; go on with: yolo train resume model={trainer.last}"
    )
