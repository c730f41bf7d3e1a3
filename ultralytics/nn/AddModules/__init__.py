"""Modules of published RT-DETR improvements, one file a paper, and the files that users add.

Every file of this folder is imported, so that a new one registers its modules by being there. Registered classes can be
imported from here too, except one that has its file's name.
"""

import importlib
import pkgutil

from ultralytics.nn.AddModules.registry import NAMES

_files = {file.name for file in pkgutil.iter_modules(__path__)}
for _file in sorted(_files):
    importlib.import_module(f"{__name__}.{_file}")

globals().update({_name: _cls for _name, _cls in NAMES.items() if _name not in _files})
