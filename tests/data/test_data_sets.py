"""Nothing that lies in a data set is run or fetched unasked: programs of data files, pickles, archives."""

import io
import json
import os
import pickle
import pkgutil
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import faulty_data_sets as faulty
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from ultralytics.data import YOLODataset, converter, utils
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.fork.data import archives
from ultralytics.fork.data.download_consent import CONSENT, SHIPPED_FOLDERS, is_shipped
from ultralytics.fork.data.label_cache import ARRAY_KEY, pack_cache, unpack_cache
from ultralytics.fork.hooks.override import DECLARED
from ultralytics.utils import LOGGER, checks, downloads
from ultralytics.utils.downloads import safe_download

HOOKS = "ultralytics.fork.hooks."


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that is there if something was run."""
    monkeypatch.delenv(CONSENT, raising=False)
    monkeypatch.setattr(utils, "check_font", lambda *_: None)  # would download a font
    return tmp_path / "was run"


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The warnings."""
    lines = []
    monkeypatch.setattr(LOGGER, "warning", lines.append)
    return lines


def lies_elsewhere(root: Path, download: str, name: str = "data.yaml") -> Path:
    """Write a data file whose images are missing, and what it would do then."""
    file = root / name
    path = json.dumps(str(root / "nowhere"))
    file.write_text(f"path: {path}\ntrain: a\nval: b\nnames: [x]\ndownload: {json.dumps(download)}\n")
    return file


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


# Label caches ---------------------------------------------------------------------------------------------------------
class Bomb:
    """A pickle that makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def labels_of(root: Path, split: str = "train") -> list[dict]:
    data = {"names": {0: "a", 1: "b"}}
    return YOLODataset(img_path=str(root / "images" / split), data=data, imgsz=64, augment=False).labels


def same(one: list[dict], other: list[dict]) -> bool:
    return all(
        a.keys() == b.keys()
        and all(np.array_equal(a[k], b[k]) if k != "segments" else len(a[k]) == len(b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_arrays_over_one_another_are_no_cache():
    """A few megabytes of numbers could be hundreds of arrays."""
    for start in (0, 40):
        head = json.dumps({"x": [{ARRAY_KEY: ["|u1", [60], place]} for place in (0, start)]})
        with pytest.raises(ValueError, match="array"):
            unpack_cache(head.encode() + b"\n" + bytes(90))


@pytest.mark.parametrize("form", ["numpy", "pickle", "dict"])
def test_a_pickle_for_a_label_cache_is_not_run(form, tmp_path, marker, said):
    faulty.write_set(tmp_path)
    expected = labels_of(tmp_path)
    cache = tmp_path / "labels" / "train.cache"
    known = cache.read_bytes()
    with open(cache, "wb") as f:
        if form == "pickle":
            pickle.dump(Bomb(marker), f)
        else:  # as upstream writes them
            np.save(f, np.array({"a": Bomb(marker)} if form == "dict" else Bomb(marker), dtype=object))
    assert same(labels_of(tmp_path), expected)
    assert not marker.exists() and cache.read_bytes() == known
    assert len(said) == 1 and said[0].startswith(f"{cache} ") and "not opened" in said[0]
    said.clear()
    assert same(labels_of(tmp_path), expected) and not said  # and now it is one


def test_a_label_cache_holds_what_upstreams_holds(tmp_path):
    rng = np.random.default_rng(0)
    label = {
        "im_file": "/data/чайка \udcff\n.jpg",
        "shape": (480, 640),
        "cls": rng.integers(0, 80, (3, 1)).astype(np.float32),
        "bboxes": rng.random((3, 4), np.float32),
        "segments": [rng.random((n, 2), np.float32) for n in (3, 0, 7)],
        "keypoints": rng.random((3, 17, 3), np.float32),
        "normalized": True,
    }
    none = {**label, "cls": np.zeros((0, 1), np.float32), "keypoints": None, "segments": []}
    tree = {"labels": [label, none], "results": (2, 0, 0, 0, 2), "msgs": ["a"], "hash": "f" * 64, "n": np.float32(0.5)}
    path = tmp_path / "labels.cache"
    utils.save_dataset_cache_file("", path, dict(tree), "1.0")
    found = utils.load_dataset_cache_file(path)
    assert found.pop("version") == "1.0" and found["n"] == 0.5 and found["results"] == [2, 0, 0, 0, 2]
    for a, b in zip(found["labels"], tree["labels"], strict=True):
        assert a.keys() == b.keys() and a["im_file"] == b["im_file"] and tuple(a["shape"]) == b["shape"]
        for key in ("cls", "bboxes", "keypoints"):
            assert (a[key] is None and b[key] is None) or (
                a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and (a[key] == b[key]).all()
            )
        assert all((x == y).all() and x.shape == y.shape for x, y in zip(a["segments"], b["segments"], strict=True))
        a["cls"][:] = 0  # `single_cls` writes into it


BROKEN = {
    "nothing": b"",
    "text": b"labels\n",
    "a list": b"[" * 100_000,
    "an array beyond the end": b'{"a": {"array": ["<f4", [9], 0]}}\n1234',
    "an array before the start": b'{"a": {"array": ["<f4", [1], -4]}}\n1234',
    "an array of objects": b'{"a": {"array": ["O", [1], 0]}}\n12345678',
    "an array of records": b'{"a": {"array": ["O,f4", [1], 0]}}\n123456789012',
    "a huge array": b'{"a": {"array": ["<f4", [4611686018427387904, 4], 0]}}\n1234',
    "a negative shape": b'{"a": {"array": ["<f4", [-1, -1], 0]}}\n1234',
    "no shape": b'{"a": {"array": 3}}\n1234',
    "words for numbers": b'{"a": {"array": ["<f4", "ab", "c"]}}\n1234',
    "another type": b'{"a": {"array": ["V0", [1000000000], 0]}}\n1234',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_label_cache_is_none(kind, tmp_path, said):
    path = tmp_path / "labels.cache"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(FileNotFoundError):
        utils.load_dataset_cache_file(path)
    assert len(said) == 1 and said[0].startswith(f"{path} ")


def is_plain_data(value: object) -> bool:
    """Whether a value holds numbers, text and arrays of numbers only."""
    if isinstance(value, (list, dict)):
        return all(map(is_plain_data, value.values() if isinstance(value, dict) else value))
    return value is None or type(value) in (bool, int, float, str) or value.dtype.kind in "biuf"


def test_random_bytes_in_a_label_cache(tmp_path, said, often):
    """Each is numbers and text, or is not opened, which a warning says; the numbers' own bytes may be any."""
    faulty.write_set(tmp_path)
    labels_of(tmp_path)
    path = tmp_path / "labels" / "train.cache"
    known = path.read_bytes()
    rng, loaded, times = np.random.default_rng(0), 0, often(300, 100_000)
    for _ in range(times):
        data = bytearray(known)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        try:
            found = utils.load_dataset_cache_file(path)
        except FileNotFoundError:
            continue
        loaded += 1
        assert type(found) is dict and is_plain_data(found)
        assert pack_cache(unpack_cache(pack_cache(found))) == pack_cache(found)
    assert 0 < loaded < times and len(said) == times - loaded


# Images and archives --------------------------------------------------------------------------------------------------
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


def zipped(file: Path, size: int = 4, name: str = "set/a.txt") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, bytes(size))
    return file


def tarred(file: Path, size: int = 4, name: str = "set/a.txt") -> Path:
    with tarfile.open(file, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = size
        tar.addfile(member, io.BytesIO(bytes(size)))
    return file


@pytest.mark.parametrize("pack, suffix", [(zipped, "zip"), (tarred, "tar.gz")])
def test_an_archive_is_unpacked_into_its_place_only(pack, suffix, tmp_path, monkeypatch):
    out = tmp_path / "out"
    safe_download(pack(tmp_path / f"good.{suffix}"), dir=out)
    assert (out / "set" / "a.txt").read_bytes() == bytes(4)
    for name in ("../evil.txt", str(tmp_path / "evil.txt"), "set/../../evil.txt"):
        safe_download(pack(tmp_path / f"evil.{suffix}", name=name), dir=out, exist_ok=True)
        assert not list(tmp_path.rglob("evil.txt"))
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 2**16)
    bomb = pack(tmp_path / f"bomb.{suffix}", size=2**20, name="bomb/a.txt")
    with pytest.raises(ValueError, match=rf"bomb.{suffix} is not unpacked: 0.0 MiB .*unpack it yourself"):
        safe_download(bomb, dir=out)
    assert not (out / "bomb").exists() and bomb.exists()


def test_an_archive_makes_no_links(tmp_path):
    """Nor devices; nor is anything written through a link that is there."""
    file, out = tmp_path / "links.tar", tmp_path / "out"
    with tarfile.open(file, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"set/{kind!r}")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("set/elsewhere/a"))
    (out / "set").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (out / "set" / "elsewhere").symlink_to(tmp_path / "elsewhere")
    safe_download(file, dir=out)
    assert [f.name for f in (out / "set").iterdir()] == ["elsewhere"] and not list((tmp_path / "elsewhere").iterdir())


def test_a_damaged_archive_is_one_line(tmp_path):
    file = tarred(tmp_path / "cut.tar.gz", size=100_000)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="cut.tar.gz") as e:
        utils.check_det_dataset(file)
    assert e.value.plain and "\n" not in str(e.value)


def test_a_dataset_in_an_archive_runs_nothing(tmp_path, marker, monkeypatch):
    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "datasets")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as z:
        z.write(lies_elsewhere(tmp_path, f"open({str(marker)!r}, 'w')"), "set/data.yaml")
    with pytest.raises(FileNotFoundError) as e:
        utils.check_det_dataset(tmp_path / "set.zip")
    assert e.value.plain and not marker.exists()


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


def test_a_cached_image_of_objects_is_not_run(tmp_path, marker, said):
    faulty.write_set(tmp_path)
    np.save(tmp_path / "images" / "train" / "0.npy", np.array([Bomb(marker)], dtype=object))
    data = {"names": {0: "a", 1: "b"}}
    images = YOLODataset(img_path=str(tmp_path / "images" / "train"), data=data, imgsz=64, augment=False)
    assert images.load_image(0)[0].shape == (64, 64, 3)
    assert not marker.exists() and os.path.exists(tmp_path / "images" / "train" / "0.npy")
    assert len(said) == 1 and "0.npy is no image and is not used for 0.jpg" in said[0]
