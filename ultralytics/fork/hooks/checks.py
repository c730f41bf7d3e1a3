"""What this fork does to upstream's utils/checks.py, which imports this while it is half made.

`yolo checks` describes the fork, no newer upstream is looked up, fonts and the model for the check of AMP are not
fetched, and missing packages are named, not installed.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ultralytics.fork.hooks.override import install, override
from ultralytics.fork.installation import describe_installation
from ultralytics.fork.privacy.downloads import find_font_on_disk
from ultralytics.fork.privacy.packages import name_missing_packages

__all__ = "describe_installation", "install", "name_missing_packages"

CHECKS = "ultralytics.utils.checks"


@override(CHECKS)
def check_pip_update_available(original: Any) -> bool:
    """Look up no newer upstream, since this fork is updated by `git pull`; `original` is not called."""
    return False


@override(CHECKS)
def check_font(original: Any, font: str = "Arial.ttf") -> Any:
    """Take another font on this machine where upstream would fetch the one that is named."""
    from ultralytics.utils import checks

    with patch.object(checks.downloads, "is_url", return_value=False):  # upstream asks it last, before it fetches
        found = original(font)
    return found or choose_font(Path(font).name)


@functools.cache
def choose_font(name: str) -> str:
    """Find a font in place of one that is missing, and say so once."""
    return find_font_on_disk(name)


class AmpModelNeeded(Exception):
    """Upstream's check of AMP has come to the image and the model that it compares on."""


class AmpModel:
    """What upstream's check of AMP finds in place of its image and its model."""

    def __call__(self, *args: Any) -> Any:
        """Stop the check where it would open its model."""
        raise AmpModelNeeded

    __truediv__ = __call__  # of the assets, where it takes its image


@override(CHECKS)
def check_amp(original: Any, model: Any) -> bool:
    """Check half precision without fetching a model; upstream's list of GPUs stays in use."""
    from ultralytics.fork.training.mixed_precision import is_half_precision_accurate
    from ultralytics.utils import checks

    try:
        with patch.object(checks, "ASSETS", AmpModel()), patch("ultralytics.YOLO", AmpModel()):
            return original(model)
    except AmpModelNeeded:
        return is_half_precision_accurate(next(model.parameters()).device)
