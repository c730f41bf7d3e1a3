"""Upstream's criterion with a class loss of the official trainings, and GIoU without an epsilon.

Upstream adds 1e-7 to areas, in units of the image, which changes the gradient of boxes of a few pixels.
"""

from __future__ import annotations

import torch

from ultralytics.fork.training.losses import NegativesOnly, VarifocalLoss
from ultralytics.models.utils.loss import RTDETRDetectionLoss

TINY = 1e-12  # area of a box that has none, in units of the image


class OfficialCriterion(RTDETRDetectionLoss):
    """Loss of RT-DETR (https://arxiv.org/abs/2304.08069).

    Args:
        nc: Number of classes.
        class_loss: Its class term.
    """

    def __init__(self, nc: int, class_loss: VarifocalLoss):
        super().__init__(nc=nc, use_vfl=True)
        self.vfl, self.fl = class_loss, NegativesOnly(class_loss)

    def _get_loss_bbox(
        self, pred_bboxes: torch.Tensor, gt_bboxes: torch.Tensor, postfix: str = ""
    ) -> dict[str, torch.Tensor]:
        loss = super()._get_loss_bbox(pred_bboxes, gt_bboxes, postfix)
        if len(gt_bboxes):
            mean = (1 - generalized_iou(pred_bboxes, gt_bboxes)).mean()
            loss[f"loss_giou{postfix}"] = self.loss_gain["giou"] * mean
        return loss


def generalized_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the generalised IoU (https://arxiv.org/abs/1902.09630) of pairs of boxes.

    Args:
        a: Boxes, (N, 4), as centre, width and height.
        b: The same.

    Returns:
        (N,), from -1 to 1.
    """
    a, b = a.float(), b.float()
    least_a, most_a, least_b, most_b = (x[:, :2] + sign * x[:, 2:] / 2 for x in (a, b) for sign in (-1, 1))
    inside = (torch.minimum(most_a, most_b) - torch.maximum(least_a, least_b)).clamp(min=0).prod(-1)
    union = (a[:, 2:].prod(-1) + b[:, 2:].prod(-1) - inside).clamp(min=TINY)
    hull = (torch.maximum(most_a, most_b) - torch.minimum(least_a, least_b)).prod(-1).clamp(min=TINY)
    return inside / union - (hull - union) / hull
