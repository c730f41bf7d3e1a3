"""The class losses with which RT-DETR's authors and DEIM train, and the scores from which they start.

`loss=official` is the varifocal loss of RT-DETR (https://arxiv.org/abs/2304.08069), `loss=mal` the matchability-aware
loss of DEIM (https://arxiv.org/abs/2412.04234). Upstream's varifocal loss has another alpha and gamma, a weight through
which a gradient flows, and another loss for a batch without an object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.fork.errors import Refused
from ultralytics.fork.rtdetr import find_head
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK

PRIOR_SCORE = 0.01  # score of every query and class before the first step


class VarifocalLoss(nn.Module):
    """Varifocal loss (https://arxiv.org/abs/2008.13367) whose weight has no gradient.

    Args:
        class_weights: (C,), or None for the same weight of all classes.
        alpha: Weight of negatives.
        gamma: Power of a negative's score in its weight.
    """

    def __init__(self, class_weights: torch.Tensor | None = None, alpha: float = 0.75, gamma: float = 2.0):
        super().__init__()
        self.class_weights, self.alpha, self.gamma = class_weights, alpha, gamma

    def forward(self, pred_score: torch.Tensor, gt_score: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Sum the loss over images and classes, and average it over queries.

        Args:
            pred_score: Logits, (B, N, C).
            gt_score: Overlap of each matched query's box with its object, in its class; 0 elsewhere. (B, N, C)
            label: 1 for each matched query's class, 0 elsewhere. (B, N, C)
        """
        logits, quality = pred_score.float(), gt_score.float()
        negative = self.alpha * logits.detach().sigmoid().pow(self.gamma) * (1 - label)
        weight = negative + self.weigh_positives(quality) * label
        if self.class_weights is not None:
            weight = weight * self.class_weights.to(weight)
        target = self.make_target(quality)
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").mean(1).sum()

    def weigh_positives(self, quality: torch.Tensor) -> Any:
        """Give the weight of positives."""
        return quality

    def make_target(self, quality: torch.Tensor) -> torch.Tensor:
        """Give the score that a positive should have."""
        return quality


class MatchabilityAwareLoss(VarifocalLoss):
    """Matchability-aware loss, which also weighs a positive whose box hardly overlaps its object."""

    def __init__(self, class_weights: torch.Tensor | None = None, alpha: float = 1.0, gamma: float = 1.5):
        super().__init__(class_weights, alpha, gamma)

    def weigh_positives(self, quality: torch.Tensor) -> Any:
        """Give the weight of positives."""
        return 1.0

    def make_target(self, quality: torch.Tensor) -> torch.Tensor:
        """Give the score that a positive should have."""
        return quality.pow(self.gamma)


class NegativesOnly(nn.Module):
    """The class loss of a batch without an object, for which upstream has another loss."""

    def __init__(self, loss: VarifocalLoss):
        super().__init__()
        self.loss = loss

    def forward(self, pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compute the loss of logits (B, N, C) none of which is a positive; `label` is 0 everywhere."""
        return self.loss(pred, label, label)


LOSSES = {"official": VarifocalLoss, "mal": MatchabilityAwareLoss}


def make_criterion(init_criterion: Callable, model: Any) -> nn.Module:
    """Let upstream make the criterion of an RT-DETR; choose its class loss by `loss=`, and its gains."""
    args, criterion = getattr(model, "args", None), init_criterion(model)
    kind = read_argument(args, "loss")
    if kind:
        from ultralytics.fork.training.criterion import OfficialCriterion  # not at the head: it imports all models

        criterion = OfficialCriterion(model.nc, LOSSES[kind](getattr(model, "class_weights", None)))
    criterion.loss_gain = scale_gains(criterion.loss_gain, args)
    found = find_head(model)
    if found and getattr(found[1], "selection", None) == "agnostic":
        from ultralytics.fork.training.criterion import choose_agnostic_class

        criterion.__class__ = choose_agnostic_class(type(criterion))
    return criterion


def read_argument(args: Any, key: str) -> Any:
    """Read a training argument of a model, which has a namespace of them in training, else a dict."""
    value = args.get(key) if isinstance(args, dict) else getattr(args, key, None)
    return DEFAULT_CFG_DICT.get(key) if value is None else value


def scale_gains(gains: dict[str, float], args: Any) -> dict[str, float]:
    """Scale the gains by `cls` (of the class term) and `box` (of L1 and GIoU), relative to their defaults."""
    factors = {key: read_argument(args, key) / DEFAULT_CFG_DICT[key] for key in ("cls", "box")}
    return {term: gain * factors["cls" if term == "class" else "box"] for term, gain in gains.items()}


def say_gains(args: Any) -> None:
    """Say what `box` and `cls` do, where they are not the defaults."""
    for key, terms in (("cls", {"class": 1}), ("box", {"L1": 5, "GIoU": 2})):
        factor = getattr(args, key) / DEFAULT_CFG_DICT[key]
        if factor != 1:
            gains = " and ".join(f"{term} has the gain {gain * factor:g}, not {gain}" for term, gain in terms.items())
            LOGGER.info(f"{key}={getattr(args, key):g} is {factor:g} times its default: {gains}")


def check_loss_arguments(args: Any) -> None:
    """Raise `Refused` for a loss that does not exist, or a gain that RT-DETR's loss does not have."""
    if args.loss is not None and not (isinstance(args.loss, str) and args.loss in LOSSES):
        raise Refused(f"loss={args.loss!r}: expected one of {', '.join(LOSSES)}; without it the loss is Ultralytics'")
    if args.dfl != DEFAULT_CFG_DICT["dfl"]:
        raise Refused(f"dfl={args.dfl:g}: RT-DETR has no distribution focal loss; its gains are cls and box")
    if getattr(args, "cls_pw", 0) and not args.loss:  # earlier releases lack it
        raise Refused(f"cls_pw={args.cls_pw:g} weighs classes in loss=official and loss=mal; choose one of them")
    for key in ("box", "cls"):
        value = getattr(args, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise Refused(f"{key}={value!r}: expected a number from 0")


def init_score_biases(model: nn.Module) -> None:
    """Let every score of new class heads start at `PRIOR_SCORE`, whatever the number of classes; pretrained ones stay.

    Upstream scales the bias of the prior by classes / 80, with which the queries of a model of one class start at 0.49.
    """
    found = find_head(model)
    if found is None:
        return
    head: Any = found[1]
    bias = -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE)
    started = torch.tensor(bias / 80 * head.nc)  # the one that upstream sets
    count = 0
    with torch.no_grad():
        for layer in (head.enc_score_head, *head.dec_score_head):
            starts = [started.to(layer.bias), started.half().to(layer.bias)]  # the second after one save
            is_new = torch.stack([layer.bias == value for value in starts]).any(0)
            layer.bias[is_new] = bias
            count += int(is_new.sum())
    if count and head.nc != 80 and RANK in {-1, 0}:
        LOGGER.info(f"The scores of new classes start at {PRIOR_SCORE}, as in the official training")
