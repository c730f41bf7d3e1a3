"""Modules outside of the checkout: a folder of the environment's, an installed package, a file that a YAML names."""

import os
import subprocess
import sys

import pytest

from ultralytics import RTDETR
from ultralytics.fork.building.model_yaml import check_module_files
from ultralytics.nn import AddModules
from ultralytics.nn.AddModules.registry import RowError
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

MODULE = """
import torch
from torch import nn
from ultralytics.nn.AddModules.registry import keeps_channels, register

@register(keeps_channels)
class Outside(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 1)
        self.scale = Outside.double

    @staticmethod
    def double(x):
        return 2 * x

    def forward(self, x):
        return self.double(self.conv(x))
"""
USE = """
import sys
from ultralytics import RTDETR
model = RTDETR("mine.yaml")
assert type(model.model.model[4]).__name__ == "Outside"
del model.model.model[4].scale
model.save("mine.pt")
assert type(RTDETR("mine.pt").model.model[4]).__name__ == "Outside"
"""


@pytest.fixture
def folder(tmp_path):
    """A model file with a row of a module that is in a folder beside it."""
    rows = YAML.load(check_yaml("rtdetr-tiny.yaml"))
    rows["backbone"].insert(4, [-1, 1, "Outside", []])
    for row in rows["head"]:
        shift = [x + (x >= 4) for x in (row[0] if isinstance(row[0], list) else [row[0]])]
        row[0] = shift if isinstance(row[0], list) else shift[0]
    YAML.save(tmp_path / "mine.yaml", {**rows, "addmodules": "modules/my_module.py"})
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_module.py").write_text(MODULE)
    return tmp_path


def run(folder, **environment):
    """Use the model in a process of its own."""
    command = [sys.executable, "-c", USE]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


def test_folder_of_the_environment(folder):
    """Its files are imported as ours are; a checkpoint opens where the folder is known, and names what is missing."""
    done = run(folder, ULTRALYTICS_ADDMODULES=str(folder / "modules"))
    assert done.returncode == 0, done.stderr
    with pytest.raises(Exception, match=r"AddModules.my_module.Outside, which is not here"):
        RTDETR(folder / "mine.pt")


def test_file_of_a_stranger_s_is_not_run(folder):
    (folder / "modules" / "my_module.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(RowError, match=r"mine.yaml: `addmodules: modules/my_module.py` is code.*ULTRALYTICS_ADD"):
        RTDETR(folder / "mine.yaml")


@pytest.mark.parametrize("value, line", [(3, "expected the path of a .py file"), (["x.sh"], "expected the path")])
def test_what_is_not_a_file_of_python(value, line):
    with pytest.raises(RowError, match=line):
        check_module_files({"addmodules": value} if isinstance(value, list) else {"addmodules": [value]})


def test_folders_that_cannot_be_used(folder, monkeypatch):
    """One that is not there, and one with a file of a name of ours, which would never be imported."""
    monkeypatch.setenv("ULTRALYTICS_ADDMODULES", str(folder / "gone"))
    with pytest.raises(ImportError, match=r"gone, which is not a folder"):
        AddModules.list_folders()
    (folder / "modules" / "EMO.py").write_text("")
    monkeypatch.setenv("ULTRALYTICS_ADDMODULES", str(folder / "modules"))
    with pytest.raises(ImportError, match=r"EMO.py has the name of a file of this project; rename it"):
        AddModules.list_folders()


def test_installed_package(folder):
    """Its entry point registers; a checkpoint may name its classes."""
    site = folder / "site"
    (site / "mine-1.dist-info").mkdir(parents=True)
    (site / "my_package.py").write_text(MODULE)
    (site / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (site / "mine-1.dist-info" / "entry_points.txt").write_text("[ultralytics.addmodules]\nmine = my_package\n")
    text = (folder / "mine.yaml").read_text().replace("addmodules: modules/my_module.py\n", "")
    (folder / "mine.yaml").write_text(text)
    done = run(folder, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
