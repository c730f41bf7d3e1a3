"""What this fork does to upstream's engine/predictor.py and engine/validator.py.

`predict`, `track` and `val` run the decoder layers and queries that are chosen, and say which arguments do nothing;
predicted boxes are clipped to their image. Convolutions take the kernels that are fast, unless `fast_kernels=False`. In
a process of a launcher, `val` outside of a training runs as it does without a launcher. Detections on a data set of
annotations bear their ids.
"""

from __future__ import annotations

import copy
from typing import Any

from ultralytics.fork import arguments, decoder_size
from ultralytics.fork.data import coco_evaluation
from ultralytics.fork.distributed import elastic_launch
from ultralytics.fork.hooks.override import install, install_module, override
from ultralytics.fork.pointwise_convolutions import use_onednn_on_one_thread
from ultralytics.fork.rtdetr import find_head
from ultralytics.utils.ops import clip_boxes

DETECTION_VALIDATOR = "ultralytics.models.yolo.detect.val.DetectionValidator"
PREDICTOR = "ultralytics.models.rtdetr.predict.RTDETRPredictor"

__all__ = "choose_decoder_size", "install"


def choose_decoder_size(model: Any, args: Any) -> None:
    """Check the arguments of a prediction or a validation, and choose the decoder layers and queries that it runs.

    Args:
        model: An `AutoBackend`, or what a predictor has in its place.
        args: The arguments of the call.
    """
    install_module(PREDICTOR)  # whose file is imported by now, if it is one
    arguments.check_classes(args, getattr(model, "names", None))
    arguments.check_switch("fast_kernels", args.fast_kernels)
    arguments.say_precision(args, getattr(model, "device", None))
    module: Any = getattr(getattr(model, "backend", model), "model", None)
    if find_head(module) and args.mode != "train":  # the last validation of a training has its arguments
        arguments.say_what_is_ignored("val" if args.mode == "val" else "predict", args)
        use_onednn_on_one_thread(module, args.fast_kernels is not False)
    decoder_size.choose_decoder_size(model, args)


@override("ultralytics.engine.validator.BaseValidator")
def __call__(original: Any, self: Any, trainer: Any = None, model: Any = None, **kwargs: Any) -> Any:
    """Validate in each process of a launcher without the others, where no training runs."""
    install_module(DETECTION_VALIDATOR)
    if not elastic_launch.is_launched():
        asked = copy.copy(self.args)  # upstream notes in its place the precision that it has
        result = original(self, trainer, model, **kwargs)
        if trainer is None:
            arguments.say_precision(asked, self.device)
        return result
    from ultralytics.fork.distributed.launched_trainer import validate_alone

    return validate_alone(original, self, trainer, model, **kwargs)


@override(DETECTION_VALIDATOR)
def update_metrics(original: Any, self: Any, preds: list, batch: dict[str, Any]) -> None:
    """Note detections under the ids of the annotations that the data set was read from."""
    before = len(self.jdict)
    original(self, preds, batch)
    coco_evaluation.name_images(self, before, batch, preds)


@override(DETECTION_VALIDATOR)
def eval_json(original: Any, self: Any, stats: dict[str, Any]) -> dict[str, Any]:
    """Evaluate detections on the annotations that the data set was read from."""
    if not coco_evaluation.list_annotations(self):
        return original(self, stats)
    return coco_evaluation.evaluate(self, stats)


@override(PREDICTOR)
def postprocess(original: Any, self: Any, *args: Any, **kwargs: Any) -> list:
    """Clip boxes to their image, as other models do; what reads results takes a box beyond it for a mistake."""
    results = original(self, *args, **kwargs)
    for result in results:
        clip_boxes(result.boxes.data, result.orig_shape)
    return results
