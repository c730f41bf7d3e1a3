"""Modules of published RT-DETR improvements, one file a paper, and the files that users add.

Every file of this folder is imported, so that a new one registers its modules by being there; so is every file of the
folders in the environment's ULTRALYTICS_ADDMODULES, and what installed packages name by entry points of the group
`ultralytics.addmodules`. Registered classes can be imported from here too, except one that has its file's name.
"""

import importlib
import importlib.metadata
import os
import pkgutil
from pathlib import Path

from ultralytics.fork.added_modules import EXTERNAL
from ultralytics.nn.AddModules.registry import NAMES

FOLDERS_VARIABLE = "ULTRALYTICS_ADDMODULES"
ENTRY_POINTS = "ultralytics.addmodules"


def list_folders() -> list[Path]:
    """List the folders outside of the checkout, as the environment names them.

    Raises:
        ImportError: If one is not a folder, or has a file with the name of one of ours, which would not be imported.
    """
    folders = [Path(name).resolve() for name in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if name]
    for folder in folders:
        if not folder.is_dir():
            raise ImportError(f"{FOLDERS_VARIABLE} names {folder}, which is not a folder")
        taken = _own & {file.name for file in pkgutil.iter_modules([str(folder)])}
        if taken:
            raise ImportError(f"{folder / sorted(taken)[0]}.py has the name of a file of this project; rename it")
    return folders


_own = {file.name for file in pkgutil.iter_modules(__path__)}
__path__ += map(str, list_folders())
_files = {file.name for file in pkgutil.iter_modules(__path__)}
for _file in sorted(_files):
    importlib.import_module(f"{__name__}.{_file}")
for _point in importlib.metadata.entry_points(group=ENTRY_POINTS):
    EXTERNAL.add(_point.module)
    _point.load()

globals().update({_name: _cls for _name, _cls in NAMES.items() if _name not in _files})
