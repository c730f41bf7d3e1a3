"""Search, by `tune`, only over arguments that act on the training of an RT-DETR."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ultralytics.cfg import get_cfg
from ultralytics.fork.arguments import IGNORED
from ultralytics.fork.data.official_augmentation import POLICY_MIXING, REPLACED, has_official_augmentation
from ultralytics.fork.errors import Refused
from ultralytics.utils import LOGGER


def list_dead_arguments(args: Any) -> set[str]:
    """List the arguments that do nothing in a training of an RT-DETR with these arguments, or that it refuses."""
    dead = {*IGNORED["train"], "dfl"}
    if not getattr(args, "loss", None):
        dead.add("cls_pw")
    if has_official_augmentation(args):
        dead |= {*REPLACED, "close_mosaic"} | (set() if args.aug_policy else set(POLICY_MIXING))
    if getattr(args, "optimizer", None) == "auto":
        dead |= {"lr0", "momentum"}
    if getattr(args, "warmup_steps", None) is not None:
        dead.add("warmup_epochs")
    if str(getattr(args, "optimizer", "")).startswith("Adam"):
        dead.add("warmup_momentum")
    return dead


def refuse_dead_arguments(space: Any, args: Any) -> None:
    """Raise `Refused` for a space with arguments that do nothing."""
    dead = [key for key in space if key in list_dead_arguments(args)]
    if dead:
        raise Refused(f"space: {', '.join(dead)} would do nothing in this training of an RT-DETR; leave it out")


@contextmanager
def search_what_acts(use_ray: bool, space: dict | None, arguments: dict) -> Iterator[None]:
    """Let upstream's tuner leave out of its space what does not act on an RT-DETR.

    Args:
        use_ray: Whether Ray Tune searches.
        space: The space that the user gives, or None for upstream's.
        arguments: Those of the trainings.

    Raises:
        Refused: If the given space has such an argument, or Ray Tune would search upstream's space.
    """
    from ultralytics.engine.tuner import Tuner

    if use_ray and not space:
        raise Refused(
            "use_ray=True needs space= with RT-DETR: Ultralytics' own space for Ray Tune has arguments that do nothing "
            "here, or are refused"
        )
    if use_ray:
        refuse_dead_arguments(space, get_cfg(overrides=arguments))
    init = Tuner.__init__

    def init_with_what_acts(tuner: Any, *args: Any, **kwargs: Any) -> None:
        init(tuner, *args, **kwargs)
        if space:
            refuse_dead_arguments(space, tuner.args)
        dead = list_dead_arguments(tuner.args)
        tuner.space = {key: bounds for key, bounds in tuner.space.items() if key not in dead}
        LOGGER.info(f"{tuner.prefix}searches over {', '.join(tuner.space)}; the rest does nothing with an RT-DETR")

    with patch.object(Tuner, "__init__", init_with_what_acts):
        yield
