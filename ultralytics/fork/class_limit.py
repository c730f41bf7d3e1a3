"""The most classes that a model or a data set may have."""

from __future__ import annotations

MAX_CLASSES = 100_000  # more than any data set has; upstream makes a name for each
