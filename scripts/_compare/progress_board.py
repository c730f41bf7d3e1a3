"""Where the runs on a cluster tell their progress.

A file of its own, without torch: the actor is there in a moment and takes few threads, also on a small head node.
"""

from __future__ import annotations


class ProgressBoard:
    """An actor to which tasks write their progress, and from which the driver reads it."""

    def __init__(self):
        self.said: dict[str, tuple[int, int, float]] = {}

    def write(self, where: str, epoch: int, epochs: int, seconds: float) -> None:
        """Record the progress of a run."""
        self.said[where] = epoch, epochs, seconds

    def lines(self) -> dict[str, tuple[int, int, float]]:
        """Return the progress of all runs."""
        return self.said
