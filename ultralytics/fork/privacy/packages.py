"""Install no package unasked, and say how to install a missing one.

Upstream's utils/checks.py imports this file while it is half made: its head imports Python's own modules only.
"""

from __future__ import annotations

import re
import shlex
from importlib import metadata


def name_missing_packages(packages: list[str], options: str = "") -> bool:
    """Say how to install missing packages, which upstream would install by itself; give False, as its check does."""
    from ultralytics.utils import LOGGER

    extras = sorted({extra for package in packages for extra in find_extras(package)})
    commands = [f"`uv run --extra {extra} …`" for extra in extras[:1]]
    commands += [f"`pip install {' '.join([*map(shlex.quote, packages), options]).strip()}`"]
    LOGGER.warning(
        f"{', '.join(packages)} is not installed, and nothing is installed unasked: {' or '.join(commands)} does it, "
        "and YOLO_AUTOINSTALL=true lets such packages be installed when they are missed"
    )
    return False


def find_extras(package: str) -> set[str]:
    """Find the extras of this project that bring a package."""
    start = re.match(r"[\w.-]*", package)
    assert start is not None  # the pattern matches the empty text, too
    name = start[0].lower()
    found = (re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)", line) for line in metadata.requires("ultralytics") or ())
    return {match[2] for match in found if match and match[1].lower() == name}
