"""Train in several processes: what upstream's trainers do differently under torch's elastic launcher.

    torchrun --nnodes=2 --nproc-per-node=8 ... --no-python yolo train model=rtdetr-l.yaml data=... batch=64

Without a launcher nothing here is in use, and upstream's own way to several GPUs, `device=0,1`, is as it was.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from ultralytics.fork.distributed import elastic_launch, run_folder
from ultralytics.fork.distributed.elastic_launch import WORLD_SIZE, broadcast_result, gather_values, run_in_turn
from ultralytics.fork.distributed.global_batch import ShareLoader, begin_step, seed_dropout_by_rank, share_steps
from ultralytics.fork.distributed.reductions import GlobalValidator, sync_batch_norms, sync_loss
from ultralytics.fork.errors import Refused, mark_as_plain
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.fork.training.resumable_checkpoint import TRAINING_STATE_KEY
from ultralytics.fork.training.resume import read_checkpoint
from ultralytics.utils import LOGGER, NUM_THREADS, RANK

training_numbers = itertools.count(1)  # of the trainings of this process's command


def join_launcher(trainer: Any, overrides: dict) -> bool:
    """Let a trainer be one of a launcher's processes, from `check_resume`, which its constructor calls first.

    Returns:
        Whether it has become one, and all that `check_resume` has to do is done. Without a launcher nothing is.
    """
    if not elastic_launch.is_launched() or isinstance(trainer, LaunchedTrainer):
        return False
    from ultralytics.models.rtdetr.train import RTDETRTrainer

    mix_into(trainer, GlobalBatchTrainer if isinstance(trainer, RTDETRTrainer) and WORLD_SIZE > 1 else LaunchedTrainer)
    trainer.enter(overrides)
    return True


class LaunchedTrainer(InstanceMixin):
    """A trainer of any task, in one of the launcher's processes."""

    @property
    def world_size(self) -> int:
        """Number of processes on all nodes; for a single one what upstream sets."""
        return self.__dict__["world_size"]

    @world_size.setter
    def world_size(self, value: int) -> None:
        # Upstream counts the devices of `device=`, which are those of this process
        self.__dict__["world_size"] = WORLD_SIZE if WORLD_SIZE > 1 else value

    def enter(self, overrides: dict) -> None:
        """Join the others, agree on the run's folder, and go on with the run that the launcher has restarted.

        Args:
            overrides: The arguments that the user gave. `resume` is set there where the run goes on.
        """
        requested = self.args.device
        self.check_resume(overrides)
        self._take_device(requested)
        elastic_launch.join_group(self.args.device)
        check_batch(self.args.batch)
        launchers, number = sorted(set(gather_values(run_folder.name_launcher()))), next(training_numbers)
        run = broadcast_result(lambda: choose_run(self.args, launchers, number))
        self.fork.is_complete = run.complete
        if run.last:
            run_folder.require_same_file(Path(run.last), run.stamp)
            overrides["resume"] = self.args.resume = run.last  # `Model.train` looks there too
            if not self.fork.is_complete:
                self.check_resume({})  # the checkpoint has the arguments
                self._take_device(requested)
        self.args.save_dir = run.folder
        run_folder.record_run(Path(run.folder), {"launchers": launchers, "number": number, "before": run.before})
        if RANK in {-1, 0} and not self.args.resume:  # or all processes would, at once
            Path(run.folder, "results.csv").unlink(missing_ok=True)
        with run_in_turn():  # the data set is there when upstream asks for it, on all nodes at once
            self.get_dataset()

    def _take_device(self, requested: Any) -> None:
        """Set `device=` to this process's; a checkpoint's own counts only if it is the CPU."""
        from ultralytics.utils.torch_utils import parse_device

        of_checkpoint = "cpu" if self.args.resume and self.args.device == "cpu" else ""
        requested = of_checkpoint if requested is None else requested
        if WORLD_SIZE > 1 and "-1" in str(requested):
            raise Refused(
                f"device={requested} chooses idle GPUs, for one process only: name them, or leave device= out"
            )
        self.args.device = elastic_launch.choose_device(parse_device(requested))

    def _setup_ddp(self) -> None:
        """Share the node's cores among its processes; the process group exists, `enter` has made it."""
        if self.device.type == "cpu":
            cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            torch.set_num_threads(max(1, min(NUM_THREADS, cores)))

    def _setup_train(self) -> None:
        super()._setup_train()
        elastic_launch.shorten_timeout()

    def run_callbacks(self, event: str) -> None:
        """Average the epoch's losses over the processes before anyone logs them."""
        if event == "on_train_epoch_end" and WORLD_SIZE > 1:
            mean = torch.stack([v.float() for v in self.tloss.values()])
            dist.all_reduce(mean)
            self.tloss = dict(zip(self.tloss, mean / WORLD_SIZE))
        super().run_callbacks(event)

    def final_eval(self) -> None:
        """See that all processes find the best checkpoint, so that all validate it."""
        if broadcast_result(self.best.exists) and not run_folder.wait_for_file(self.best):
            raise mark_as_plain(
                FileNotFoundError(f"rank {RANK} does not see {self.best}: the run's folder must be shared")
            )
        super().final_eval()

    def train(self) -> None:
        """Train, and leave the group.

        Raises:
            RuntimeError: If another process was lost, with what to do.
        """
        if self.fork.is_complete:
            LOGGER.info(f"The run in {self.save_dir} was complete when its workers ended: nothing is left to train.")
        try:
            if not self.fork.is_complete:
                super().train()
        except RuntimeError as e:
            if not elastic_launch.is_lost_process(e):
                raise
            raise mark_as_plain(
                RuntimeError(
                    f"rank {RANK} of {WORLD_SIZE} lost another process, which died or did not answer in time. The "
                    f"launcher ends or restarts the job; to go on later, run it with `resume model={self.last}`"
                )
            ) from e
        if dist.is_initialized():
            dist.destroy_process_group()


class GlobalBatchTrainer(LaunchedTrainer):
    """A trainer of RT-DETR, whose step over all processes is the step that one process takes with the whole batch."""

    def get_dataset(self) -> dict:
        """Let all processes build, shuffle and draw noise alike, with the seed that one process has."""
        data = super().get_dataset()
        torch.manual_seed(self.args.seed)
        return data

    def setup_model(self) -> dict | None:
        """Synchronise the batch norms of the model."""
        ckpt = super().setup_model()
        sync_batch_norms(self.model)
        return ckpt

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Build the loader of one process and take a share of its batches; the data set's caches are written once."""
        if rank == -1:  # upstream wants a loader of one process
            return super().get_dataloader(dataset_path, batch_size, rank, mode)
        with run_in_turn():
            loader = super().get_dataloader(dataset_path, batch_size * WORLD_SIZE, rank=-1, mode=mode)
        return ShareLoader(loader)

    def _setup_train(self) -> None:
        from ultralytics.utils.torch_utils import unwrap_model

        super()._setup_train()
        sync_loss(unwrap_model(self.model))

    def _do_train(self) -> None:
        with share_steps():
            super()._do_train()

    def run_callbacks(self, event: str) -> None:
        """Let dropout differ between the processes from the first batch of an epoch on."""
        if event == "on_train_epoch_start":  # the checkpoint's state is there, if there is one
            seed_dropout_by_rank(self.args.seed, self.epoch)
        super().run_callbacks(event)

    def preprocess_batch(self, batch: dict) -> dict:
        """Note whether this process has a share of the batch."""
        begin_step(batch)
        return super().preprocess_batch(batch)

    def get_validator(self) -> Any:
        """Let the validator count each image once."""
        validator = super().get_validator()
        mix_into(validator, GlobalValidator)
        return validator

    def validate(self) -> tuple:
        """Let the averaged model's loss be that of the global batch."""
        sync_loss(self.ema.ema)
        return super().validate()


def validate_alone(call: Callable, validator: Any, trainer: Any = None, model: Any = None, **kwargs: Any) -> Any:
    """Call a validator: outside of a training, each process validates the whole set by itself, as `yolo val` does.

    Upstream's validators would gather from a group that does not exist.
    """
    from ultralytics.utils.torch_utils import parse_device

    if trainer is not None or dist.is_initialized() or WORLD_SIZE == 1:
        return call(validator, trainer, model, **kwargs)
    requested = parse_device(validator.args.device)
    is_own = bool(requested) and "," not in requested
    validator.args.device = requested if is_own else elastic_launch.choose_device(requested)
    set_rank(-1)
    try:
        return call(validator, trainer, model, **kwargs)
    finally:
        set_rank(RANK)  # in modules that were imported meanwhile, too


def set_rank(rank: int) -> None:
    """Let upstream's modules take this process for another one, or for the only one: -1."""
    for name, module in list(sys.modules.items()):
        if name.startswith("ultralytics.") and not name.startswith("ultralytics.fork.") and "RANK" in vars(module):
            module.RANK = rank


def check_batch(batch: float) -> None:
    """Raise a ValueError for a batch that the processes cannot share equally, or that is to be measured."""
    if WORLD_SIZE > 1 and batch < 1:
        raise Refused(f"batch={batch} measures a batch, on one process only: name a multiple of {WORLD_SIZE}")
    if WORLD_SIZE > 1 and batch % WORLD_SIZE:
        near = max(round(batch / WORLD_SIZE), 1) * WORLD_SIZE
        raise Refused(
            f"batch={batch} is the batch of all processes, and {WORLD_SIZE} (WORLD_SIZE) cannot share it equally: "
            f"choose a multiple of {WORLD_SIZE}, such as batch={near}"
        )


def choose_run(args: Any, launchers: list[str], number: int) -> SimpleNamespace:
    """Choose the run's folder, in the first process.

    Returns:
        The run: its `folder`; `last`, the checkpoint to go on from, if the launcher has restarted its workers and they
        had written one; whether it is `complete`; the `stamp` of last.pt; and `before`, the one that it had when the
        launcher came, which is that of another run's checkpoint.
    """
    from ultralytics.cfg import get_save_dir

    folder = get_save_dir(args)
    found = run_folder.find_run(folder, launchers, number)
    last = (found[0] if found else folder) / "weights" / "last.pt"
    stamp = run_folder.stamp_file(last)
    before = found[1].get("before") if found else stamp
    run = SimpleNamespace(folder=str(last.parents[1]), last=None, complete=False, before=before, stamp=stamp)
    if stamp != before:
        ckpt = read_checkpoint(last)
        ended = (
            TRAINING_STATE_KEY not in ckpt and ckpt["epoch"] + 1 >= ckpt["train_args"]["epochs"]
        )  # ours: the last validation is due
        run.complete = ckpt["optimizer"] is None or ended
        run.last = str(last) if run.complete or ckpt["epoch"] >= 0 else None
    return run
