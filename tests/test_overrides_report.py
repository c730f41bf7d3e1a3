"""Overrides whose upstream function is missing: how they are found in the sources of a release, and what they stop."""

import hashlib
import json
import shutil
import zipfile

import pytest

from _upstream.fetch.releases import RECORD, ReleaseRecord
from _upstream.pin import Pin, UpstreamError
from _upstream.queue import check, rebase
from _upstream.queue.apply import apply
from _upstream.queue.rebase_report import describe_rebase
from _upstream.queue.status import status
from _upstream.queue.tree import manifest, tree_sha256
from _upstream.verify.api_report import api_changes, used_names
from _upstream.verify.build_models import Verdict
from _upstream.verify.overrides import missing_overrides
from _upstream.verify.source_tree import SourceTree

HOOKS = "ultralytics/fork/hooks"
UPSTREAM = {
    "ultralytics/__init__.py": '__version__ = "{release}"\n',
    "ultralytics/engine/__init__.py": "",
    "ultralytics/engine/base.py": """
import torch
from ultralytics.utils import Mixin

class Base(Mixin, torch.nn.Module):
    def train(self, epochs): ...

class Loop(Loop2 if False else object): ...
""",
    "ultralytics/engine/trainer.py": """
from __future__ import annotations
import os.path as osp
from . import base
from ..utils import checks as c
from ultralytics.engine.base import Base as Parent
from torch import load as torch_load
if osp:
    def setup(): ...
else:
    setup = None

class BaseTrainer(Parent):
    if True:
        def save_model(self): ...
    @property
    def device(self): ...

class Other(base.Base): ...
class Third(c.Checker[int]): ...
""",
    "ultralytics/utils/__init__.py": "from .checks import *\n\nclass Mixin:\n    def log(self): ...\n",
    "ultralytics/utils/checks.py": "class Checker:\n    def check(self): ...\n\ndef check_file(name): ...\n",
}


def write(root, files, release="9.0.0"):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.replace("{release}", release))
    return root


def hook(*lines):
    """Write a file of overrides."""
    head = "from ultralytics.fork.hooks.override import override\n\nTRAINER = 'ultralytics.engine.trainer'\n"
    return head + "\n".join(lines)


@pytest.fixture
def tree(tmp_path):
    return write(tmp_path / "tree", UPSTREAM)


@pytest.mark.parametrize(
    "name",
    [
        "ultralytics.engine.trainer.setup",  # within an `if`
        "ultralytics.engine.trainer.BaseTrainer.save_model",
        "ultralytics.engine.trainer.BaseTrainer.device",
        "ultralytics.engine.trainer.BaseTrainer.train",  # of a base class that has another name here
        "ultralytics.engine.trainer.BaseTrainer.log",  # of its base class in turn
        "ultralytics.engine.trainer.Other.train",  # through an attribute of a module
        "ultralytics.engine.trainer.Third.check",  # through a subscript
        "ultralytics.engine.trainer.torch_load",  # from another package
        "ultralytics.engine.trainer.base",
        "ultralytics.utils.check_file",  # through a star
        "ultralytics.utils.checks",
    ],
)
def test_names_that_are_there(tree, name):
    assert SourceTree(tree).find_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "ultralytics.engine.trainer.gone",
        "ultralytics.engine.trainer.BaseTrainer.gone",
        "ultralytics.engine.trainer.BaseTrainer.state_dict",  # of torch's class only
        "ultralytics.engine.trainer.setup.inner",
        "ultralytics.engine.gone.Class.method",
        "ultralytics.engine.base.Loop.run",
        "elsewhere.name",
    ],
)
def test_names_that_are_missing(tree, name):
    assert SourceTree(tree).find_name(name) is None


def test_circles_of_imports_and_bases_end(tmp_path):
    files = {"p/__init__.py": "from p.a import *\n", "p/a.py": "from p import *\nclass A(B): ...\nclass B(A): ...\n"}
    source = SourceTree(write(tmp_path, files))
    assert source.find_name("p.x") is None and source.find_name("p.a.A.x") is None and source.find_name("p.A")


def test_a_missing_override_is_named_with_its_remedy(tree, tmp_path):
    declared = hook(
        "@override(TRAINER, since='9.0.0')\ndef never(): ...\n",
        '@override("ultralytics.engine.trainer.BaseTrainer", since="8.3.0", until=None)\ndef save_model(): ...\n',
        '@override("ultralytics.engine.trainer.BaseTrainer", since="8.3.0")\ndef save_all(): ...\n',
        '@override(TRAINER, since="9.0.1")\ndef later(): ...\n',
        '@override(TRAINER, since="8.3.0", until="9.0.0")\ndef earlier(): ...\n',
        '@override("torch.serialization", since="8.3.0")\ndef of_another_package(): ...\n',
    )
    root = write(tmp_path / "root", {f"{HOOKS}/trainer.py": declared})
    module, method = missing_overrides(root, tree, "9.0.0")
    assert method == (
        f"{HOOKS}/trainer.py: override save_all: upstream 9.0.0 has no "
        'ultralytics.engine.trainer.BaseTrainer.save_all; rename the override or give it until="9.0.0"'
    )
    assert "override never" in module and "ultralytics.engine.trainer.never" in module
    later = missing_overrides(root, tree, "9.0.1")
    assert ["override later" in line for line in later].count(True) == 1 and len(later) == 3
    assert len(missing_overrides(root, tree, "8.4.0")) == 2  # `earlier` and save_all
    assert missing_overrides(tmp_path / "no fork there", tree, "9.0.0") == []


def test_every_renamed_upstream_name_is_missed(tree, tmp_path):
    names = {"BaseTrainer": ["save_model", "device", "train", "log"], "Third": ["check"], "": ["setup"]}
    lines = [
        f'@override("{".".join(filter(None, ("ultralytics.engine.trainer", owner)))}", since="8.3.0")\n'
        f"def {name}(): ...\n"
        for owner, methods in names.items()
        for name in methods
    ]
    root = write(tmp_path / "root", {f"{HOOKS}/trainer.py": hook(*lines)})
    assert missing_overrides(root, tree, "9.0.0") == []
    for name in [name for methods in names.values() for name in methods]:
        changes = ((f"def {name}(", f"def {name}2("), (f"{name} = None", f"{name}2 = None"))
        renamed = dict(UPSTREAM)
        for old, new in changes:
            renamed = {path: text.replace(old, new) for path, text in renamed.items()}
        (line,) = missing_overrides(root, write(tmp_path / name, renamed), "9.0.0")
        assert f"override {name}:" in line


@pytest.mark.parametrize("target", ["f'{TRAINER}.BaseTrainer'", "target_of(1)", "UNKNOWN"])
def test_an_override_that_cannot_be_read_is_refused(tree, tmp_path, target):
    root = write(tmp_path / "root", {f"{HOOKS}/x.py": hook(f'@override({target}, since="8.3.0")\ndef name(): ...\n')})
    with pytest.raises(UpstreamError, match=rf"{HOOKS}/x.py, line 4: override name: .*constants"):
        missing_overrides(root, tree, "9.0.0")


def test_the_api_report_sees_both_folders_and_overrides(tree, tmp_path):
    mine = {
        "ultralytics/nn/AddModules/layers/deep.py": "from ultralytics.utils import checks\n",
        "ultralytics/nn/AddModules/__init__.py": "from ultralytics.nn.AddModules.layers import deep\n",
        "ultralytics/fork/training/resume.py": "def f():\n    from ultralytics.utils.checks import check_file\n",
        f"{HOOKS}/trainer.py": hook(
            '@override("ultralytics.engine.trainer.BaseTrainer", since="8.3.0")\ndef save_model(): ...\n'
        ),
    }
    root = write(tmp_path / "root", mine)
    assert used_names(root) == {
        "ultralytics.utils.checks",
        "ultralytics.utils.checks.check_file",
        "ultralytics.engine.trainer.BaseTrainer.save_model",
    }
    assert api_changes(root, tree, tree) == []
    new = {path: text.replace("check_file(name)", "check_file(name, hard)") for path, text in UPSTREAM.items()}
    new = {path: text.replace("save_model(self)", "save_model(self, epoch)") for path, text in new.items()}
    assert api_changes(root, tree, write(tmp_path / "new", new)) == [
        "ultralytics.engine.trainer.BaseTrainer.save_model(self)"
        " -> ultralytics.engine.trainer.BaseTrainer.save_model(self, epoch)",
        "ultralytics.utils.checks.check_file(name) -> ultralytics.utils.checks.check_file(name, hard)",
    ]
    del new["ultralytics/utils/checks.py"]
    changes = api_changes(root, tree, write(tmp_path / "newer", new))
    assert "ultralytics.utils.checks is gone" in changes and "ultralytics.utils.checks.check_file is gone" in changes


# What it stops --------------------------------------------------------------------------------------------------------
def make_wheel(folder, release, files):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"ultralytics-{release}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text.replace("{release}", release))
        metadata = f"Name: ultralytics\nVersion: {release}\n"
        archive.writestr(f"ultralytics-{release}.dist-info/METADATA", metadata)
    return folder / f"ultralytics-{release}-py3-none-any.whl"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout on 9.0.0 with an override of `save_model`, which 9.0.1 renames."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("ULTRALYTICS_WHEEL", raising=False)
    root = tmp_path / "checkout"
    declared = hook('@override("ultralytics.engine.trainer.BaseTrainer", since="8.3.0")\ndef save_model(): ...\n')
    write(
        root,
        {
            f"{HOOKS}/trainer.py": declared,
            "scripts/_upstream/verify/parameters.json": "{}",
            RECORD: ReleaseRecord({}, {}).text(),
        },
    )
    wheel = make_wheel(root / "wheels", "9.0.0", UPSTREAM)
    renamed = {path: text.replace("save_model", "save_checkpoint") for path, text in UPSTREAM.items()}
    make_wheel(root / "wheels", "9.0.1", renamed)
    (root / "patches").mkdir()
    (root / "cfg_custom" / "models").mkdir(parents=True)
    tree_hash = tree_sha256(manifest(write(tmp_path / "unpacked", UPSTREAM)))
    (root / "patches" / "upstream.toml").write_text(
        Pin("9.0.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), tree_hash).text()
    )
    return root


def read_all(root):
    """Read every file of a checkout but those of the scratch folder."""
    files = [file for file in root.rglob("*") if file.is_file() and ".upstream" not in file.parts]
    return {file.relative_to(root): file.read_bytes() for file in files}


def test_set_up_stops_before_anything_is_laid_down(checkout):
    file = checkout / HOOKS / "trainer.py"
    whole, renamed = file.read_text(), file.read_text().replace("save_model", "save_it")
    file.write_text(renamed)
    before = read_all(checkout)
    with pytest.raises(UpstreamError, match=r"trainer.py: override save_it: .*9.0.0 has no .*BaseTrainer.save_it"):
        apply(checkout)
    assert read_all(checkout) == before
    file.write_text(whole)
    assert "is 9.0.0" in apply(checkout) and "1, each with its upstream function" in status(checkout)
    assert HOOKS not in str(json.loads((checkout / "ultralytics" / ".addmodules.json").read_text()))
    file.write_text(renamed)  # on a tree that is laid down
    assert "override save_it: upstream 9.0.0 has no" in status(checkout)
    with pytest.raises(UpstreamError, match="override save_it"):
        apply(checkout)


def test_rebase_stops_and_leaves_everything_as_it_was(checkout, monkeypatch):
    apply(checkout)
    before = read_all(checkout)
    report = rebase.rebase(checkout, "9.0.1", lambda _: None)
    assert report.outcome == "stopped" and len(report.overrides) == 1
    assert json.loads(report.json())["overrides"] == report.overrides
    text = describe_rebase(report)
    assert "override save_model: upstream 9.0.1 has no" in text and 'until="9.0.1"' in text and "nothing was" in text
    assert read_all(checkout) == before and not (checkout / ".upstream" / "rebase").exists()

    file = checkout / HOOKS / "trainer.py"
    file.write_text(file.read_text().replace('since="8.3.0"', 'since="8.3.0", until="9.0.1"'))
    monkeypatch.setattr(rebase, "verify_tree", lambda *_: Verdict(0, 0, 0, 0, []))
    (checkout / "pyproject.toml").write_text("dependencies = [\n  # Upstream's\n  # Ours\n]\n")
    assert rebase.rebase(checkout, "9.0.1", lambda _: None).outcome == "rebased"
    assert Pin.read(checkout).release == "9.0.1" and HOOKS not in str(manifest(checkout).keys())


def test_check_has_it_among_a_release_s_problems(checkout, monkeypatch):
    apply(checkout)
    (finding,) = check.check(checkout, ["9.0.1"], 1, lambda _: None)
    assert not finding.is_right and len(finding.problems) == 1
    assert "override save_model" in check.format_findings([finding])
    shutil.rmtree(checkout / "ultralytics" / "fork")
    monkeypatch.setattr(check, "verify_tree", lambda *_: Verdict(0, 0, 0, 0, []))
    (finding,) = check.check(checkout, ["9.0.1"], 1, lambda _: None)
    assert finding.is_right
