"""Modules of published RT-DETR improvements, one file a paper, and the hooks through which upstream uses them.

Every file of this folder is imported, so that a new one registers its modules by being there.
"""

import importlib
import pkgutil

from ultralytics.nn.AddModules.checkout import warn_if_stale
from ultralytics.nn.AddModules.hooks import checked, fuse, read_row, route, run, seat
from ultralytics.nn.AddModules.registry import READERS

for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    if _file.name not in ("hooks", "registry"):
        globals().update({_name: getattr(_module, _name) for _name in getattr(_module, "__all__", ())})

__all__ = "READERS", "checked", "fuse", "read_row", "route", "run", "seat"

warn_if_stale()
