"""What this fork does to upstream's engine/predictor.py and engine/validator.py.

`predict`, `track` and `val` run the decoder layers and queries that are chosen, and say which arguments do nothing;
predicted boxes are clipped to their image. In a process of a launcher, `val` outside of a training runs as it does
without a launcher.
"""

from __future__ import annotations

import copy
from typing import Any

from ultralytics.fork import arguments, decoder_size
from ultralytics.fork.distributed import elastic_launch
from ultralytics.fork.hooks.override import install, install_module, override
from ultralytics.fork.rtdetr import find_head
from ultralytics.utils.ops import clip_boxes

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
    arguments.say_precision(args, getattr(model, "device", None))
    has_head = find_head(getattr(getattr(model, "backend", model), "model", None))
    if has_head and args.mode != "train":  # the last validation of a training has its arguments
        arguments.say_what_is_ignored("val" if args.mode == "val" else "predict", args)
    decoder_size.choose_decoder_size(model, args)


@override("ultralytics.engine.validator.BaseValidator")
def __call__(original: Any, self: Any, trainer: Any = None, model: Any = None, **kwargs: Any) -> Any:
    """Validate in each process of a launcher without the others, where no training runs."""
    if not elastic_launch.is_launched():
        asked = copy.copy(self.args)  # upstream notes in its place the precision that it has
        result = original(self, trainer, model, **kwargs)
        if trainer is None:
            arguments.say_precision(asked, self.device)
        return result
    from ultralytics.fork.distributed.launched_trainer import validate_alone

    return validate_alone(original, self, trainer, model, **kwargs)


@override(PREDICTOR)
def postprocess(original: Any, self: Any, *args: Any, **kwargs: Any) -> list:
    """Clip boxes to their image, as other models do; what reads results takes a box beyond it for a mistake."""
    results = original(self, *args, **kwargs)
    for result in results:
        clip_boxes(result.boxes.data, result.orig_shape)
    return results
