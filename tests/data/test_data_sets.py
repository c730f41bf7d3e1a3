"""Nothing that lies in a data set is run or fetched unasked: programs of data files, addresses, cached images."""

import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import faulty_data_sets as faulty
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from untrusted_data_set import Bomb, lies_elsewhere, marker, said  # noqa: F401 - fixtures

from ultralytics.data import YOLODataset, converter, utils
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.fork.data.download_consent import CONSENT, SHIPPED_FOLDERS, is_shipped
from ultralytics.fork.hooks.override import DECLARED
from ultralytics.utils import checks, downloads
from ultralytics.utils.downloads import safe_download

HOOKS = "ultralytics.fork.hooks."

DOWNLOADS = {
    "python": ("\nopen({marker!r}, 'w')\nprint(1)\n", "would run as Python: open(", "and 1 more lines: read them"),
    "behind": ("# fetches\nimport os\nopen({marker!r}, 'w')\n", "would run as Python: open(", "and 1 more lines"),
    "imports": ("import {marker!r}", "would run as Python: import", ""),
    "bash": ("bash -c touch${{IFS}}{marker}", "would run: bash -c touch", ""),
    "url": ("https://example.invalid/set.zip", "would fetch: https://example.invalid/set.zip", ""),
    "escapes": ("print(1)#\x1b]0;title\x07\nopen({marker!r}, 'w')", "run as Python: print(1)#?]0;title? … and 1", ""),
}


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_a_strangers_data_file_runs_and_fetches_nothing(kind, tmp_path, marker, monkeypatch):
    script, *words = DOWNLOADS[kind]
    monkeypatch.setattr(utils, "safe_download", lambda **_: marker.touch())
    for name in ("data.yaml", "coco8.yaml"):  # the name of a shipped file makes no shipped file
        file = lies_elsewhere(tmp_path, script.format(marker=str(marker)), name)
        with pytest.raises(ValueError) as e:
            utils.check_det_dataset(file)
        line = str(e.value)
        assert e.value.plain and line.isprintable() and all(w in line for w in words)
        assert line.startswith(f"{file}: there are no images in {tmp_path / 'nowhere'}") and CONSENT in line
    assert not marker.exists()


def test_it_runs_when_the_user_says_so(tmp_path, marker, monkeypatch):
    file = lies_elsewhere(tmp_path, f"open({str(marker)!r}, 'w')")
    monkeypatch.setenv(CONSENT, "0")
    with pytest.raises(ValueError, match="would run as Python"):
        utils.check_det_dataset(file)
    monkeypatch.setenv(CONSENT, "1")
    utils.check_det_dataset(file)
    assert marker.exists()


def test_where_the_images_are_there_nothing_is_asked(tmp_path, marker):
    faulty.write_set(tmp_path)
    utils.check_det_dataset(faulty.write_data_yaml(tmp_path, download=f"open({str(marker)!r}, 'w')"))
    assert not marker.exists()


def test_the_trainer_says_it_in_one_line(tmp_path, marker):
    file = lies_elsewhere(tmp_path, f"open({str(marker)!r}, 'w')")
    with pytest.raises(ValueError) as e:
        BaseTrainer(overrides={"data": str(file), "model": "rtdetr-tiny.yaml", "project": str(tmp_path)})
    assert e.value.plain and str(e.value).startswith(f"{file}: ") and not marker.exists()


def test_the_command_says_it_in_one_line(tmp_path, marker):
    """And exits with 1."""
    file = lies_elsewhere(tmp_path, f"open({str(marker)!r}, 'w')")
    code = "import sys; sys.argv[0] = 'yolo'; from ultralytics.cfg import entrypoint; entrypoint()"
    arguments = ("train", "model=rtdetr-tiny.yaml", f"data={file}", "device=cpu", f"project={tmp_path}")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line and "WARNING" not in line]
    assert done.returncode == 1 and len(lines) == 1 and "would run as Python: open(" in lines[0], done.stderr
    assert not marker.exists()


@pytest.mark.parametrize("name", ["coco8.yaml", "shapes.yaml"])
def test_files_of_the_package_are_known_by_what_they_hold(name, tmp_path):
    (shipped,) = (folder / name for folder in SHIPPED_FOLDERS if (folder / name).exists())
    copy = Path(shutil.copy(shipped, tmp_path))
    assert is_shipped(shipped) and is_shipped(copy)
    copy.write_bytes(copy.read_bytes() + b"#")
    assert not is_shipped(copy)


def test_what_a_shipped_file_runs_lies_in_the_package(tmp_path, marker, monkeypatch):
    """A copy of shapes.yaml is taken for ours, and must not run a shapes.py beside it."""
    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "datasets")
    copy = Path(shutil.copy(ROOT / "cfg_custom" / "datasets" / "shapes.yaml", tmp_path))
    (tmp_path / "shapes.py").write_text(f"open({str(marker)!r}, 'w')\ndef generate(*_): pass\n")
    root = tmp_path / "datasets" / "shapes"
    root.mkdir(parents=True)
    (root / "recipe.json").write_text("{}")  # ours draws nothing here, and says so
    with pytest.raises(ValueError, match=r"\{\}.*'train': 512"):
        utils.check_det_dataset(copy)
    assert not marker.exists()


def ndjson(root: Path, **record) -> Path:
    file = root / "set.ndjson"
    lines = {"task": "detect", "class_names": {"0": "a"}}, {"file": "a.jpg", "split": "train", **record}
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def test_an_ndjson_file_fetches_nothing(tmp_path, marker, monkeypatch):
    async def convert(*_, **__):
        marker.touch()
        return tmp_path

    monkeypatch.setattr(converter, "convert_ndjson_to_yolo", convert)
    file = ndjson(tmp_path, url="https://example.invalid/a.jpg")
    with pytest.raises(ValueError, match=rf"set.ndjson.*1 images.*https://example.invalid/a.jpg.*{CONSENT}=1"):
        utils.convert_ndjson_to_yolo_if_needed(file)
    assert not marker.exists()
    monkeypatch.setenv(CONSENT, "1")
    assert utils.convert_ndjson_to_yolo_if_needed(file) == tmp_path and marker.exists()


def test_an_ndjson_file_that_is_none(tmp_path, marker):
    file = ndjson(tmp_path)
    with open(file, "a") as f:
        f.write("[1]\n")
    with pytest.raises(ValueError, match=r"set.ndjson, line 3: .*\[1\]"):
        utils.convert_ndjson_to_yolo_if_needed(file)


@pytest.mark.parametrize(
    "line, says",
    [
        ("[" * 100_000, "line 3: .*JSON"),
        ('{"class_names": {"1000000000000": "x"}}', "line 3: .*1000000000000.*100,000"),
        ('{"file": "b.jpg", "split": "val", "annotations": {"boxes": [[1e12, 0, 0, 1, 1]]}}', "line 3: .*100,000"),
        ('{"file": "b.jpg", "split": "val", "annotations": 7}', "set.ndjson"),
    ],
)
def test_an_ndjson_file_with_a_fault(line, says, tmp_path, marker):
    file = ndjson(tmp_path)
    with open(file, "a") as f:
        f.write(f"{line}\n")
    with pytest.raises((ValueError, ImportError), match=says) as e:
        utils.convert_ndjson_to_yolo_if_needed(file)
    assert e.value.plain and str(file) in str(e.value)


# Images ---------------------------------------------------------------------------------------------------------------
def test_a_damaged_image_installs_nothing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checks, "check_requirements", lambda *args: asked.append(args))
    for name, data in (("a.jpg", b""), ("b.jpg", b"text"), ("c.heic", b"\0\0\0\x18ftypavif" + bytes(99))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(tmp_path / name)
    assert not asked
    (tmp_path / "d.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises((ImportError, Image.UnidentifiedImageError)):
        Image.open(tmp_path / "d.heic")
    assert asked == [("pi-heif",)]


def test_a_cached_image_of_objects_is_not_run(tmp_path, marker, said):
    faulty.write_set(tmp_path)
    np.save(tmp_path / "images" / "train" / "0.npy", np.array([Bomb(marker)], dtype=object))
    data = {"names": {0: "a", 1: "b"}}
    images = YOLODataset(img_path=str(tmp_path / "images" / "train"), data=data, imgsz=64, augment=False)
    assert images.load_image(0)[0].shape == (64, 64, 3)
    assert not marker.exists() and os.path.exists(tmp_path / "images" / "train" / "0.npy")
    assert len(said) == 1 and "0.npy is no image and is not used for 0.jpg" in said[0]


# Overrides ------------------------------------------------------------------------------------------------------------
OVERRIDDEN = {
    "ultralytics.data.utils": {
        "check_cls_dataset",
        "check_det_dataset",
        "check_image",
        "convert_ndjson_to_yolo_if_needed",
        "load_dataset_cache_file",
        "save_dataset_cache_file",
        "verify_image_label",
    },
    "ultralytics.data.base": {"imread"},
    "ultralytics.data.base.BaseDataset": {"cache_images_to_disk", "check_cache_ram", "get_img_files", "load_image"},
    "ultralytics.data.dataset.YOLODataset": {"get_labels"},
    "ultralytics.utils.downloads": {"get_github_assets", "safe_download"},
}


@pytest.mark.parametrize("target", OVERRIDDEN)
def test_each_function_is_overridden(target):
    """Of the functions that read a data set, each by its name."""
    assert {known.name for known in DECLARED[target]} == OVERRIDDEN[target]
    owner = pkgutil.resolve_name(target)
    for name in OVERRIDDEN[target]:
        known = getattr(owner, name).override
        assert (known.target, known.name) == (target, name) and known.function.__module__.startswith(HOOKS)


def test_every_way_to_the_functions_is_ours():
    """Where upstream takes them by name."""
    from ultralytics.data import dataset
    from ultralytics.engine import exporter, trainer, validator

    assert downloads.safe_download is utils.safe_download is safe_download
    assert dataset.load_dataset_cache_file is utils.load_dataset_cache_file
    for module in (trainer, validator, exporter):
        assert module.check_det_dataset is utils.check_det_dataset
        assert getattr(module, "check_cls_dataset", utils.check_cls_dataset) is utils.check_cls_dataset
