"""Batch norms, losses and validation figures over the global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ultralytics.fork.distributed.elastic_launch import WORLD_SIZE
from ultralytics.fork.distributed.global_batch import begin_step, share_of_batch, shared_step
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.utils import RANK


# Batch norms ----------------------------------------------------------------------------------------------------------
class NormalizeGlobally(torch.autograd.Function):
    """Batch norm over all processes on a CPU, for which torch has none. (B, C, ...) to the same, B may be 0."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float):
        """Normalise (B, C, ...) by the statistics of all processes."""
        dims, channels = [d for d in range(x.dim()) if d != 1], x.shape[1]
        moments = x.new_zeros(2, channels) if not x.numel() else torch.stack(torch.var_mean(x, dims, correction=0))
        local = torch.cat([moments.flatten(), moments.new_tensor([x.numel() // channels])])
        parts = [torch.empty_like(local) for _ in range(WORLD_SIZE)]
        dist.all_gather(parts, local)
        parts = torch.stack(parts).double()  # (processes, 2C + 1)
        var, mean, share = parts.split([channels, channels, 1], dim=1)
        count = share.sum()
        share = share / count
        global_mean = (share * mean).sum(0)
        var = (share * (var + (mean - global_mean).square())).sum(0)
        mean, var = global_mean.to(x.dtype), var.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.count, ctx.dims = count.item(), dims
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, ctx.count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any):
        """Give the gradients; the sums that they need are over all processes."""
        x, weight, mean, scale = ctx.saved_tensors
        column = (1, -1, *[1] * (x.dim() - 2))
        normal = (x - mean.view(column)) * scale.view(column)
        local = torch.stack([grad.sum(ctx.dims), (grad * normal).sum(ctx.dims)])  # (2, C)
        total = local.clone()
        dist.all_reduce(total)
        shift, slope = (total / ctx.count).unbind()
        grad_x = grad - shift.view(column) - normal * slope.view(column)
        grad_x *= (scale if weight is None else scale * weight).view(column)
        grad_weight, grad_bias = (None, None) if weight is None else (local[1], local[0])  # DDP sums them
        return grad_x, grad_weight, grad_bias, None


class GlobalBatchNorm(InstanceMixin):
    """A batch norm that takes its statistics over all processes in training, and is a plain one in every checkpoint."""

    process_group = None  # for torch's forward: all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, ...) by the statistics of all processes."""
        if not self.training:
            return super().forward(x)
        if not shared_step.is_idle:
            return self.normalize(x)
        # An empty batch takes part in the others' sums, backward too; the stand-in goes through, with no gradient
        with torch.no_grad():
            stand_in = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        nothing = self.normalize(x[:0].float())  # under AMP the others' sums are in fp32, and torch takes x's type
        return torch.cat([nothing.to(stand_in.dtype), stand_in])

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise by the statistics of all processes, and update the running ones."""
        if x.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, x)  # pyright: ignore[reportArgumentType]  # the host is a batch norm
        y, mean, var, count = NormalizeGlobally.apply(x.float(), self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), momentum)
        return y.to(x.dtype)


def sync_batch_norms(model: nn.Module) -> None:
    """Let the batch norms of a model take their statistics over all processes."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            mix_into(m, GlobalBatchNorm)


# Losses ---------------------------------------------------------------------------------------------------------------
class GlobalLoss(InstanceMixin):
    """RT-DETR's loss with the value of the global batch in each process, and the gradient of its own share.

    Upstream divides by the number of the matched boxes of a process.
    """

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Compute the losses of the global batch, with this process's gradient."""
        self.totals = {}
        loss = super().forward(*args, **kwargs)
        local = torch.stack([v.float().squeeze() for v in loss.values()])
        local = local * 0 if shared_step.is_idle else local
        total = local.detach().clone()
        dist.all_reduce(total)
        return dict(zip(loss, local + (total - local.detach())))

    def sum_boxes(self, number: int, postfix: str) -> int:
        """Sum the number of matched boxes over the processes; it is the same for all decoder layers."""
        if postfix not in self.totals:
            total = torch.tensor(number, device=self.device)
            dist.all_reduce(total)
            self.totals[postfix] = total.item()
        return self.totals[postfix]

    def _get_loss_class(
        self, pred_scores: Any, targets: Any, gt_scores: Any, num_gts: int, postfix: str = ""
    ) -> dict[str, torch.Tensor]:
        return super()._get_loss_class(pred_scores, targets, gt_scores, self.sum_boxes(num_gts, postfix), postfix)

    def _get_loss_bbox(self, pred_bboxes: Any, gt_bboxes: Any, postfix: str = "") -> dict[str, torch.Tensor]:
        loss = super()._get_loss_bbox(pred_bboxes, gt_bboxes, postfix)
        share = len(gt_bboxes) / max(self.sum_boxes(len(gt_bboxes), postfix), 1)
        return {k: v * share for k, v in loss.items()}


def sync_loss(model: Any) -> None:
    """Let the loss of an `RTDETRDetectionModel` be that of the global batch."""
    model = getattr(model, "student_model", model)
    if getattr(model, "criterion", None) is None:
        model.criterion = model.init_criterion()
    mix_into(model.criterion, GlobalLoss)


# Validation -----------------------------------------------------------------------------------------------------------
class GlobalValidator(InstanceMixin):
    """A validator that counts each image once, and in the order of the data set, as one process does."""

    def preprocess(self, batch: dict) -> dict:
        """Note whether this process has a share of the batch."""
        begin_step(batch)
        return super().preprocess(batch)

    def update_metrics(self, preds: Any, batch: dict) -> None:
        """Leave out the stand-in of a process without a share."""
        if not shared_step.is_idle:
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
                for i in range(*share_of_batch(min(size, images - first), rank))
            ]
            for key, values in self.metrics.stats.items():
                self.metrics.stats[key] = [v for _, v in sorted(zip(order, values), key=lambda pair: pair[0])]
