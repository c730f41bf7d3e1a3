"""The errors of a refused checkpoint, and the environment variable that turns the refusal off."""

from __future__ import annotations

import os

SAFE_LOAD = "ULTRALYTICS_SAFE_LOAD"  # environment variable
OPT_OUT = f"If you trust where it comes from, open it with {SAFE_LOAD}=0 in the environment, which runs what it names"


class Violation(Exception):
    """A checkpoint does what no model's checkpoint does; whoever opens the file puts its name before the message."""


class MissingModule(Exception):
    """A checkpoint names a module that is not installed; to trust the file does not help."""


def is_restricted() -> bool:
    """Whether checkpoints are opened without running what is in them."""
    return os.environ.get(SAFE_LOAD, "").strip().lower() not in {"0", "false", "no", "off"}
