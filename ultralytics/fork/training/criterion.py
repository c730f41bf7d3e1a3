"""Upstream's criterion with a class loss of the official trainings, and overlaps without an epsilon.

Upstream adds 1e-7 to areas, in units of the image, which changes targets and gradients of boxes of a few pixels.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch

from ultralytics.fork.training.losses import NegativesOnly, VarifocalLoss
from ultralytics.models.utils import loss
from ultralytics.models.utils.loss import RTDETRDetectionLoss

MIN_AREA = 1e-12  # of a box that has none, in units of the image


class OfficialCriterion(RTDETRDetectionLoss):
    """Loss of RT-DETR (https://arxiv.org/abs/2304.08069).

    Args:
        nc: Number of classes.
        class_loss: Its class term.
    """

    def __init__(self, nc: int, class_loss: VarifocalLoss):
        super().__init__(nc=nc, use_vfl=True)
        self.vfl, self.fl = class_loss, NegativesOnly(class_loss)

    def _get_loss(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        with patch.object(loss, "bbox_iou", overlap):
            return super()._get_loss(*args, **kwargs)


class ClassAgnosticSelection(RTDETRDetectionLoss):
    """Loss of a decoder whose selection of queries has one score for all classes, which stands in place of class 0."""

    def _get_loss_aux(
        self, boxes: torch.Tensor, scores: torch.Tensor, gt_boxes: torch.Tensor, gt_cls: torch.Tensor, *args: Any
    ) -> dict[str, torch.Tensor]:
        if args[-1]:  # the denoising queries, which are the decoder's alone
            return super()._get_loss_aux(boxes, scores, gt_boxes, gt_cls, *args)
        selection = super()._get_loss_aux(boxes[:1], scores[:1], gt_boxes, torch.zeros_like(gt_cls), *args)
        decoder = super()._get_loss_aux(boxes[1:], scores[1:], gt_boxes, gt_cls, *args)
        return {term: selection[term] + decoder[term] for term in selection}


class ClassAgnosticOfficialCriterion(ClassAgnosticSelection, OfficialCriterion):
    """Both."""


def choose_agnostic_class(cls: type[RTDETRDetectionLoss]) -> type[RTDETRDetectionLoss]:
    """Give the criterion's class for a decoder with a class-agnostic selection."""
    return ClassAgnosticOfficialCriterion if issubclass(cls, OfficialCriterion) else ClassAgnosticSelection


def overlap(a: torch.Tensor, b: torch.Tensor, xywh: bool = True, GIoU: bool = False) -> torch.Tensor:
    """Compute the IoU of pairs of boxes, or the generalised one (https://arxiv.org/abs/1902.09630).

    Args:
        a: Boxes, (N, 4), as centre, width and height.
        b: The same.
        xywh: True; it is there as upstream's function, in whose place this one is called, has it.
        GIoU: Whether to give the generalised IoU.

    Returns:
        (N, 1), from 0 to 1, or from -1 to 1.
    """
    a, b = a.float(), b.float()
    least_a, most_a, least_b, most_b = (x[:, :2] + sign * x[:, 2:] / 2 for x in (a, b) for sign in (-1, 1))
    inside = (torch.minimum(most_a, most_b) - torch.maximum(least_a, least_b)).clamp(min=0).prod(-1, keepdim=True)
    union = (a[:, 2:].prod(-1, keepdim=True) + b[:, 2:].prod(-1, keepdim=True) - inside).clamp(min=MIN_AREA)
    if not GIoU:
        return inside / union
    hull = (torch.maximum(most_a, most_b) - torch.minimum(least_a, least_b)).prod(-1, keepdim=True).clamp(min=MIN_AREA)
    return inside / union - (hull - union) / hull
