"""Say in one line, when something from outside ends a run, what is saved and how to go on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ultralytics.fork.data.images import UnreadableImage
from ultralytics.fork.errors import Refused, mark_as_plain
from ultralytics.fork.training.resume import AllEpochsDone, count_epochs, read_checkpoint
from ultralytics.utils import LOGGER, RANK

DISK_IS_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


@contextmanager
def explain_interruption(trainer: Any) -> Iterator[None]:
    """Explain Ctrl-C, a full disk and an image that became unreadable; finish a run that had all its epochs."""
    try:
        yield
    except AllEpochsDone:
        finish_run(trainer)
    except KeyboardInterrupt:
        if RANK in {-1, 0}:
            LOGGER.info(f"\nStopped by Ctrl-C. {describe_progress(trainer)}")
        raise
    except OSError as e:
        if e.errno not in DISK_IS_FULL:
            raise
        what = e.strerror if e.filename is None else f"{e.filename}: {e.strerror}."
        raise mark_as_plain(OSError(e.errno, f"{what} {describe_progress(trainer)}")) from None
    except UnreadableImage as e:
        raise Refused(f"{e}. {describe_progress(trainer)}") from None
    except FloatingPointError as e:
        raise mark_as_plain(e) from None


def finish_run(trainer: Any) -> None:
    """Do what upstream does after the last epoch."""
    LOGGER.info(f"All epochs of {trainer.args.model} are done; what is left is the last validation")
    trainer.epoch = trainer.epochs - 1
    trainer.final_eval()
    if RANK in {-1, 0}:
        if trainer.args.plots:
            trainer.plot_metrics()
        trainer.run_callbacks("on_train_end")


def describe_progress(trainer: Any) -> str:
    """Describe what a run that stops has saved, and how it goes on."""
    if not trainer.last.exists() or not (trainer.resume or trainer.fork.has_begun):
        return "Nothing was saved yet."
    checkpoint = read_checkpoint(trainer.last)
    if checkpoint.get("optimizer") is None:
        return f"All epochs were done; {trainer.last} and best.pt beside it are the result."
    return (
        f"{trainer.last} holds {count_epochs(checkpoint)} of {trainer.epochs} epochs; go on with: yolo train resume "
        f"model={trainer.last}"
    )
