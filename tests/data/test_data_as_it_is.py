"""Data sets as people have them: mixed labels, more bits, other channels, lists of Windows, pages, long images."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from ultralytics import RTDETR
from ultralytics.data.utils import verify_image_label
from ultralytics.fork.data import image_kinds
from ultralytics.fork.errors import Refused
from ultralytics.models.rtdetr.train import RTDETRTrainer

OPTIONS = {"imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "plots": False, "mosaic": 0.0, "verbose": False}


def draw(root: Path, images: list[np.ndarray], suffix=".png", rows="1 .5 .5 .4 .4\n", **more) -> Path:
    """Write a data set of these images, each with the same label file: the path of its YAML."""
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for i, image in enumerate(images):
            if callable(image):
                image(root / "images" / part / f"{i}{suffix}")
            else:
                cv2.imwrite(str(root / "images" / part / f"{i}{suffix}"), image)
            (root / "labels" / part / f"{i}.txt").write_text(rows)
    file = root / "mine.yaml"
    data = {"path": str(root), "train": "images/train", "val": "images/val", "names": ["a", "b", "c"], **more}
    file.write_text(yaml.safe_dump(data))
    return file


def dataset(file: Path, folder: Path, **options):
    trainer = RTDETRTrainer(
        overrides={"model": "rtdetr-tiny.yaml", "data": str(file), "project": str(folder), **OPTIONS, **options}
    )
    trainer.stride = 32
    return trainer.build_dataset(trainer.data["train"], "train", 4)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(image_kinds.LOGGER, "warning", lines.append)
    return lines


def grey(height=64, width=64, value=100):
    return np.full((height, width, 3), value, np.uint8)


def test_boxes_beside_polygons_are_read(tmp_path):
    """The boxes are what they are, to the last digit that is written, and no image is left out."""
    cv2.imwrite(str(tmp_path / "x.png"), grey())
    rows = ["0 0.5 0.5 0.25 0.5", "1 0.1 0.1 0.4 0.1 0.4 0.3", "2 0.9 0.1 0.2 0.2", "0 0.2 0.2 0.3 0.2 0.3 0.4 0.2 0.4"]
    (tmp_path / "x.txt").write_text("\n".join(rows))
    found = verify_image_label((str(tmp_path / "x.png"), str(tmp_path / "x.txt"), "", False, 3, 0, 0, False))
    assert found[0] == str(tmp_path / "x.png") and found[-2] == 0 and not found[-1]
    expected = [[0, 0.5, 0.5, 0.25, 0.5], [1, 0.25, 0.2, 0.3, 0.2], [2, 0.9, 0.1, 0.2, 0.2], [0, 0.25, 0.3, 0.1, 0.2]]
    assert found[1] == pytest.approx(np.array(expected), abs=1e-6)
    assert [len(polygon) for polygon in found[3]] == [4, 3, 4, 4]
    (tmp_path / "x.txt").write_text("\n".join([*rows, "1 0.5 0.5 0.2"]))
    assert (
        "row 5" in verify_image_label((str(tmp_path / "x.png"), str(tmp_path / "x.txt"), "", False, 3, 0, 0, False))[-1]
    )


@pytest.mark.parametrize("channels, shape", [(4, (64, 64, 3)), (2, (64, 64, 3)), (3, (64, 64, 4)), (1, (64, 64, 3))])
def test_channels_that_the_images_do_not_have(channels, shape, tmp_path):
    """Images of colour and grey are converted to each other; all else is one line before the run."""
    file = draw(tmp_path / "set", [np.full(shape, 90, np.uint8)] * 4, channels=channels)
    if channels in (1, 3):
        assert dataset(file, tmp_path).load_image(0)[0].shape[2] == channels
        return
    with pytest.raises(Refused, match=rf"0\.png has 3 channels.*mine\.yaml says `channels: {channels}`.*`channels: 3`"):
        RTDETR("rtdetr-tiny.yaml").train(data=file, epochs=1, project=tmp_path, **OPTIONS)


def deep(value):
    image = np.full((64, 64, 3), value, np.uint16)
    image[:8, :8] = 0
    return image


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_sixteen_bit_images_of_a_camera_with_fewer(bits, tmp_path, said):
    """A line tells what is lost and what to write; written, the range is the images' own."""
    largest = 2**bits - 1
    file = draw(tmp_path / "set", [deep(largest), deep(largest // 2)])
    image = dataset(file, tmp_path).load_image(0)[0]
    assert image.max() == largest >> 8
    lines = [line for line in said if "16-bit" in line]
    assert len(lines) == (bits <= 12)
    if lines:
        assert f"largest value is {largest}" in lines[0] and f"`bits: {bits}`" in lines[0]
    for cache in (False, "ram", "disk"):
        shutil.rmtree(tmp_path / "set")
        said.clear()
        found = dataset(draw(tmp_path / "set", [deep(largest), deep(largest // 2)], bits=bits), tmp_path, cache=cache)
        assert [found.load_image(i)[0].max() for i in (0, 1)] == [255, 127] and found.load_image(0)[0].min() == 0
        assert not [line for line in said if "16-bit" in line]


@pytest.mark.parametrize("bits", [7, 17, "12", True])
def test_bits_that_are_none(bits, tmp_path):
    with pytest.raises(Refused, match=r"mine\.yaml, `bits:` expected a number from 8 to 16"):
        dataset(draw(tmp_path / "set", [grey()], bits=bits), tmp_path)


def test_an_image_with_pages(tmp_path, said):
    def write(path):
        pages = [Image.fromarray(grey(value=50 * i)) for i in range(3)]
        pages[0].save(path, save_all=True, append_images=pages[1:])

    dataset(draw(tmp_path / "set", [write, write], suffix=".tif"), tmp_path)
    assert sum("0.tif has 3 pages, of which the first is used" in line for line in said) == 1


@pytest.mark.parametrize(
    "line", [".\\images\\train\\{}.png\r\n", "{root}\\images\\train\\{}.png\r\n", "./images/train\\{}.png\n"]
)
def test_a_list_that_was_written_on_windows(line, tmp_path):
    file = draw(tmp_path / "set", [grey()] * 3)
    root = tmp_path / "set"
    (root / "train.txt").write_bytes("".join(line.format(i, root=root) for i in range(3)).encode())
    file.write_text(file.read_text().replace("train: images/train", "train: train.txt"))
    found = dataset(file, tmp_path)
    assert sorted(map(Path, found.im_files)) == [root / "images" / "train" / f"{i}.png" for i in range(3)]
    assert all(len(label["bboxes"]) == 1 for label in found.labels)
    (root / "train.txt").write_bytes(line.format(7, root=root).encode())
    with pytest.raises(FileNotFoundError, match=r"train\.txt: none of its images is there, such as .*7\.png"):
        dataset(file, tmp_path)


def test_boxes_that_the_stretch_makes_too_small(tmp_path, said):
    rows = "0 .5 .5 .002 .2\n1 .2 .5 .4 .5\n"
    dataset(draw(tmp_path / "set", [grey(100, 4000)] * 2, rows=rows), tmp_path)
    (line,) = [line for line in said if "pixels wide or high" in line]
    assert "2 of 4 boxes" in line and "imgsz=64" in line and "40 times as long as wide" in line
    said.clear()
    dataset(draw(tmp_path / "other", [grey(100, 4000)] * 2), tmp_path)
    assert not said
