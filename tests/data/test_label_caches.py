"""A label cache holds numbers and text; a pickle or a damaged file is not opened, and labels are read anew."""

import json
import pickle
from pathlib import Path

import faulty_data_sets as faulty
import numpy as np
import pytest
from untrusted_data_set import Bomb, marker, said  # noqa: F401 - fixtures

from ultralytics.data import YOLODataset, utils
from ultralytics.fork.data.label_cache import ARRAY_KEY, pack_cache, unpack_cache


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
