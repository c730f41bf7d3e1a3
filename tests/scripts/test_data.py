"""scripts/data.py finds what would be left out, what leaks and what is hardly there, and nothing in a sound set."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_shapes

import data
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils import LOGGER


@pytest.fixture
def shapes(tmp_path) -> Path:
    return draw_shapes(tmp_path, train=6, val=3)


def check(monkeypatch, capsys, *argv: str) -> tuple[int, dict]:
    """Run the command; return its exit status and its findings."""
    monkeypatch.setattr(sys, "argv", ["data.py", "check", *map(str, argv), "--json"])
    with pytest.raises(SystemExit) as ended:
        data.main()
    return int(ended.value.code), json.loads(capsys.readouterr().out)


def add(root: Path, split: str, name: str, image: np.ndarray, rows: str) -> Path:
    """Add an image with labels to a split."""
    file = root / "images" / split / name
    cv2.imwrite(str(file), image)
    (root / "labels" / split / name).with_suffix(".txt").write_text(rows)
    return file


def test_a_sound_set(shapes, monkeypatch, capsys):
    status, found = check(monkeypatch, capsys, shapes)
    assert status == 0 and found["findings"] == []
    train, val = found["splits"]
    labels = [file.read_text().splitlines() for file in (shapes.parent / "data" / "labels" / "train").glob("*.txt")]
    assert train["images"] == 6 and val["images"] == 3 and train["objects"] == sum(map(len, labels))
    assert train["small"] + train["medium"] + train["large"] == train["objects"]
    counts = [sum(row.startswith(str(i)) for rows in labels for row in rows) for i in range(3)]
    assert found["classes"]["train"] == counts


def test_what_is_wrong_is_found(shapes, monkeypatch, capsys, tmp_path):
    root = shapes.parent / "data"
    images, labels = root / "images", root / "labels"
    shutil.copy(images / "train" / "0000.jpg", images / "val" / "same file.jpg")
    pixels = cv2.imread(str(images / "train" / "0001.jpg"))
    add(root, "val", "same pixels.png", pixels, "")
    add(root, "train", "twice.png", pixels, "0 .5 .5 .1 .1\n")
    (labels / "train" / "0002.txt").write_text("7 .5 .5 .1 .1\n")
    (images / "train" / "no image.jpg").write_bytes(b"x")
    rows = "".join(f"0 {x / 10 + 0.05} .5 .001 .5\n" for x in range(9))
    add(root, "train", "long.png", np.arange(18_000).astype(np.uint8).reshape(20, 300, 3), rows)
    add(root, "train", "deep.png", np.full((16, 16, 3), 999, np.uint16), "")
    (labels / "val" / "orphan.txt").write_text("")
    ok, encoded = cv2.imencodemulti(".tiff", [np.full((16, 16, 3), i, np.uint8) for i in range(2)])
    (images / "val" / "pages.tiff").write_bytes(encoded.tobytes())
    status, found = check(monkeypatch, capsys, shapes, "--html", tmp_path / "page.html")
    texts = {finding["text"]: finding for finding in found["findings"]}

    def finding(*words: str) -> dict:
        return next(finding for text, finding in texts.items() if all(word in text for word in words))

    assert status == 1 and ok
    assert finding("a class is out of range 0-2")["files"] == [str(images / "train" / "0002.jpg")]
    assert finding("left out", "cannot identify")["files"] == [str(images / "train" / "no image.jpg")]
    assert finding("9 of", "less than 2 pixels", "imgsz=640")["files"] == [str(images / "train" / "long.png")]
    assert "4 levels of 256" in finding("16 bits", "`bits: 10`")["text"]
    assert "2 images" in finding("train and val share", "2 of them as the same file")["text"]
    assert finding("train: 1 images are copies of another, 1 of them with other labels")["is_wrong"]
    assert not finding("1 label files belong to no image, such as", "orphan.txt")["is_wrong"]
    assert finding("several pages")["files"] == [str(images / "val" / "pages.tiff")]
    page = (tmp_path / "page.html").read_text()
    assert (
        all(word in page for word in ("long.png: 9 objects", "data:image/jpeg", "share 2 images"))
        and "http:" not in page
    )


def test_boxes_are_measured_at_the_size_of_the_training(shapes, monkeypatch, capsys):
    file = shapes.parent / "data" / "labels" / "train" / "0000.txt"
    file.write_text("0 .5 .5 .01 .5\n")
    assert check(monkeypatch, capsys, shapes, "--imgsz", "640")[1]["splits"][0]["below 2 px"] == 0
    assert check(monkeypatch, capsys, shapes, "--imgsz", "160")[1]["splits"][0]["below 2 px"] == 1


def test_a_mistake_in_many_files_is_one_finding(shapes, monkeypatch, capsys, tmp_path):
    """Whatever the row and its numbers; and a page shows files that are empty or a pixel high."""
    labels = shapes.parent / "data" / "labels" / "train"
    (labels / "0000.txt").write_text("0 .5 .5 1.2 .2\n")
    (labels / "0001.txt").write_text("0 .5 .5 .2 .2\n1 .5 .5 7.5 .2\n")
    (labels / "0002.txt").write_text("9 .5 .5 .2 .2\n")
    (labels / "0003.txt").write_text("0 .5 .5 .2 .2\n8 .5 .5 .2 .2\n")
    images = shapes.parent / "data" / "images" / "train"
    (images / "empty.jpg").write_bytes(b"")
    cv2.imwrite(str(images / "line.png"), np.zeros((1, 900, 3), np.uint8))
    status, found = check(monkeypatch, capsys, shapes, "--html", tmp_path / "page.html")
    texts = [finding["text"] for finding in found["findings"] if "left out" in finding["text"]]
    assert sum("2 images" in text for text in texts) == 2 and status == 1
    assert any("a row: a class is out of range 0-2" in text for text in texts)
    assert "line.png" in (tmp_path / "page.html").read_text()


def test_classes_without_objects(shapes, monkeypatch, capsys):
    shapes.write_text(shapes.read_text().replace("triangle]", "triangle, <b>rhombus]"))
    status, found = check(monkeypatch, capsys, shapes)
    assert status == 1 and found["findings"][0]["text"] == "train has no object of <b>rhombus"


def test_hostile_names_stay_text(shapes, monkeypatch, capsys, tmp_path):
    shapes.write_text(shapes.read_text().replace("triangle]", "triangle, <img src=x onerror=alert(1)>]"))
    check(monkeypatch, capsys, shapes, "--html", tmp_path / "page.html")
    assert "<img src=x" not in (tmp_path / "page.html").read_text()


def test_annotations_are_checked_too(tmp_path, monkeypatch, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    objects = [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [30, 30, 20, 20]}]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}]
    coco = {"images": images, "annotations": objects, "categories": [{"id": 4, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    (tmp_path / "d.yaml").write_text(f"path: {tmp_path}\ntrain: a.json\nval: a.json\n")
    status, found = check(monkeypatch, capsys, tmp_path / "d.yaml")
    texts = " ".join(finding["text"] for finding in found["findings"])
    assert status == 1 and "1 boxes beyond the image" in texts and "1 images (50.0%) are left out" in texts
    assert found["splits"][0]["objects"] == 1 and found["names"] == {"0": "x"}


@pytest.mark.parametrize("text", ["train: x\nval: y\nnames: [a]\n", "names: [a]\n"])
def test_what_is_no_data_set(text, tmp_path, monkeypatch, capsys):
    file = tmp_path / "d.yaml"
    file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["data.py", "check", str(file)])
    with pytest.raises(SystemExit) as ended:
        data.main()
    assert ended.value.code == 2 and f"{file}" in capsys.readouterr().err


def test_a_training_says_how_many_images_it_leaves_out(shapes, monkeypatch):
    from ultralytics.cfg import get_cfg
    from ultralytics.data.utils import check_det_dataset

    (shapes.parent / "data" / "images" / "train" / "no image.jpg").write_bytes(b"x")
    said = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    settings = check_det_dataset(str(shapes))
    for split in ("train", "val"):
        RTDETRDataset(img_path=settings[split], imgsz=64, data=settings, hyp=get_cfg(), augment=False)
    lines = [line for line in said if "are left out" in line]
    assert len(lines) == 1 and "1 of 7 images (14.3%) are left out" in lines[0] and "scripts/data.py check" in lines[0]
