"""Where everything comes from: each release's files are the published ones, and `yolo checks` says what is on disk."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from conftest import ROOT, load_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from _upstream.fetch import releases, sdist, wheel
from _upstream.pin import Pin, UpstreamError, queue_sha256, tomllib
from _upstream.queue import release_trees
from ultralytics.fork import installation
from ultralytics.utils import checks

RECORDED = releases.read_record()
MALWARE = ["8.3.41", "8.3.42", "8.3.45", "8.3.46"]
MADE_UP = {"8.3.041", "8.3.999"}  # in tests of what is refused
OTHER = "8.3.50"


# Releases -------------------------------------------------------------------------------------------------------------
def test_each_release_that_any_file_names_is_recorded():
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("no git checkout")
    texts = [ROOT / name for name in files.stdout.splitlines() if name.endswith((".md", ".py", ".toml", ".patch"))]
    named = {r for file in texts for r in re.findall(r"\b8\.[34]\.\d+\b", file.read_text(encoding="utf-8"))} - MADE_UP
    assert {"8.3.0", "8.3.253", "8.4.0", Pin.read(ROOT).release} <= named
    assert sorted(r for r in named if wheel.wheel_name(r) not in RECORDED.sha256 and r not in RECORDED.refused) == []


def test_the_record_is_whole():
    pin = Pin.read(ROOT)
    assert RECORDED.sha256[pin.wheel] == pin.wheel_sha256 and f"ultralytics-{pin.release}.tar.gz" in RECORDED.sha256
    assert pin.release not in RECORDED.refused
    assert len(RECORDED.sha256) > 800 and all(re.fullmatch("[0-9a-f]{64}", d) for d in RECORDED.sha256.values())
    assert (ROOT / releases.RECORD).read_text(encoding="utf-8") == RECORDED.text()


@pytest.mark.parametrize("release", [*MALWARE, "8.4.35", "8.4.44"])
def test_malware_and_yanked_releases_are_refused_before_anything_is_fetched(release, tmp_path, monkeypatch):
    monkeypatch.setattr(wheel, "download_wheel", None)
    why = "carried malware" if release in MALWARE else r"was yanked by its authors \(\w+"
    for get in (wheel.fetch_release, release_trees.write_patched_release):
        with pytest.raises(UpstreamError, match=rf"^ultralytics {re.escape(release)} {why}.*take another release$"):
            get(ROOT, release, tmp_path)


@pytest.mark.parametrize("where", ["wheels", "kept", "downloaded"])
def test_a_wheel_that_is_not_the_published_one_is_refused(where, tmp_path, monkeypatch):
    content, name = b"not what was published", wheel.wheel_name(OTHER)
    folder = tmp_path / {"wheels": "wheels", "kept": ".upstream/wheels", "downloaded": "stage"}[where]
    for path in (folder, tmp_path / "patches"):
        path.mkdir(parents=True)
    (tmp_path / "patches" / "upstream.toml").write_text(Pin.read(ROOT).text(), encoding="utf-8")
    (folder / name).write_bytes(content)
    monkeypatch.delenv(wheel.WHEEL_VARIABLE, raising=False)
    monkeypatch.setattr(wheel, "download_wheel", lambda release, stage: folder / wheel.wheel_name(release))
    with pytest.raises(UpstreamError, match="not the file that was published, remove it") as e:
        release_trees.get_wheel(tmp_path, OTHER, tmp_path)
    for text in (str(folder / name), hashlib.sha256(content).hexdigest(), RECORDED.sha256[name], releases.RECORD):
        assert text in str(e.value)
    assert "\n" not in str(e.value)


def test_a_source_distribution_that_is_not_the_published_one_is_refused(tmp_path):
    pin = Pin.read(ROOT)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / f"ultralytics-{pin.release}.tar.gz").write_bytes(b"not what was published")
    with pytest.raises(UpstreamError, match="not the file that was published, remove it"):
        sdist.fetch_sdist(tmp_path, pin, tmp_path / pin.wheel, tmp_path)


def test_a_hash_that_was_not_known_beforehand_is_said(tmp_path, capsys):
    file = tmp_path / "ultralytics-9.9.9-py3-none-any.whl"
    file.write_bytes(b"new")
    assert releases.check_file_hash(file) == file
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and hashlib.sha256(b"new").hexdigest() in said and "not recorded" in said


def package(version: str, digest: str = "0", yanked: str | None = None) -> SimpleNamespace:
    """Describe a wheel as pypi-simple does."""
    name = f"ultralytics-{version}-py3-none-any.whl"
    is_yanked = yanked is not None
    return SimpleNamespace(
        version=version, filename=name, digests={"sha256": digest}, is_yanked=is_yanked, yanked_reason=yanked
    )


def test_the_record_takes_what_is_new_and_keeps_what_it_has():
    script = load_file(ROOT / "scripts" / "releases.py")
    old = releases.ReleaseRecord({"8.3.41": "carried malware"}, {"ultralytics-8.3.1-py3-none-any.whl": "1"})
    files = [package("8.2.99"), package("8.3.1", "1"), package("8.4.0rc1"), package("8.10.2", "2", 'a "bug"\nhere')]
    found = script.merge_records(old, script.parse_listing(files))
    assert found.refused == {"8.3.41": "carried malware", "8.10.2": "was yanked by its authors (a bug here)"}
    assert sorted(found.sha256.values()) == ["1", "2"]
    assert releases.ReleaseRecord.parse(found.text()) == found
    with pytest.raises(SystemExit, match="ultralytics-8.3.1-py3-none-any.whl is not what"):
        script.merge_records(old, script.parse_listing([package("8.3.1", "another")]))


# `yolo checks` --------------------------------------------------------------------------------------------------------
@pytest.fixture
def package_folder(tmp_path, monkeypatch):
    """A package that set-up has laid down: files of upstream's, one of each folder of ours."""
    root = tmp_path / "checkout" / "ultralytics"
    for name in ("__init__.py", "nn/tasks.py", "nn/AddModules/mine.py", "fork/class_limit.py", "cfg_custom/shapes.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name, encoding="utf-8")
    digests = {f"ultralytics/{n}": hashlib.sha256(n.encode()).hexdigest() for n in ("__init__.py", "nn/tasks.py")}
    stamp = {"release": "9.0.0", "wheel": "1" * 64, "queue": "2" * 64, "files": digests}
    (root / ".addmodules.json").write_text(json.dumps(stamp), encoding="utf-8")
    monkeypatch.setattr(installation, "ROOT", root)
    return root


def test_checks_show_release_and_hashes(capfd):
    pin = Pin.read(ROOT)
    first, wheel_line, queue, tree, disk, owner = checks.collect_system_info()["Fork"].split("\n")
    assert first == f"AddModules on upstream {pin.release}"
    assert wheel_line == " " * 23 + f"wheel sha256 {pin.wheel_sha256}"
    assert queue.strip() == f"queue sha256 {queue_sha256(ROOT)}"
    assert tree.strip() == f"tree sha256 {pin.tree_sha256}"
    assert disk.strip().startswith("tree on disk ") and owner.startswith(" " * 23)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda root: None, "tree on disk as recorded"),
        (lambda root: (root / "nn/tasks.py").write_text("mine"), "1 edited or gone: ultralytics/nn/tasks.py;"),
        (lambda root: (root / "__init__.py").unlink(), "1 edited or gone: ultralytics/__init__.py;"),
        (lambda root: (root / "new.py").write_text(""), "1 that set-up did not lay down: ultralytics/new.py;"),
    ],
    ids=["as recorded", "edited", "gone", "new"],
)
def test_checks_say_whether_the_tree_is_the_recorded_one(package_folder, change, says):
    change(package_folder)
    text = installation.describe_installation()
    assert says in text and ("install it again" in text) == ("as recorded\n" not in text)


def install(site, name: str, version: str, files: str = "") -> None:
    """Put a distribution's metadata into a folder, as an installer does."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "RECORD").write_text(files, encoding="utf-8")


PACKAGE = "ultralytics/__init__.py,sha256=x,1\nultralytics/nn/tasks.py,,\n"


@pytest.mark.parametrize(
    "distributions, says",
    [
        ([], "not installed"),
        ([("ultralytics", "9.0.0+addmodules.1", "")], "installed as ultralytics 9.0.0+addmodules.1"),
        ([("ultralytics", "9.0.0+addmodules.1", PACKAGE), ("ultralytics-thop", "1.0", "thop/__init__.py,,\n")], "inst"),
        (
            [("ultralytics", "9.0.0+addmodules.1", PACKAGE), ("ultralytics-opencv-headless", "9.0.1", PACKAGE)],
            "ultralytics-opencv-headless 9.0.1 owns the package ultralytics, too; "
            "`pip uninstall ultralytics-opencv-headless`, then install this fork again",
        ),
        (
            [("ultralytics", "9.0.1", PACKAGE)],
            "ultralytics 9.0.1 owns the package ultralytics, too; `pip uninstall ",
        ),
    ],
    ids=["none", "editable", "ours", "two", "upstream's"],
)
def test_checks_say_who_owns_the_package(distributions, says, tmp_path, monkeypatch):
    for name, version, files in distributions:
        install(tmp_path / "site", name, version, files)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    text = installation.describe_owners()
    assert says in text and text.startswith("WARNING: ") == ("too;" in text)


# Dependencies ---------------------------------------------------------------------------------------------------------
def test_each_dependency_has_its_licence_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()]
    needs = map(Requirement, sum(groups, project["project"]["dependencies"]))
    text = (ROOT / "DEPENDENCIES.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"(?m)^\| (\S+) \| \S+ \| (.+?) \|", text.partition("## Brought by these")[0]))
    wanted = {canonicalize_name(need.name) for need in needs if not need.marker or "python_version <" not in str(need)}
    assert rows.keys() - {"package", "---"} == wanted and "not stated" not in rows.values()
    script = load_file(ROOT / "scripts" / "dependencies.py")
    assert script.COMMAND in text and script.AUDIT in text
    tables = script.format_tables()
    assert [name for name in wanted if f"\n| {name} | {metadata.version(name)} | " not in tables] == []


@pytest.mark.parametrize(
    "printed, says",
    [
        (
            [{"skip_reason": "not found"}] * 2,
            "no answer: the service knew none of the 2 packages, so it was not reached.",
        ),
        ([{"vulns": []}, {"skip_reason": "not found"}], "1 of 2 packages known to the service, 0 with known flaws."),
        (
            [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}],
            "1 of 1 packages known to the service, 1 with known flaws.\n- a 1: PYSEC-1 (mended in 2)",
        ),
        (None, "no answer: ConnectionError; the service was not reached."),
    ],
)
def test_an_audit_that_was_not_answered_says_so(printed, says, monkeypatch):
    """pip-audit itself counts packages that its service does not know among those without known flaws."""
    script = load_file(ROOT / "scripts" / "dependencies.py")
    out, err = (
        (json.dumps({"dependencies": printed}), "") if printed else ("", "Traceback\nConnectionError: no route\n")
    )
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=out, stderr=err))
    assert script.run_audit("pypi") == says
