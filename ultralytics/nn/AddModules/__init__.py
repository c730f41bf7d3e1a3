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
from ultralytics.nn.AddModules.checkout import warn_if_stale  # noqa: E402
from ultralytics.nn.AddModules.checkpoints import (  # noqa: E402
    atomic,
    begin,
    called,
    can_resume,
    guarded,
    resumable,
    training_state,
    write,
)
from ultralytics.nn.AddModules.finite import clip_gradients, watch  # noqa: E402
from ultralytics.nn.AddModules.hooks import checked, embed_by_index, fuse, read_row, route, run, seat  # noqa: E402
from ultralytics.nn.AddModules.recipe import advise, slow_backbone  # noqa: E402
from ultralytics.nn.AddModules.registry import NAMES, READERS  # noqa: E402
from ultralytics.nn.AddModules.timm_weights import is_timm, load_timm  # noqa: E402
from ultralytics.nn.AddModules.transfer import align, save_transfer, settle  # noqa: E402

__all__ = (
    "READERS",
    "advise",
    "align",
    "atomic",
    "begin",
    "called",
    "can_resume",
    "checked",
    "clip_gradients",
    "embed_by_index",
    "fuse",
    "guarded",
    "is_timm",
    "load_timm",
    "read_row",
    "resumable",
    "route",
    "run",
    "save_transfer",
    "seat",
    "settle",
    "slow_backbone",
    "training_state",
    "watch",
    "write",
)

globals().update({_name: _cls for _name, _cls in NAMES.items() if _name not in {*_files, *__all__}})

warn_if_stale()
