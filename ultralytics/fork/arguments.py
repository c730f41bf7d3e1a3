"""Say which arguments do nothing in an RT-DETR, or not what they seem to; upstream takes them all in silence."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ultralytics.fork.errors import Refused
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

STRETCHED = "each image is stretched to imgsz x imgsz"
SELECTION = "RT-DETR selects its queries and has no non-maximum suppression"
NO_AUGMENTATION = "RT-DETR has no augmentation at inference"
OTHER_TASK = "it is for another task"
OF_TRAINING, OF_PREDICTION, OF_EXPORT = "it is for train", "it is for predict and track", "it is for export"

SEGMENTS = "overlap_mask", "mask_ratio", "retina_masks", "copy_paste_mode"
LOSSES_OF_OTHERS = "pose", "kobj", "rle", "angle", "dlog", "dgrad", "dlam"
CLASSIFICATION = "auto_augment", "dropout", "erasing"
PREDICTION = (
    *("embed", "line_width", "save_conf", "save_crop", "save_frames", "show", "show_boxes", "show_conf"),
    *("show_labels", "source", "stream_buffer", "tracker", "vid_stride"),
)
EXPORT = "dynamic", "format", "opset", "optimize", "simplify", "verify", "workspace"
TRAINING = (
    *("amp", "aug_policy", "backbone_lr", "base_size_repeat", "bgr", "bias_decay", "box", "checkpoint_activations"),
    *("clip_grad", "close_mosaic", "cls", "cls_pw", "cls_remap", "copy_paste", "cos_lr", "cutmix", "degrees"),
    *("deterministic", "dfl", "dis", "distill_boxes", "distill_features", "distill_logits", "distill_model", "epochs"),
    *("export_check", "fliplr", "flipud", "freeze"),
    *("freeze_at", "freeze_norm", "hsv_h", "hsv_s", "hsv_v", "iou_crop", "loss", "lr0", "lr_schedule", "lrf"),
    *("mixup", "momentum", "mosaic", "multi_scale", "nbs", "no_aug_epochs", "optimizer", "patience", "perspective"),
    *("photometric", "pretrained", "resume", "save_period", "scale", "seed", "shear", "time", "translate"),
    *("warmup_bias_lr", "warmup_epochs", "warmup_momentum", "warmup_steps", "weight_decay", "zoom_out"),
)
OF_OTHERS = dict.fromkeys((*SEGMENTS, *LOSSES_OF_OTHERS, *CLASSIFICATION), OTHER_TASK)
SUPPRESSION = dict.fromkeys(("iou", "agnostic_nms", "nms"), SELECTION)
INFERENCE = {
    "augment": NO_AUGMENTATION,
    **SUPPRESSION,
    **OF_OTHERS,
    **dict.fromkeys(TRAINING, OF_TRAINING),
    **dict.fromkeys(EXPORT, OF_EXPORT),
}

# What does nothing with an RT-DETR where it differs from the default, by mode, and why
IGNORED: dict[str, dict[str, str]] = {
    "train": {
        "rect": STRETCHED,
        "augment": NO_AUGMENTATION,
        "copy_paste": "it copies objects by their polygons, and a detection keeps boxes only",
        "dnn": "it is for an exported model",
        "dis": "the gains of a teacher are distill_logits, distill_boxes and distill_features",
        **SUPPRESSION,
        **OF_OTHERS,
        **dict.fromkeys(PREDICTION, OF_PREDICTION),
        **dict.fromkeys(EXPORT, OF_EXPORT),
    },
    "val": {
        **INFERENCE,
        **dict.fromkeys(PREDICTION, OF_PREDICTION),
    },
    "predict": {
        **INFERENCE,
        **dict.fromkeys(("fraction", "plots", "save_json", "split", "val", "cache"), "it is for train and val"),
    },
    "export": {
        **dict.fromkeys(("iou", "agnostic_nms", "conf", "max_det"), SELECTION),
        **OF_OTHERS,
        **dict.fromkeys(TRAINING, OF_TRAINING),
        **dict.fromkeys(PREDICTION, OF_PREDICTION),
        **dict.fromkeys(("rect", "augment", "classes", "save_txt", "visualize"), "it is for predict and val"),
        "fast_kernels": "it is for train, predict and val with PyTorch",
    },
}
MIXING = "mosaic", "mixup", "cutmix"  # augmentations that `close_mosaic` ends


def say_what_is_ignored(mode: str, args: Any) -> None:
    """Warn of arguments that were set and do nothing with an RT-DETR.

    Args:
        mode: A key of `IGNORED`.
        args: The arguments of the call.
    """
    for key, why in IGNORED[mode].items():
        value = getattr(args, key, None)
        if value is not None and value != DEFAULT_CFG_DICT.get(key):
            warn_once(f"{key}={value} does nothing in {mode} with an RT-DETR: {why}")


def say_what_training_does(args: Any, device: Any) -> None:
    """Warn of arguments of a training whose effect is another than it seems."""
    closed = [key for key in MIXING if getattr(args, key, 0)]
    if closed and 0 < args.epochs <= args.close_mosaic:
        LOGGER.warning(
            f"close_mosaic={args.close_mosaic} with epochs={args.epochs} turns {', '.join(closed)} off from the first "
            f"epoch; close_mosaic=0 keeps them"
        )
    say_precision(args, device)


def say_precision(args: Any, device: Any) -> None:
    """Warn of half precision where the device has none."""
    precision = getattr(args, "quantize", None)
    is_half = bool(getattr(args, "half", False)) or str(precision).lower() in {"16", "fp16", "w16a16"}
    if is_half and str(getattr(device, "type", device)) == "cpu":
        warn_once("half precision was asked for, and a CPU computes in FP32; device=0 is the first GPU")


@functools.lru_cache(maxsize=1000)
def warn_once(line: str) -> None:
    """Warn, the first time in this process: a stream of images is predicted in many calls."""
    LOGGER.warning(line)


def check_classes(args: Any, names: Any) -> None:
    """Refuse `classes=` that the data set or the model does not have.

    Args:
        args: The arguments of the call.
        names: The names of the classes.

    Raises:
        Refused: With the classes that there are.
    """
    classes = getattr(args, "classes", None)
    if classes is None or not names or getattr(args, "single_cls", False):  # which keeps one name of all
        return
    chosen = list(np.ravel(np.asarray(classes, dtype=object)))
    unknown = [x for x in chosen if not is_class(x, len(names))]
    if unknown:
        raise Refused(f"classes={classes}: there is no class {unknown[0]!r}; there are 0 to {len(names) - 1}")


def check_switch(key: str, value: Any) -> None:
    """Raise `Refused` for a switch that is neither on nor off nor left out."""
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{key}={value!r}: expected True or False")


def is_class(x: Any, count: int) -> bool:
    """Whether a value is the number of a class."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool) and bool(0 <= x < count)
