"""Teach an RT-DETR by a larger one, `distill_model=`: by its logits and boxes of each object, and by its features.

For each object, the teacher's query that its own assignment gives the object teaches the student's query of the
object: by the divergence of the scores of all classes, and by the distance of the boxes. Each is weighed by the overlap
of the teacher's box with the object, so that an object which the teacher misses teaches nothing. The inputs of the
decoder are compared by their correlation in each channel, which does not depend on their scale ("PKD: General
Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS 2022,
https://arxiv.org/abs/2207.02039; there over the images of a batch, here in each image, so that many processes find what
one would).

    loss = distill_logits sum(w KL(teacher, student)) / objects
         + distill_boxes sum(w (5 L1 + 2 (1 - GIoU))) / objects + distill_features mean(1 - correlation)

All of it is zero, and so is its gradient, where the student finds what the teacher finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ultralytics.fork.distributed.global_batch import shared_step
from ultralytics.fork.errors import Refused
from ultralytics.fork.rtdetr import find_head, get_head, unwrap_model

TERMS = {"logits": "dis_logits", "boxes": "dis_boxes", "features": "dis_feats"}  # and what progress calls them
GAINS = {"L1": 5, "GIoU": 2}  # of boxes, as in the loss of objects
EPS = 1e-6  # of a channel's deviation


class Distillation(nn.Module):
    """Losses by a frozen teacher. It is a part of the student while it is trained, and of no checkpoint.

    Args:
        teacher: An RT-DETR, on the device of the student.
        student: An RT-DETR.
        classes: For each class of the student the teacher's.
        gains: Of the terms, by name.
        imgsz: Pixels a side of the training's images, as some backbones take one size only.
    """

    teacher: Any

    def __init__(
        self, teacher: nn.Module, student: nn.Module, classes: list[int], gains: dict[str, float], imgsz: int = 256
    ):
        super().__init__()
        object.__setattr__(self, "teacher", teacher)  # not a layer of the student
        self.classes, self.gains = classes, gains
        ours, theirs = (measure_inputs(model, imgsz) for model in (student, teacher))
        self.strides = sorted(ours.keys() & theirs.keys())
        device = next(student.parameters()).device
        self.projections = nn.ModuleDict(
            {str(s): nn.Conv2d(ours[s], theirs[s], 1) for s in self.strides if ours[s] != theirs[s]}
        ).to(device)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the teacher out of copies."""
        return {key: value for key, value in self.__dict__.items() if key != "teacher"}

    def forward(self, student: Any, batch: dict[str, Any], seen: Seen) -> dict[str, torch.Tensor]:
        """Compute the terms.

        Args:
            student: The student, whose criterion assigns queries to objects.
            batch: Of the training, with `img` (B, C, H, W), `cls`, `bboxes` and `batch_idx` of its objects.
            seen: Inputs and outputs of the student's head for it.

        Returns:
            The terms by name, each multiplied with its gain.
        """
        from ultralytics.fork.training.criterion import overlap  # not at the head: it imports all models

        image, objects = batch["img"], list_objects(batch)
        theirs, boxes, logits = self.ask_teacher(image)
        own_boxes, own_logits = last_layer(seen.outputs)
        matcher, (count, share) = student.criterion.matcher, share_batch(len(objects[1]), len(image))
        taught, learned = assign(matcher, boxes, logits, objects), assign(matcher, own_boxes, own_logits, objects)
        both = (taught >= 0) & (learned >= 0)  # there may be more objects than queries
        boxes, logits = boxes.flatten(0, 1)[taught[both]], logits.flatten(0, 1)[taught[both]]
        own_boxes, own_logits = own_boxes.flatten(0, 1)[learned[both]], own_logits.flatten(0, 1)[learned[both]]
        weights = overlap(boxes, objects[1][both]).view(-1)
        terms = {
            "logits": (weights * diverge(logits, own_logits).sum(1)).sum() / count,
            "boxes": (weights * box_distance(own_boxes, boxes)).sum() / count,
            "features": share * self.compare_features(seen.inputs, theirs, image.shape[2]),
        }
        return {name: self.gains[name] * term for name, term in zip(terms, sum_over_processes([*terms.values()]))}

    def ask_teacher(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Run the teacher; give the inputs of its decoder, and boxes (B, N, 4) and logits (B, N, classes)."""
        dtype = next(self.teacher.parameters()).dtype
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False), watch_head(self.teacher) as seen:
            self.teacher(image.to(dtype))
        boxes, logits = last_layer(seen.outputs[1])
        return seen.inputs, boxes.float(), logits.float()[..., self.classes]

    def compare_features(self, ours: list[torch.Tensor], theirs: list[torch.Tensor], height: int) -> torch.Tensor:
        """Average one minus the correlation of each channel of each image over channels, images and levels."""
        own, other = ({round(height / x.shape[2]): x for x in maps} for maps in (ours, theirs))
        found = []
        for stride in self.strides:
            x = self.projections[str(stride)](own[stride]) if str(stride) in self.projections else own[stride]
            found.append(F.mse_loss(standardise(x.float()), standardise(other[stride].float())) / 2)
        return torch.stack(found).mean()


class Seen:
    """What went into a head, and what came out of it."""

    inputs: list[torch.Tensor]
    outputs: Any


@contextmanager
def watch_head(model: nn.Module) -> Iterator[Seen]:
    """Note what goes into the head of a model and what comes out, while it is run."""
    seen = Seen()

    def note(_: nn.Module, inputs: tuple, outputs: Any) -> None:
        seen.inputs, seen.outputs = inputs[0], outputs

    handle = get_head(model).register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def last_layer(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Give boxes and logits of the last decoder layer, those of denoising queries left out."""
    boxes, logits, _, _, denoising = outputs
    if denoising is not None:
        boxes, logits = (x.split(denoising["dn_num_split"], dim=2)[1] for x in (boxes, logits))
    return boxes[-1], logits[-1]


def measure_inputs(model: nn.Module, side: int) -> dict[int, int]:
    """Give the channels of the inputs of a model's decoder by their strides, for a square image."""
    was_training = model.training
    first = next(model.parameters())
    channels = getattr(model, "yaml", {}).get("channels", 3)
    image = torch.zeros(1, channels, side, side, device=first.device, dtype=first.dtype)
    with torch.no_grad(), watch_head(model.eval()) as seen:
        model(image)
    model.train(was_training)
    return {round(side / x.shape[2]): x.shape[1] for x in seen.inputs}


def list_objects(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Give classes (n,), boxes (n, 4) and number in each image of a batch's objects."""
    image, owners = batch["img"], batch["batch_idx"].view(-1)
    groups = [int((owners == i).sum()) for i in range(len(image))]
    return batch["cls"].to(image.device).long().view(-1), batch["bboxes"].to(image.device), groups


def share_batch(objects: int, images: int) -> tuple[int, float]:
    """Give the number of objects of the batch of all processes, at least 1, and this process's share of its images."""
    if not shared_step.is_active:
        return max(objects, 1), 1.0
    local = torch.tensor([0.0, 0.0] if shared_step.is_idle else [float(objects), float(images)])
    total = local.clone()
    dist.all_reduce(total)
    return max(int(total[0]), 1), float(local[1] / total[1])


def sum_over_processes(terms: list[torch.Tensor]) -> list[torch.Tensor]:
    """Give terms the value of the batch of all processes, and the gradient of this one's share, which DDP sums."""
    if not shared_step.is_active:
        return terms
    local = torch.stack(terms) * (not shared_step.is_idle)
    total = local.detach().clone()
    dist.all_reduce(total)
    return [*(local + (total - local.detach()))]


def assign(matcher: Any, boxes: torch.Tensor, logits: torch.Tensor, objects: tuple) -> torch.Tensor:
    """Assign queries to objects.

    Args:
        matcher: Upstream's.
        boxes: Of the queries, (B, N, 4).
        logits: Of the queries, (B, N, classes).
        objects: As `list_objects` gives them.

    Returns:
        For each object its query, counted through all images, or -1.
    """
    classes, truth, groups = objects
    found = torch.full((len(truth),), -1, dtype=torch.long, device=truth.device)
    matches = matcher(boxes.detach(), logits.detach(), truth, classes, groups)
    for image, (queries, targets) in enumerate(matches):
        found[targets.to(truth.device)] = queries.to(truth.device) + image * boxes.shape[1]
    return found


def diverge(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Give the divergence of each score as that of two coins; 0 where the logits are equal.

    Args:
        teacher: Logits.
        student: Logits of the same shape.
    """
    target = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student.float(), target, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def box_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Give the distance of pairs of boxes, (n,), by L1 and by the generalised IoU."""
    from ultralytics.fork.training.criterion import overlap

    giou = overlap(ours, theirs, GIoU=True).view(-1)
    return GAINS["L1"] * (ours.float() - theirs).abs().sum(1) + GAINS["GIoU"] * (1 - giou)


def standardise(x: torch.Tensor) -> torch.Tensor:
    """Give each channel of each image's maps (B, C, H, W) the mean 0 and the deviation 1 over its places."""
    deviation, mean = torch.std_mean(x, (2, 3), keepdim=True, correction=0)
    return (x - mean) / (deviation + EPS)


def match_classes(teacher: Any, names: dict[int, str]) -> list[int]:
    """Find the teacher's class for each of the student's, by name.

    Raises:
        Refused: If the teacher lacks one.
    """
    known = {str(name).strip().lower(): number for number, name in getattr(teacher, "names", {}).items()}
    lacking = [name for name in names.values() if str(name).strip().lower() not in known]
    if lacking:
        theirs = ", ".join(list(known)[:20])
        raise Refused(f"distill_model= does not know {', '.join(map(str, lacking[:5]))}; its classes are {theirs}")
    return [known[str(names[number]).strip().lower()] for number in sorted(names)]


@contextmanager
def take_teacher(trainer: Any) -> Iterator[None]:
    """Keep `distill_model=` of a trainer of RT-DETR from upstream, which knows teachers of YOLO only.

    The average of the weights, of which checkpoints are made, is without what the student learns from.
    """
    from ultralytics.fork.training.recipe import is_rtdetr_trainer

    file = getattr(trainer.args, "distill_model", None)
    if not file or not is_rtdetr_trainer(trainer):
        yield
        return
    trainer.fork.teacher, trainer.args.distill_model = file, None
    try:
        yield
    finally:
        trainer.args.distill_model = file
    if getattr(trainer, "ema", None):
        trainer.ema.ema._modules.pop("distillation", None)


@contextmanager
def set_aside(trainer: Any) -> Iterator[None]:
    """Take the teacher out of a trainer's model while upstream loads a checkpoint, which holds none, into it."""
    layers = unwrap_model(trainer.model)._modules
    held = layers.pop("distillation", None)
    try:
        yield
    finally:
        if held is not None:
            layers["distillation"] = held


def attach_teacher(trainer: Any, student: Any) -> None:
    """Make the teacher that `distill_model=` names a part of the training of a student.

    Raises:
        Refused: If it is not an RT-DETR, or does not know the classes.
    """
    file = trainer.fork.teacher
    if not file:
        return
    from ultralytics.nn.tasks import load_checkpoint
    from ultralytics.utils import LOGGER, RANK

    teacher: Any = load_checkpoint(str(file), device=trainer.device)[0]
    if find_head(teacher) is None or find_head(student) is None:
        raise Refused(f"distill_model={file} is not an RT-DETR, and {trainer.args.model} learns from one only")
    classes = match_classes(teacher, trainer.data["names"])
    teacher = teacher.float().eval().requires_grad_(False).fuse(verbose=False)
    teacher = teacher.half() if trainer.device.type == "cuda" else teacher
    gains = {term: float(getattr(trainer.args, f"distill_{term}")) for term in TERMS}
    student.distillation = Distillation(teacher, student.to(trainer.device), classes, gains, trainer.args.imgsz)
    if RANK in {-1, 0}:
        LOGGER.info(
            f"{file} teaches by {', '.join(f'{term} ({gain:g})' for term, gain in gains.items())}, the features at "
            f"strides {', '.join(map(str, student.distillation.strides))}"
        )


def add_loss(loss: Any, student: Any, batch: dict[str, Any], preds: Any) -> tuple[torch.Tensor, Any]:
    """Add the terms of a student's teacher to its loss, if it has one.

    Args:
        loss: Upstream's method.
        student: The model.
        batch: Of the training or the validation.
        preds: What the model has found in it, if it was run before.
    """
    distillation = student._modules.get("distillation")
    if distillation is None or not student.training:
        return loss(student, batch, preds)
    with watch_head(student) as seen:
        total, items = loss(student, batch)
    terms = distillation(student, batch, seen)
    if isinstance(items, dict):  # earlier releases show three numbers
        items = {**items, **{TERMS[term]: value.detach() for term, value in terms.items()}}
    return total + sum(terms.values()), items
