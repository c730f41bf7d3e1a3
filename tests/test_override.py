"""Overrides bear the names of upstream's functions, and raise where upstream has no such name."""

import re
import shutil
import sys
import types

import pytest
from conftest import ROOT

from _upstream.pin import Pin
from _upstream.verify import overrides as report
from ultralytics.fork.hooks import override as overrides
from ultralytics.fork.hooks.override import MissingTarget, install, override


@pytest.fixture
def declared(monkeypatch):
    """A table of declarations of the test's own."""
    monkeypatch.setattr(overrides, "DECLARED", {})


class Engine:
    def start(self, fuel):
        return f"started with {fuel}"

    @staticmethod
    def stop():
        return "stopped"


TARGET = f"{Engine.__module__}.Engine"


def test_an_override_gets_the_original_first(declared):
    @override(TARGET)
    def start(original, self, fuel):
        return f"{original(self, fuel)}, by us"

    @override(TARGET)
    def stop(original):
        return original().upper()

    cls = install(type("Engine", (Engine,), {"__module__": Engine.__module__, "__qualname__": "Engine"}))
    for _ in range(2):  # installing it again changes nothing
        install(cls)
        assert cls().start("oil") == "started with oil, by us" and cls.stop() == "STOPPED"


def test_a_missing_name_raises_with_the_file_and_the_remedy(declared):
    @override(TARGET)
    def ignite(original, self):
        return original(self)

    with pytest.raises(
        MissingTarget, match=rf"no {TARGET}\.ignite; rename the override in .*test_override, or .*until="
    ):
        install(type("Engine", (Engine,), {"__module__": Engine.__module__, "__qualname__": "Engine"}))


@pytest.mark.parametrize(
    "since, until, applies", [("8.3.0", None, True), ("9.0.0", None, False), ("8.3.0", "8.4.0", False)]
)
def test_an_override_applies_to_its_releases(declared, since, until, applies):
    module = types.ModuleType("ultralytics.made_up")
    exec("def find():\n    return 1", vars(module))

    @override(module.__name__, since=since, until=until)
    def find(original):
        return original() + 1

    install(vars(module))
    assert module.find() == 1 + applies


def test_names_that_others_have_imported_are_replaced(declared, monkeypatch):
    module, other = types.ModuleType("ultralytics.made_up"), types.ModuleType("ultralytics.importing")
    exec("def find():\n    return 1", vars(module))
    other.find = module.find
    monkeypatch.setitem(sys.modules, other.__name__, other)

    @override(module.__name__)
    def find(original):
        return 2

    install(vars(module))
    assert other.find() == 2


def test_hooks_are_named_after_upstreams_files():
    """`hooks/trainer.py` overrides engine/trainer.py: the file's name stands in the targets or in the patches."""
    patches = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "patches").glob("*.patch"))
    for file in (ROOT / "ultralytics" / "fork" / "hooks").glob("*.py"):
        if file.stem not in ("__init__", "override"):
            targets = re.findall(r'"(ultralytics\.[\w.]+)"', file.read_text(encoding="utf-8"))
            called = re.search(rf"fork\.hooks(\.| import ){file.stem}\b", patches)
            assert called or any(file.stem in target.split(".") for target in targets), file


def test_each_overridden_name_is_missed_when_upstream_renames_it(tmp_path):
    """Set-up, `rebase` and `check` ask this report; each declaration finds its name gone, and is told of once."""
    release = Pin.read(ROOT).release
    shutil.copytree(
        ROOT / "ultralytics", tmp_path / "ultralytics", ignore=shutil.ignore_patterns("__pycache__", "*.jpg")
    )
    assert report.missing_overrides(ROOT, tmp_path, release) == []
    declared = [found for found in report.read_overrides(ROOT) if found.applies_to(release)]
    names = "|".join({found.name for found in declared})
    for file in (tmp_path / "ultralytics").rglob("*.py"):  # wherever they are defined
        if "fork" not in file.parts:
            text = file.read_text(encoding="utf-8")
            file.write_text(re.sub(rf"\bdef ({names})\(", r"def renamed_\1(", text), encoding="utf-8")
    lines = report.missing_overrides(ROOT, tmp_path, release)
    for found in declared:
        gone = f"override {found.name}: upstream {release} has no {found.upstream_name};"
        assert sum(gone in line for line in lines) == 1, (found.target, found.name)
    assert len(lines) == len(declared) > 30
