"""What this fork does to upstream's utils/__init__.py, which imports this while it is half made.

Nothing is sent out that the user has not turned on, no connection is tried at import, no package is installed unless
the user asks for it, and YAML files are read within limits. Large tensors on a CPU lie in huge pages.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from ultralytics.fork.errors import install_excepthook
from ultralytics.fork.hooks import patches
from ultralytics.fork.hooks.override import install_module, override
from ultralytics.fork.privacy import telemetry
from ultralytics.fork.training.cpu_memory import allow_huge_pages

__all__ = "ask_when_used", "install"

SETTINGS = "ultralytics.utils.SettingsManager"
YAML = "ultralytics.utils.YAML"


def ask_when_used(is_online: Callable[[], bool]) -> type:
    """Replace `is_online` by a class whose objects ask it when their truth is used, not at import."""

    class Online:
        def __bool__(self) -> bool:
            return is_online()

    return Online


def install(names: dict[str, Any]) -> None:
    """Put the overrides of this file and of hooks/patches.py in place.

    Args:
        names: Globals of utils/__init__.py, which puts its `torch_save` in place of torch's afterwards.
    """
    install_excepthook()
    allow_huge_pages()
    install_settings(names)
    install_module(patches.PATCHES)


def install_settings(names: dict[str, Any]) -> None:
    """Put the overrides in place before upstream makes its settings, and turn off what other packages would send.

    Args:
        names: Globals of utils/__init__.py.
    """
    telemetry.opt_out_of_telemetry()
    names["AUTOINSTALL"] &= "YOLO_AUTOINSTALL" in os.environ
    install_module(SETTINGS)
    install_module(YAML)


@override(SETTINGS)
def _load(original: Any, self: Any) -> None:
    """Turn off what sends something out, unless the user turned it on here."""
    telemetry.load_settings(original, self)


@override(SETTINGS)
def update(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Note what the user turns on that sends something out."""
    telemetry.update_settings(original, self, *args, **kwargs)


@override(YAML, since="8.3.125")
def load(original: Any, cls: type, *args: Any, **kwargs: Any) -> Any:
    """Read a file within limits of its size and of its aliases."""
    from ultralytics.fork.building.yaml_limits import load_within_limits

    return load_within_limits(functools.partial(original, cls), *args, **kwargs)
