"""The augmentation of RT-DETR's authors and of DEIM, made of torchvision's transforms.

In the official order: photometric distortion, zoom-out, IoU crop, sanitising, flip, and last the stretch to a square.
It works on the images as they are in their files, where upstream stretches them first. `photometric`, `zoom_out` and
`iou_crop` are the probabilities of the first three; one of them turns all of this on.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch

from ultralytics.fork.errors import Refused
from ultralytics.fork.training.augmentation_epochs import EpochPlan
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

PROBABILITIES = "photometric", "zoom_out", "iou_crop"
REPLACED = (  # upstream's augmentation, in whose place this one is
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud"),
    *("copy_paste", "cutmix"),
)
POLICY_MIXING = "mosaic", "mixup"  # which DEIM's policy has
MOST_SIDES = 4
MOSAIC_AFFINE: dict[str, Any] = dict(degrees=10, translate=(0.1, 0.1), scale=(0.5, 1.5), fill=0)  # DEIM's


def has_official_augmentation(args: Any) -> bool:
    """Whether the arguments of a training ask for this augmentation."""
    return any(getattr(args, key, 0) for key in PROBABILITIES)


class LargestSide(int):
    """An image size that upstream's `load_image` divides by an image's longer side: smaller images are not resized."""

    def __truediv__(self, side: Any) -> float:
        return min(1, int(self) / side)


def keep_image_size(dataset: Any) -> Any:
    """Give a view of a data set, with the same caches, whose images are loaded in the size that their files have.

    A side of more than `MOST_SIDES` of `imgsz` is reduced to that: zooming out makes an image sixteen times as large.
    """
    view = copy.copy(dataset)
    view.imgsz = LargestSide(MOST_SIDES * dataset.imgsz)
    return view


class OfficialAugmentation:
    """Augment an image with its boxes, and stretch it to `imgsz` x `imgsz`.

    Args:
        dataset: The data set. Its `plan` says what the epoch does, and a mosaic, of which it has the probability, takes
            other images of it.
        args: The arguments of the training.
    """

    def __init__(self, dataset: Any, args: Any):
        from torchvision.transforms import v2

        if args.photometric and getattr(dataset, "channels", 3) not in (1, 3):
            raise Refused(
                f"photometric={args.photometric:g} distorts colours, and the images of {dataset.img_path} have "
                f"{dataset.channels} channels; use photometric=0"
            )
        self.dataset, size = dataset, dataset.imgsz
        self.distort = v2.RandomPhotometricDistort(p=args.photometric)
        self.zoom_out = v2.RandomZoomOut(fill=0, p=args.zoom_out)
        self.crop = v2.RandomApply([v2.RandomIoUCrop()], p=args.iou_crop)
        self.sanitize = v2.SanitizeBoundingBoxes(min_size=1)
        self.flip = v2.RandomHorizontalFlip(p=args.fliplr)
        self.resize = v2.Resize((size, size), antialias=True)
        self.resize_tile = v2.Resize(size // 2, antialias=True)
        self.move_mosaic = v2.RandomAffine(**MOSAIC_AFFINE)

    def __call__(self, labels: dict) -> dict:
        """Augment what upstream's `get_image_and_label` gives: `img` (H, W, C) uint8 BGR, with its boxes."""
        plan: EpochPlan = self.dataset.plan
        sample = read_sample(labels)
        if plan.mixes and torch.rand(()) < self.dataset.mosaic_share:
            others = [random.randrange(len(self.dataset)) for _ in range(3)]
            tiles = [sample, *(read_sample(self.dataset.get_image_and_label(i)) for i in others)]
            sample = self.move_mosaic(put_together([self.resize_tile(tile) for tile in tiles]))
            sample = self.distort(sample)
        elif plan.augments:
            sample = self.crop(self.zoom_out(self.distort(sample)))
        sample = self.sanitize(sample)
        sample = self.sanitize(self.resize(self.flip(sample)))
        return write_sample(labels, sample)


def read_sample(labels: dict) -> dict:
    """Give image and boxes of upstream's labels as torchvision's tensors: RGB (C, H, W), and XYXY in pixels."""
    from torchvision import tv_tensors

    image, instances = labels["img"], copy.deepcopy(labels["instances"])
    h, w = image.shape[:2]
    instances.convert_bbox("xyxy")
    instances.denormalize(w, h)
    pixels = np.ascontiguousarray(image[..., ::-1] if image.shape[-1] == 3 else image).transpose(2, 0, 1)
    boxes = torch.as_tensor(instances.bboxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "image": tv_tensors.Image(torch.from_numpy(pixels).contiguous()),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(h, w)),  # pyright: ignore
        "labels": torch.as_tensor(labels["cls"]).reshape(-1),
    }


def write_sample(labels: dict, sample: dict) -> dict:
    """Write an augmented image and its boxes back into upstream's labels."""
    from ultralytics.utils.instance import Instances

    image = sample["image"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(image[..., ::-1] if image.shape[-1] == 3 else image)
    boxes = sample["boxes"].numpy()
    labels.update(
        img=image,
        cls=sample["labels"].numpy().reshape(-1, 1),
        resized_shape=image.shape[:2],
        instances=Instances(
            boxes, np.zeros((len(boxes), 0, 2), dtype=np.float32), bbox_format="xyxy", normalized=False
        ),
    )
    return labels


def put_together(tiles: list[dict]) -> dict:
    """Put four images into the corners of one, each at the upper left of a tile of the largest height and width."""
    from torchvision import tv_tensors

    h, w = (max(tile["image"].shape[d] for tile in tiles) for d in (1, 2))
    canvas = tiles[0]["image"].new_zeros(tiles[0]["image"].shape[0], 2 * h, 2 * w)
    boxes = []
    for tile, (top, left) in zip(tiles, ((0, 0), (0, w), (h, 0), (h, w))):
        canvas[:, top : top + tile["image"].shape[1], left : left + tile["image"].shape[2]] = tile["image"]
        boxes.append(tile["boxes"].as_subclass(torch.Tensor) + torch.tensor([left, top, left, top]))
    return {
        "image": tv_tensors.Image(canvas),
        "boxes": tv_tensors.BoundingBoxes(torch.cat(boxes), format="XYXY", canvas_size=(2 * h, 2 * w)),  # pyright: ignore
        "labels": torch.cat([tile["labels"] for tile in tiles]),
    }


def say_what_is_replaced(args: Any) -> None:
    """Warn of arguments of upstream's augmentation that were set and do nothing beside the official one."""
    if not has_official_augmentation(args):
        return
    replaced = REPLACED if args.aug_policy else (*REPLACED, *POLICY_MIXING)
    named = [key for key in replaced if getattr(args, key) != DEFAULT_CFG_DICT[key]]
    if getattr(args, "augmentations", None):
        named.append("augmentations")
    if named:
        LOGGER.warning(
            f"{', '.join(named)} {'do' if len(named) > 1 else 'does'} nothing with photometric, zoom_out or iou_crop, "
            "whose augmentation takes the place of Ultralytics'; its mosaic and mixup need aug_policy=deim"
        )
