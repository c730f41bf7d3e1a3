"""Print how long the parts of training steps take, as JSON: run in a process of its own, on either tree.

    python scripts/_bench/step_process.py REQUEST

`training_steps.run_training` writes the request, a JSON object, and runs this file. It imports nothing of this project
and uses only names that every supported release of Ultralytics has, so that it measures the untouched release too.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

REST = "rest"
EPOCH_PARTS = "validation", "checkpoint", "plots"  # once an epoch, not once a step


class PartTimer:
    """Seconds of nested parts; a part's own time is without that of the parts within it.

    Args:
        device: On a GPU, work in its queue is waited for where a part begins and ends, and time is that on the clock;
            on a CPU it is the processor's time.
    """

    def __init__(self, device: str):
        self.is_cuda = device != "cpu"
        self.open, self.seconds, self.began = [REST], Counter(), 0.0
        self.start()

    def read_clock(self) -> float:
        """Read the clock that counts."""
        if self.is_cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def start(self) -> None:
        """Forget what was measured."""
        self.seconds, self.began = Counter(), self.read_clock()

    def charge(self) -> None:
        """Give the time since the last change to the innermost open part."""
        now = self.read_clock()
        self.seconds[self.open[-1]] += now - self.began
        self.began = now

    def wrap(self, part: str, function: Callable) -> Callable:
        """Give a function that counts as a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.charge()
            self.open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.charge()
                self.open.pop()

        return timed

    def watch(self, part: str, owner: Any, name: str) -> None:
        """Let a function or method of upstream or torch count as a part."""
        found = vars(owner)[name]
        is_static = isinstance(found, staticmethod)
        timed = self.wrap(part, found.__func__ if is_static else found)
        setattr(owner, name, staticmethod(timed) if is_static else timed)


def watch_parts(timer: PartTimer) -> None:
    """Let the parts of upstream's training count."""
    from ultralytics.data import augment, base, dataset
    from ultralytics.engine import trainer
    from ultralytics.models.utils import loss, ops
    from ultralytics.nn import tasks
    from ultralytics.utils import torch_utils

    timer.watch("loader", base.BaseDataset, "get_image_and_label")
    timer.watch("loader", dataset.YOLODataset, "collate_fn")
    timer.watch("augmentation", augment.Compose, "__call__")
    timer.watch("forward", tasks.RTDETRDetectionModel, "predict")
    timer.watch("loss", tasks.RTDETRDetectionModel, "loss")
    timer.watch("denoising", ops, "get_cdn_group")
    timer.watch("matching", ops.HungarianMatcher, "forward")
    timer.watch("loss", loss.RTDETRDetectionLoss, "forward")
    timer.watch("backward", torch.Tensor, "backward")
    timer.watch("clipping and checks", trainer.BaseTrainer, "optimizer_step")
    timer.watch("EMA", torch_utils.ModelEMA, "update")
    timer.watch("validation", trainer.BaseTrainer, "validate")
    timer.watch("checkpoint", trainer.BaseTrainer, "save_model")
    for name in ("plot_training_samples", "plot_training_labels", "plot_metrics"):
        timer.watch("plots", find_owner(name), name)


def find_owner(name: str) -> Any:
    """Give the class of RT-DETR's trainer that defines a method."""
    from ultralytics.models.rtdetr.train import RTDETRTrainer

    return next(cls for cls in RTDETRTrainer.__mro__ if name in vars(cls))


def stand_in_for_polars() -> None:
    """Let a bare environment train without polars, which is larger than all else: no checkpoint lists the epochs."""
    if importlib.util.find_spec("polars") is None:
        sys.modules["polars"] = types.ModuleType("polars")


def measure(request: dict) -> dict:
    """Train one epoch; give the seconds of each part of each step but the first ones, of the epoch's parts, and memory.

    Args:
        request: `model`, `data`, `device`, and `skip`, the steps that do not count; `arguments` of the training.
    """
    from ultralytics import RTDETR

    stand_in_for_polars()
    timer = PartTimer(request["device"])
    watch_parts(timer)
    steps, losses = [], []
    model = RTDETR(request["model"])
    before = read_peak(timer.is_cuda)

    def begin(trainer: Any) -> None:
        for name in ("step", "zero_grad"):  # of this optimiser: the schedule has wrapped its step
            setattr(trainer.optimizer, name, timer.wrap("optimiser", getattr(trainer.optimizer, name)))

    def begin_epoch(_: Any) -> None:
        timer.start()

    def end_step(trainer: Any) -> None:
        timer.charge()
        steps.append(dict(timer.seconds))
        losses.append(float(trainer.loss.detach()))
        peaks.append(read_peak(timer.is_cuda))
        timer.start()

    peaks: list[float] = []
    for event, call in (
        ("on_train_start", begin),
        ("on_train_epoch_start", begin_epoch),
        ("on_train_batch_end", end_step),
    ):
        model.add_callback(event, call)
    common = {"epochs": 1, "device": request["device"], "workers": 0, "verbose": False, "exist_ok": True}
    timer.seconds = Counter()
    model.train(data=request["data"], **common, **request["arguments"])
    timer.charge()
    return {
        "steps": steps[request["skip"] :],
        "epoch": {part: timer.seconds[part] for part in EPOCH_PARTS},
        "losses": losses,
        "MiB": peaks[-1] - before,
    }


def read_peak(is_cuda: bool) -> float:
    """Read the peak of memory so far, MiB."""
    if is_cuda:
        return torch.cuda.max_memory_allocated() / 2**20
    import resource  # which Windows has not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
