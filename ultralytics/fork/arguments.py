"""Say which arguments do nothing in an RT-DETR, or not what they seem to; upstream takes them all in silence."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from ultralytics.fork.errors import Refused
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

STRETCHED = "each image is stretched to imgsz x imgsz"
SELECTION = "RT-DETR selects its queries and has no non-maximum suppression"
GAINS = "the gains of RT-DETR's loss are its own"
OTHER_TASK = "it is for another task"
NOT_IN_TRAINING = "it is for val and predict"
DEPLOYMENT = "it is for an exported model"

# What does nothing with an RT-DETR where it differs from the default, by mode, and why
IGNORED: dict[str, dict[str, str]] = {
    "train": {
        "rect": STRETCHED,
        **dict.fromkeys(("box", "cls", "dfl", "cls_pw"), GAINS),
        **dict.fromkeys(("iou", "agnostic_nms", "nms"), SELECTION),
        **dict.fromkeys(
            ("overlap_mask", "mask_ratio", "dropout", "auto_augment", "erasing", "retina_masks"), OTHER_TASK
        ),
        **dict.fromkeys(("pose", "kobj", "rle", "angle", "dlog", "dgrad", "dlam", "copy_paste_mode"), OTHER_TASK),
        "copy_paste": "it copies objects by their polygons, of which a detection keeps the boxes only",
        "augment": NOT_IN_TRAINING,
        "dnn": DEPLOYMENT,
    },
    "val": {
        "rect": STRETCHED,
        "augment": "RT-DETR has no augmentation at inference",
        **dict.fromkeys(("iou", "agnostic_nms", "nms"), SELECTION),
    },
    "predict": {
        "augment": "RT-DETR has no augmentation at inference",
        **dict.fromkeys(("iou", "agnostic_nms", "nms"), SELECTION),
        "retina_masks": OTHER_TASK,
    },
    "export": {
        **dict.fromkeys(("iou", "agnostic_nms", "conf", "max_det"), SELECTION),
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
        if value is not None and value != DEFAULT_CFG_DICT.get(key) and not is_set_by_upstream(mode, key, value):
            warn_once(f"{key}={value} does nothing in {mode} with an RT-DETR: {why}")


def is_set_by_upstream(mode: str, key: str, value: Any) -> bool:
    """Whether upstream itself has given an argument a value that the user may not have named."""
    defaults = {("val", "rect"): True, ("predict", "rect"): True, ("export", "iou"): 0.45, ("predict", "iou"): 0.7}
    return defaults.get((mode, key)) == value


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


def check_classes(classes: Any, names: Any) -> None:
    """Refuse `classes=` that the data set or the model does not have.

    Raises:
        Refused: With the classes that there are.
    """
    if classes is None or not names:
        return
    chosen = classes if isinstance(classes, (list, tuple)) else [classes]
    unknown = list(find_unknown(chosen, len(names)))
    if unknown:
        raise Refused(f"classes={classes}: there is no class {unknown[0]!r}; there are 0 to {len(names) - 1}")


def find_unknown(chosen: Any, count: int) -> Iterator[Any]:
    """Find what is no class among what was chosen."""
    for x in chosen:
        if not (isinstance(x, int) and not isinstance(x, bool) and 0 <= x < count):
            yield x
