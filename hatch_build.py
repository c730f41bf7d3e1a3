"""Build hook: before the project is installed or packed, make ultralytics/ the pinned release with our patches."""

import sys
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class UpstreamHook(BuildHookInterface):
    """Runs `scripts/upstream.py apply`; what stops it is one line, not a traceback."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Lay the tree down in the checkout, or in the folder that a front end has unpacked the sources to."""
        sys.path.insert(0, str(Path(self.root, "scripts")))
        from _upstream.pin import UpstreamError
        from _upstream.queue.apply import apply

        try:
            print(apply(Path(self.root)))
        except UpstreamError as e:
            sys.exit(f"ultralytics set-up: {e}")
