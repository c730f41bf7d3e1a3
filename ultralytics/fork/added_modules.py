"""Tell which Python modules hold the layers that users add: files of nn/AddModules, and packages of their own."""

from __future__ import annotations

ADDED = "ultralytics.nn.AddModules."
EXTERNAL: set[str] = set()  # Python modules of installed packages that register their layers by an entry point


def is_added(module: str) -> bool:
    """Whether a Python module is a file of nn/AddModules, or an installed package's that registers its layers."""
    return module.startswith(ADDED) or module in EXTERNAL
