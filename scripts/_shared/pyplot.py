"""Import matplotlib.pyplot with a backend that needs no display."""

from __future__ import annotations

from types import ModuleType


def pyplot() -> ModuleType:
    """Return matplotlib.pyplot with the backend Agg, which draws into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
