"""Modules of published RT-DETR improvements, one file a paper, and the hooks through which upstream uses them.

Every file of this folder is imported, so that a new one registers its modules by being there. Registered classes can be
imported from here too, but for one that has its file's name.
"""

import importlib
import pkgutil

_files = {file.name for file in pkgutil.iter_modules(__path__)}
for _file in sorted(_files):
    importlib.import_module(f"{__name__}.{_file}")

# Behind the loop, which binds each file's name here: one called `run.py` must not take a hook's place
from ultralytics.nn.AddModules.additions import (  # noqa: E402
    add_to_backend,
    add_to_data,
    add_to_exporter,
    add_to_tasks,
    add_to_trainer,
)
from ultralytics.nn.AddModules.checkout import warn_if_stale  # noqa: E402
from ultralytics.nn.AddModules.checkpoints import begin, refuse_finished  # noqa: E402
from ultralytics.nn.AddModules.hooks import checked, embed_by_index, fuse, read_row, route, run, seat  # noqa: E402
from ultralytics.nn.AddModules.metadata import is_exact, stem  # noqa: E402
from ultralytics.nn.AddModules.quiet import agrees_in_half, at_hand, font_on_disk, named, not_installed  # noqa: E402
from ultralytics.nn.AddModules.registry import NAMES, READERS  # noqa: E402

__all__ = (
    "READERS",
    "add_to_backend",
    "add_to_data",
    "add_to_exporter",
    "add_to_tasks",
    "add_to_trainer",
    "agrees_in_half",
    "at_hand",
    "begin",
    "checked",
    "embed_by_index",
    "font_on_disk",
    "fuse",
    "is_exact",
    "named",
    "not_installed",
    "read_row",
    "refuse_finished",
    "route",
    "run",
    "seat",
    "stem",
)

globals().update({_name: _cls for _name, _cls in NAMES.items() if _name not in {*_files, *__all__}})

warn_if_stale()
