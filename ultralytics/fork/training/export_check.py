"""Export a model before its training is paid for, `export_check=`: one that cannot be exported is told at once."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ultralytics.fork.errors import Refused, quote
from ultralytics.utils import LOGGER, RANK


def try_exports(trainer: Any) -> None:
    """Export the model to each format that `export_check=` names, and throw the files away.

    The exporter runs what it writes and compares it with PyTorch, where it can. Nothing of the training changes.

    Raises:
        Refused: With the format and what the exporter says.
    """
    formats = getattr(trainer.args, "export_check", None)
    if not formats or trainer.resume or RANK not in {-1, 0}:
        return
    for form in str(formats).replace(" ", "").split(","):
        with keep_generators(), tempfile.TemporaryDirectory() as folder:
            try:
                export(trainer, form, Path(folder))
            except Exception as e:  # of any exporter
                raise Refused(
                    f"export_check={form}: {type(e).__name__}: {quote(e, 300)}. The training has not begun; leave "
                    "export_check out to train a model that is not exported"
                ) from e
        LOGGER.info(f"export_check={form}: the model can be exported")


def export(trainer: Any, form: str, folder: Path) -> None:
    """Export a copy of a trainer's model into a folder."""
    from ultralytics.engine.exporter import Exporter  # which imports the engine

    model: Any = copy.deepcopy(trainer.ema.ema).float().eval()
    model.names, model.task, model.pt_path = trainer.data["names"], trainer.args.task, str(folder / "model.pt")
    settings = {
        "format": form,
        "imgsz": trainer.args.imgsz,
        "device": "0" if form == "engine" and trainer.device.type == "cuda" else "cpu",
        "mode": "export",
        "task": trainer.args.task,
    }
    Exporter(overrides={**settings, "model": model.pt_path})(model=model)


@contextmanager
def keep_generators() -> Iterator[None]:
    """Leave the random generators of Python, numpy and torch as they are."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
