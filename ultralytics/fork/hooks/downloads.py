"""What this fork does to upstream's utils/downloads.py; the hook of nn/tasks.py installs it."""

from __future__ import annotations

import functools
from typing import Any

from ultralytics.fork.data.archives import download_and_unpack
from ultralytics.fork.hooks.override import install_module, override

__all__ = ("install",)

DOWNLOADS = "ultralytics.utils.downloads"


@functools.cache
def install() -> None:
    """Put the overrides in place, once."""
    install_module(DOWNLOADS)


@override(DOWNLOADS)
def get_github_assets(original: Any, repo: str = "ultralytics/assets", *args: Any, **kwargs: Any) -> tuple:
    """Look up no list of upstream's files, which the release names already, so that a typo opens no connection."""
    return ("", []) if repo == "ultralytics/assets" else original(repo, *args, **kwargs)


@override(DOWNLOADS)
def safe_download(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Unpack no archive that would fill the disk; say in one line which archive is damaged."""
    return download_and_unpack(original, *args, **kwargs)
