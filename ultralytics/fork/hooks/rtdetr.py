"""What this fork does to upstream's models/rtdetr: the official augmentation; backbones that get other weights."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from ultralytics.fork.data.official_augmentation import OfficialAugmentation, has_official_augmentation
from ultralytics.fork.hooks.override import install_module, override
from ultralytics.fork.pretrained.timm_rows import has_same_backbone, set_image_size
from ultralytics.fork.pretrained.timm_weights import weights_follow
from ultralytics.fork.training.augmentation_epochs import EpochPlan

DATASET = "ultralytics.models.rtdetr.val.RTDETRDataset"
TRAINER = "ultralytics.models.rtdetr.train.RTDETRTrainer"


def install() -> None:
    """Put the overrides in place, when a trainer of RT-DETR is made."""
    install_module(DATASET)
    install_module(TRAINER)


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


@override(TRAINER)
def get_model(original: Any, self: Any, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
    """Build a backbone of timm for the size of the images, and without weights of its own if a checkpoint has them."""
    with weights_follow() if has_same_backbone(cfg, weights) else nullcontext():
        return original(self, set_image_size(cfg, self.args.imgsz), weights, verbose)
