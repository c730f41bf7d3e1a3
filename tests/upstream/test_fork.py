"""The distribution is upstream's in name and needs, says that it is a fork, and holds none of upstream's code."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

import ultralytics
from _upstream.pin import Pin, list_patches, queue_sha256
from ultralytics.fork import installation
from ultralytics.utils import LOGGER, checks

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN_FOLDERS = "ultralytics/fork/", "ultralytics/nn/AddModules/"  # of the package


def requirement(text: str) -> tuple:
    """Bring a requirement to a form that can be compared."""
    parsed = Requirement(text)
    return parsed.name, str(parsed.specifier), str(parsed.marker or "")


@pytest.fixture(scope="module")
def wheel():
    pin = Pin.read(ROOT)
    path = ROOT / ".upstream" / "wheels" / pin.wheel
    if not path.is_file():
        pytest.skip("set-up has kept no wheel: this is no checkout")
    return path


def test_version_is_the_same_everywhere():
    assert ultralytics.__version__ == PROJECT["version"] == metadata.version("ultralytics")
    assert ultralytics.__version__.partition("+")[0] == Pin.read(ROOT).release


def test_dependencies_are_upstreams_two_more_and_a_newer_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    theirs = {
        requirement(line.partition(": ")[2])
        for line in lines
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    ours = {requirement(text) for text in PROJECT["dependencies"]}
    assert len(theirs) > 10 and theirs < ours
    assert {name for name, _, _ in ours - theirs} == {"einops", "timm", "torch"}


def test_commands_are_upstreams(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        theirs = dict(line.split(" = ") for line in archive.read(name).decode().splitlines() if " = " in line)
    assert PROJECT["scripts"] == theirs


def test_checks_name_the_fork(capfd, monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "info", lambda text, *_: lines.append(str(text)))
    info = checks.collect_system_info()
    assert info["Fork"] == installation.describe_installation()
    assert any(PROJECT["version"] in line for line in lines)


@pytest.mark.parametrize(
    "stamp, message", [({"queue": "0"}, "is not what patches/ says"), ({"pending": {}}, "interrupted")]
)
def test_a_stale_tree_says_so_in_one_line(stamp, message, monkeypatch):
    warnings = []
    monkeypatch.setattr(LOGGER, "warning", warnings.append)
    installation.warn_if_tree_is_stale()
    assert warnings == []
    monkeypatch.setattr(installation, "read_stamp", lambda: stamp)
    installation.warn_if_tree_is_stale()
    (line,) = warnings
    assert message in line and "`python scripts/upstream.py apply`" in line and "\n" not in line


def test_both_hash_the_queue_alike():
    assert installation.queue_sha256() == queue_sha256(ROOT)


def test_nothing_advises_to_install_over_the_fork(monkeypatch):
    """Neither the look-up of a newer release nor an unknown setting's error says `pip install -U ultralytics`."""
    monkeypatch.setattr(checks, "ONLINE", True)
    monkeypatch.setattr(checks, "IS_PIP_PACKAGE", True)
    monkeypatch.setattr(checks, "check_latest_pypi_version", lambda *_: "99.0.0")
    lines = []
    monkeypatch.setattr(LOGGER, "info", lambda text, *_: lines.append(str(text)))
    assert checks.check_pip_update_available() is False
    assert lines == []
    with pytest.raises(AttributeError) as error:
        getattr(ultralytics.utils.DEFAULT_CFG, "no_such_setting")  # noqa: B009
    assert "pip install" not in str(error.value) and "git pull" in str(error.value)


def test_added_modules_import_no_more_than_upstream():
    """timm brings torchvision, and that seconds; upstream imports neither before it needs them."""
    code = (
        "import sys, ultralytics.nn.tasks; from ultralytics.nn.AddModules.EMO import EMO_1M; EMO_1M(); "
        "print(*{'timm', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


IMPORT_EACH = """
import importlib, os, sys
import cv2, matplotlib, numpy, PIL.Image, scipy, timm, torch, torchvision  # once for all
for name in sys.argv[1:]:
    process = os.fork()
    if not process:
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        print("cannot be the first import:", name)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_each_file_can_be_the_first_import():
    """No file needs that another one was imported before."""
    files = [file for folder in OWN_FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    done = subprocess.run([sys.executable, "-c", IMPORT_EACH, *names], capture_output=True, text=True, cwd=ROOT)
    assert len(names) > 80 and (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


def test_only_ours_is_tracked():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git checkout")
    files = tracked.stdout.splitlines()
    assert [f for f in files if f.startswith("ultralytics/") and not f.startswith(OWN_FOLDERS)] == []
    assert [f for f in files if f.endswith("uv.lock")] == []


def test_no_file_of_ours_repeats_upstreams_code():
    """No six consecutive lines of code of ours stand in a file of upstream's."""

    def runs(path, n=6):
        lines = [re.sub(r"\s+", " ", line.strip()) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if len(line) > 8 and not line.startswith(("#", "import ", "from ", '"""'))]
        return {"\n".join(lines[i : i + n]) for i in range(len(lines) - n + 1)}

    ours = [f for folder in (*OWN_FOLDERS, "scripts", "tests") for f in (ROOT / folder).rglob("*.py")]
    mine = set(ours)
    theirs = set().union(*(runs(f) for f in (ROOT / "ultralytics").rglob("*.py") if f not in mine))
    assert len(theirs) > 10_000 and len(mine) > 100
    assert [str(f) for f in ours if runs(f) & theirs] == []


def test_patches_say_why_and_name_a_test():
    for patch in list_patches(ROOT):
        text = patch.read_text(encoding="utf-8")
        message = text.partition("\ndiff --git ")[0]
        assert "\nWhy: " in message and "\nRetired by: " in message, patch.name
        test = re.search(r"\nFails without it: (\S+)", message)[1]
        assert (ROOT / test).is_file(), patch.name
