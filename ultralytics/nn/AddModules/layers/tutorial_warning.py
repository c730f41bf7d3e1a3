"""The warning about modules that were unpickled from a checkpoint of tutorial code."""

from __future__ import annotations

import functools

from ultralytics.utils import LOGGER

__all__ = ()


@functools.cache
def warn_of_tutorial_module(what: str) -> None:
    """Warn once that a loaded module keeps what a tutorial's code did, and that training does not."""
    LOGGER.warning(
        f"This checkpoint was made by tutorial code and keeps {what} in predict, val and export; training from it "
        "builds the layer anew, as the paper has it, with the same weights."
    )
