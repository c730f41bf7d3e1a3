"""One step over all processes equals the step that one process takes with the whole batch.

RT-DETR's authors train with synchronised batch norms and divide the losses by the number of boxes of all processes.
This goes further, for upstream's trainer: each process has its share of the very batches that one process would draw,
also of a short last one, and of the very denoising queries, noise included. What is left of a difference is the order
of sums. Augmentation and dropout are each process's own.

The parts are a loader that yields shares, batch norms and losses over all processes, and a validator.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.extend import Extension, extend
from ultralytics.nn.AddModules.launcher import WORLD_SIZE, decide, device_module, gather
from ultralytics.utils import RANK

__all__ = ()

# shared: whether the processes' steps are parts of one.
# idle: whether this process has no image in the current step, as the last batch may have fewer images than there are
# processes. It goes through the step with one that counts for nothing, since the others' sums wait for it.
step = SimpleNamespace(shared=False, idle=False)


@contextlib.contextmanager
def share_steps() -> Iterator[None]:
    """Take steps together."""
    step.shared = True
    try:
        yield
    finally:
        step.shared = step.idle = False


def begin_step(batch: dict) -> None:
    """Note whether the batch that a shared loader yields is a stand-in."""
    step.idle = batch.pop("idle", False)


def draw_apart(seed: int, epoch: int) -> None:
    """Let dropout and the like differ between the processes; the first one goes on as one process does."""
    if RANK > 0:
        torch.manual_seed(seed + (epoch + 1) * 0x9E3779B97F4A7C15 % 2**62 + RANK)


# Batches --------------------------------------------------------------------------------------------------------------
def bounds(images: int, rank: int = RANK) -> tuple[int, int]:
    """Give begin and end of a process's share of a batch; the first ones have one more where it does not come out."""
    least, more = divmod(images, WORLD_SIZE)
    begin = rank * least + min(rank, more)
    return begin, begin + least + (rank < more)


class Shares:
    """Batch sampler: of each batch of indices, this process's share, or one index of it where there is none."""

    def __init__(self, batches: Any):
        self.batches = batches  # the batch sampler of one process

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[slice(*bounds(len(batch)))] or batch[:1]


class Images:
    """Sampler: the indices of this process's images in the order in which they come; its length is that of the whole.

    Upstream asks it for what the validator sees, for the size of the last batch of all, and to shuffle by epoch, which
    the generator does here.
    """

    def __init__(self, batches: Any):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches.sampler)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from batch[slice(*bounds(len(batch)))]

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all processes draw each epoch's order from generators that go alike."""


class ShareLoader:
    """A loader of whole batches as the loader of this process's shares, which knows when it has none.

    Args:
        loader: Upstream's loader of one process; every other attribute is its own.
    """

    def __init__(self, loader: Any):
        batches = loader.batch_sampler.sampler  # behind upstream's endless repetition
        loader.batch_sampler.sampler = Shares(batches)
        loader.worker_init_fn = seed_worker_apart
        loader.generator.set_state(decide(loader.generator.get_state))  # or they would cut different batches
        self.loader, self.sampler = loader, Images(batches)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet, in a copy
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for i, batch in enumerate(self.loader):
            begin, end = bounds(min(self.batch_size, len(self.sampler) - i * self.batch_size))
            batch["idle"] = begin == end
            if batch["idle"]:
                batch.update({k: batch[k][:0] for k in ("cls", "bboxes", "batch_idx")})
            yield batch


def seed_worker_apart(worker_id: int) -> None:
    """Seed a loader's worker as upstream does, but otherwise in each process, or they would augment alike."""
    from ultralytics.data.build import seed_worker

    torch.manual_seed(torch.initial_seed() + 0x9E3779B97F4A7C15 * RANK % 2**62)
    seed_worker(worker_id)


# Batch norms ----------------------------------------------------------------------------------------------------------
class Normalise(torch.autograd.Function):
    """Batch norm over all processes on a CPU, for which torch has none. (B, C, ...) to the same, B may be 0."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float):
        dims, channels = [d for d in range(x.dim()) if d != 1], x.shape[1]
        moments = x.new_zeros(2, channels) if not x.numel() else torch.stack(torch.var_mean(x, dims, correction=0))
        own = torch.cat([moments.flatten(), moments.new_tensor([x.numel() // channels])])
        parts = [torch.empty_like(own) for _ in range(WORLD_SIZE)]
        dist.all_gather(parts, own)
        parts = torch.stack(parts).double()  # (processes, 2C + 1)
        var, mean, share = parts.split([channels, channels, 1], dim=1)
        count = share.sum()
        share = share / count
        whole = (share * mean).sum(0)
        var = (share * (var + (mean - whole).square())).sum(0)
        mean, var = whole.to(x.dtype), var.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.count, ctx.dims = count.item(), dims
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, ctx.count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any):
        x, weight, mean, scale = ctx.saved_tensors
        column = (1, -1, *[1] * (x.dim() - 2))
        normal = (x - mean.view(column)) * scale.view(column)
        own = torch.stack([grad.sum(ctx.dims), (grad * normal).sum(ctx.dims)])  # (2, C)
        whole = own.clone()
        dist.all_reduce(whole)
        shift, slope = (whole / ctx.count).unbind()
        grad_x = grad - shift.view(column) - normal * slope.view(column)
        grad_x *= (scale if weight is None else scale * weight).view(column)
        grad_weight, grad_bias = (None, None) if weight is None else (own[1], own[0])  # DDP sums them
        return grad_x, grad_weight, grad_bias, None


class WholeNorm(Extension):
    """A batch norm that takes its statistics over all processes in training, and is a plain one in every checkpoint."""

    process_group = None  # for torch's forward: all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        if not step.idle:
            return self.normalise(x)
        # An empty batch takes part in the others' sums, backward too; the stand-in goes through, with no gradient
        with torch.no_grad():
            stand_in = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        nothing = self.normalise(x[:0].float())  # under AMP the others' sums are in fp32, and torch takes x's type
        return torch.cat([nothing.to(stand_in.dtype), stand_in])

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise by the statistics of all processes, and keep the running ones."""
        if x.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, x)
        y, mean, var, count = Normalise.apply(x.float(), self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), momentum)
        return y.to(x.dtype)


def share_norms(model: nn.Module) -> None:
    """Let the batch norms of a model work over all processes."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            extend(m, WholeNorm)


# Losses ---------------------------------------------------------------------------------------------------------------
class WholeLoss(Extension):
    """RT-DETR's loss with the value of the whole batch in each process, and the gradient of its own share.

    Upstream divides by the number of the matched boxes of a process.
    """

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        self.totals = {}
        loss = super().forward(*args, **kwargs)
        own = torch.stack([v.float().squeeze() for v in loss.values()])
        own = own * 0 if step.idle else own
        whole = own.detach().clone()
        dist.all_reduce(whole)
        return dict(zip(loss, own + (whole - own.detach())))

    def total(self, number: int, postfix: str) -> int:
        """Sum the number of matched boxes over the processes; it is the same for all decoder layers."""
        if postfix not in self.totals:
            total = torch.tensor(number, device=self.device)
            dist.all_reduce(total)
            self.totals[postfix] = total.item()
        return self.totals[postfix]

    def _get_loss_class(
        self, pred_scores: Any, targets: Any, gt_scores: Any, num_gts: int, postfix: str = ""
    ) -> dict[str, torch.Tensor]:
        return super()._get_loss_class(pred_scores, targets, gt_scores, self.total(num_gts, postfix), postfix)

    def _get_loss_bbox(self, pred_bboxes: Any, gt_bboxes: Any, postfix: str = "") -> dict[str, torch.Tensor]:
        loss = super()._get_loss_bbox(pred_bboxes, gt_bboxes, postfix)
        share = len(gt_bboxes) / max(self.total(len(gt_bboxes), postfix), 1)
        return {k: v * share for k, v in loss.items()}


def share_loss(model: nn.Module) -> None:
    """Let the loss of an `RTDETRDetectionModel` work over all processes."""
    model = getattr(model, "student_model", model)
    if getattr(model, "criterion", None) is None:
        model.criterion = model.init_criterion()
    extend(model.criterion, WholeLoss)


def denoise_together(get_cdn_group: Callable) -> Callable:
    """Wrap `get_cdn_group`: in a shared step, denoising queries are drawn for the whole batch, and each has its share.

    How many groups of queries there are, and how many each has, depends on the image with most boxes. All processes
    draw the noise that the first one draws.
    """
    signature = inspect.signature(get_cdn_group)

    @functools.wraps(get_cdn_group)
    def together(*args: Any, **kwargs: Any) -> tuple:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        batch, training = call.arguments["batch"], call.arguments["training"]
        if not (step.shared and training and batch is not None):
            return get_cdn_group(*args, **kwargs)
        device = batch["bboxes"].device
        parts = gather((batch["gt_groups"], batch["cls"].cpu(), batch["bboxes"].cpu(), random_states(device)))
        groups, cls, bboxes, states = zip(*parts)
        whole = torch.tensor(sum(groups, []))  # boxes of each image
        call.arguments["batch"] = {
            "gt_groups": whole.tolist(),
            "cls": torch.cat(cls).to(device),
            "bboxes": torch.cat(bboxes).to(device),
            "batch_idx": torch.arange(len(whole)).repeat_interleave(whole).to(device),
        }
        with draw_as(states[0], device):
            embeddings, boxes, mask, meta = get_cdn_group(*call.args, **call.kwargs)
        if meta is None:
            return embeddings, boxes, mask, meta
        before = groups[:RANK]
        begin = sum(map(len, before))
        mine, first_box = slice(begin, begin + len(batch["gt_groups"])), sum(map(sum, before))
        meta["dn_pos_idx"] = meta["dn_pos_idx"][mine]
        meta["dn_gt_idx"] = [i - first_box for i in meta["dn_gt_idx"][mine]]
        return embeddings[mine], boxes[mine], mask, meta

    return together


def random_states(device: torch.device) -> list[torch.Tensor] | None:
    """Give the states of the first process's generators, of the CPU and of its device."""
    if RANK > 0:
        return None
    own = [] if device.type == "cpu" else [device_module(device.type).get_rng_state(device)]
    return [torch.get_rng_state(), *own]


@contextlib.contextmanager
def draw_as(states: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Draw what the first process draws, whose generators have these states, and go on with the own ones after it."""
    if RANK <= 0:
        yield
        return
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        torch.set_rng_state(states[0])
        if not on_cpu:
            device_module(device.type).set_rng_state(states[1], device)
        yield


# Validation -----------------------------------------------------------------------------------------------------------
class WholeValidator(Extension):
    """A validator that counts each image once, and in the order of the data set, as one process does."""

    def preprocess(self, batch: dict) -> dict:
        begin_step(batch)
        return super().preprocess(batch)

    def update_metrics(self, preds: Any, batch: dict) -> None:
        if not step.idle:
            super().update_metrics(preds, batch)

    def gather_stats(self) -> None:
        """Gather, and put the images of the processes, which come one process after the other, in their order."""
        super().gather_stats()
        if RANK == 0:
            images, size = len(self.dataloader.sampler), self.dataloader.batch_size
            order = [
                first + i
                for rank in range(WORLD_SIZE)
                for first in range(0, images, size)
                for i in range(*bounds(min(size, images - first), rank))
            ]
            for key, values in self.metrics.stats.items():
                self.metrics.stats[key] = [v for _, v in sorted(zip(order, values), key=lambda pair: pair[0])]
