"""What this fork does to the data set of upstream's models/rtdetr/val.py: the official augmentation."""

from __future__ import annotations

from typing import Any

from ultralytics.fork.data.official_augmentation import OfficialAugmentation, has_official_augmentation
from ultralytics.fork.hooks.override import install_module, override
from ultralytics.fork.training.augmentation_epochs import EpochPlan

DATASET = "ultralytics.models.rtdetr.val.RTDETRDataset"


def install() -> None:
    """Put the overrides in place, when a trainer of RT-DETR is made."""
    install_module(DATASET)


@override(DATASET)
def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Note, before the first image is loaded, whether this data set has the official augmentation."""
    if kwargs.get("augment") and has_official_augmentation(kwargs.get("hyp")):
        self.plan = EpochPlan(mixes=False)  # the trainer plans each epoch
        self.mosaic_share = kwargs["hyp"].mosaic  # `close_mosaic` is not for it
    original(self, *args, **kwargs)
    if hasattr(self, "plan"):
        self.max_buffer_length = 1  # upstream's mosaics are of images that it keeps, and these are of any size


@override(DATASET)
def build_transforms(original: Any, self: Any, hyp: Any = None) -> Any:
    """Put the official augmentation in place of upstream's, in front of the formatting that ends it."""
    transforms = original(self, hyp)
    if hasattr(self, "plan"):
        transforms.transforms = [OfficialAugmentation(self, hyp), transforms.transforms[-1]]
    return transforms
