"""What this fork does to upstream's engine/predictor.py and engine/validator.py.

`predict`, `track` and `val` run the decoder layers and queries that are chosen. In a process of a launcher, `val`
outside of a training runs as it does without a launcher.
"""

from __future__ import annotations

from typing import Any

from ultralytics.fork.decoder_size import choose_decoder_size
from ultralytics.fork.distributed import elastic_launch
from ultralytics.fork.hooks.override import install, override

__all__ = "choose_decoder_size", "install"


@override("ultralytics.engine.validator.BaseValidator")
def __call__(original: Any, self: Any, trainer: Any = None, model: Any = None, **kwargs: Any) -> Any:
    """Validate in each process of a launcher without the others, where no training runs."""
    if not elastic_launch.is_launched():
        return original(self, trainer, model, **kwargs)
    from ultralytics.fork.distributed.launched_trainer import validate_alone

    return validate_alone(original, self, trainer, model, **kwargs)
