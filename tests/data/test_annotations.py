"""COCO JSON and Pascal VOC's XML give the same boxes as YOLO labels, and one line for what is wrong."""

import copy
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from coco_writer import write_coco
from conftest import draw_shapes
from PIL import Image

from ultralytics import RTDETR
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.fork.data import annotations
from ultralytics.fork.data.coco_json import read_coco_json
from ultralytics.fork.data.voc_xml import read_voc_folder
from ultralytics.fork.errors import Refused
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils import LOGGER

IDS = {"circle": 7, "square": 2, "triangle": 90}  # with gaps, and not in the order of the names


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A data set of upstream's kind: its YAML."""
    return draw_shapes(tmp_path_factory.mktemp("data [set]"), train=4, val=4)


def read_yolo(shapes: Path, split: str) -> dict[str, np.ndarray]:
    """By image the boxes of its label file as class, left, top, right, bottom in pixels."""
    found = {}
    for image in sorted((shapes.parent / "data" / "images" / split).glob("*.jpg")):
        height, width = cv2.imread(str(image)).shape[:2]
        rows = np.loadtxt(shapes.parent / "data" / "labels" / split / f"{image.stem}.txt", ndmin=2).reshape(-1, 5)
        centre, size = rows[:, 1:3] * [width, height], rows[:, 3:] * [width, height]
        found[image.name] = np.concatenate([rows[:, :1], centre - size / 2, centre + size / 2], 1)
    return found


def make_coco(shapes: Path, split: str) -> dict:
    """The labels of a split as COCO's lists; the ids of the images are text."""
    names, images, objects = list(IDS), [], []
    for name, rows in read_yolo(shapes, split).items():
        side = cv2.imread(str(shapes.parent / "data" / "images" / split / name)).shape
        images.append({"id": f"no. {name}", "file_name": name, "width": side[1], "height": side[0]})
        for cls, left, top, right, bottom in rows:
            box = [left, top, right - left, bottom - top]
            objects.append(
                {"id": len(objects), "image_id": f"no. {name}", "bbox": box, "category_id": IDS[names[int(cls)]]}
            )
    return {
        "images": images,
        "annotations": objects,
        "categories": [{"id": identity, "name": name} for name, identity in IDS.items()],
    }


def write_voc(shapes: Path, split: str, folder: Path) -> None:
    """The labels of a split as XML files, whose pixels count from 1."""
    folder.mkdir()
    for name, rows in read_yolo(shapes, split).items():
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name
        for cls, *corners in rows:
            entry = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(entry, "name").text = list(IDS)[int(cls)]
            box = ElementTree.SubElement(entry, "bndbox")
            for key, value, shift in zip(("xmin", "ymin", "xmax", "ymax"), corners, (1, 1, 0, 0)):
                ElementTree.SubElement(box, key).text = str(value + shift)
        ElementTree.ElementTree(root).write(folder / f"{Path(name).stem}.xml")


@pytest.fixture
def coco(shapes, tmp_path) -> Path:
    """The data set with annotations in COCO JSON and no names: its YAML; the images are where they were."""
    for split in ("train", "val"):
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(make_coco(shapes, split)))
    os.symlink(shapes.parent / "data" / "images", tmp_path / "images")
    file = tmp_path / "coco.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: instances_train.json\nval: instances_val.json\n")
    return file


def load(file: Path, split: str, **options) -> RTDETRDataset:
    """Open a split as a training does."""
    data = check_det_dataset(str(file))
    return RTDETRDataset(img_path=data[split], imgsz=64, data=data, hyp=get_cfg(), augment=False, **options)


def boxes_of(dataset: RTDETRDataset) -> dict[str, set[tuple]]:
    """By image its objects as name and rounded box."""
    names = dataset.data["names"]
    return {
        Path(label["im_file"]).name: {
            (names[int(c)], *np.round(box, 4).tolist()) for c, box in zip(label["cls"][:, 0], label["bboxes"])
        }
        for label in dataset.labels
    }


def test_boxes_are_those_of_yolo_labels(shapes, coco, tmp_path):
    expected = {split: boxes_of(load(shapes, split)) for split in ("train", "val")}
    for split, boxes in expected.items():
        assert boxes_of(load(coco, split)) == boxes
    voc = tmp_path / "voc.yaml"
    voc.write_text(f"path: {tmp_path}\ntrain: VOC/train\nval: VOC/val\nnames: [square, circle, triangle]\n")
    (tmp_path / "VOC").mkdir()
    for split in expected:
        write_voc(shapes, split, tmp_path / "VOC" / split)
    for split, boxes in expected.items():
        found = load(voc, split)
        assert boxes_of(found) == boxes and found.data["names"][0] == "square"


def test_names_are_those_of_the_annotations(coco):
    """In the order of their ids, where the data YAML has none."""
    assert check_det_dataset(str(coco))["names"] == {0: "square", 1: "circle", 2: "triangle"}


def test_options_of_the_trainer_apply(coco):
    assert len(load(coco, "train", fraction=0.5)) == 2
    assert {int(c) for label in load(coco, "train", single_cls=True).labels for c in label["cls"].flat} == {0}
    kept = load(coco, "train", classes=[1])
    assert {int(c) for label in kept.labels for c in label["cls"].flat} == {1} and len(kept) == 4


def test_images_are_checked_once(coco, monkeypatch):
    load(coco, "train")
    assert (coco.parent / "instances_train.cache").is_file()
    monkeypatch.setattr("ultralytics.data.utils.verify_image_label", lambda args: pytest.fail("read again"))
    load(coco, "train")
    monkeypatch.undo()
    file = coco.parent / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    before = sum(len(image.names) for found in [read_coco_json(file, coco.parent)] for image in found.images)
    assert sum(len(label["cls"]) for label in load(coco, "train").labels) == before


def test_what_is_left_out_is_told(coco, monkeypatch):
    """A crowd region, boxes beyond the image and without area, an object twice, and an image that cannot be read."""
    file = coco.parent / "instances_train.json"
    content = json.loads(file.read_text())
    image = content["images"][0]
    width, height = image["width"], image["height"]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] == content["images"][1]["id"]]
    count = len(content["annotations"])

    def add(box: list, **more) -> None:
        row = {"id": f"more {len(content['annotations'])}", "image_id": image["id"], "category_id": 7, "bbox": box}
        content["annotations"].append({**row, **more})

    add([1, 1, 30, 30], iscrowd=1)
    add([width - 10, height - 20, 40, 40])
    add([width + 5, 0, 10, 10])
    add([2, 2, 0, 10])
    add([4, 4, 16, 8])
    add([4, 4, 16, 8])
    (coco.parent / "bad.jpg").write_bytes(b"no image")
    content["images"].append({"id": 5, "file_name": "bad.jpg"})
    file.write_text(json.dumps(content))
    said = []
    monkeypatch.setattr(LOGGER, "info", said.append)
    dataset = load(coco, "train")
    first = next(label for label in dataset.labels if label["im_file"].endswith(image["file_name"]))
    boxes = first["bboxes"] * [width, height, width, height]
    assert sorted(map(tuple, np.round(boxes, 3))) == [(12, 8, 16, 8), (width - 5, height - 10, 10, 20)]
    line = next(text for text in said if "instances_train.json" in text and "objects" in text)
    assert f"4 images with {count + 2} objects" in line and len(dataset) == 4
    for text in ("1 regions of many", "1 boxes beyond", "2 boxes without an area", "1 objects that are named twice"):
        assert text in line
    assert "1 images that cannot be used" in line


def test_boxes_are_relative_to_the_size_that_is_stated(coco):
    file = coco.parent / "instances_val.json"
    content = json.loads(file.read_text())
    expected = boxes_of(load(coco, "val"))
    for image in content["images"]:
        image["width"], image["height"] = 2 * image["width"], 2 * image["height"]
    for row in content["annotations"]:
        row["bbox"] = [2 * x for x in row["bbox"]]
    file.write_text(json.dumps(content))
    assert boxes_of(load(coco, "val")) == expected


def change(**changes):
    """Make a function that changes the first entry of a list, or the list."""

    def apply(content: dict) -> None:
        for key, value in changes.items():
            if isinstance(value, dict):
                content[key][0] = {k: v for k, v in {**content[key][0], **value}.items() if v is not None}
            else:
                content[key] = value

    return apply


@pytest.mark.parametrize(
    "apply, says",
    [
        (change(images=[]), "has no images"),
        (change(categories=[]), "has no categories"),
        (change(annotations=None), "expected COCO's lists images, annotations, categories"),
        (change(images={"id": "no. 0001.jpg"}), r"images\[1\]: id no. 0001.jpg is that of an entry before it"),
        (change(annotations={"id": 1}), r"annotations\[1\]: id 1 is that of an entry before it"),
        (change(categories={"id": 90}), r"categories\[2\]: id 90 is that of"),
        (change(categories={"name": "square"}), r"categories\[1\]: square is the name of one before it"),
        (change(images={"id": 1.5}), r"images\[0\]: expected a number or text as id, not 1.5"),
        (change(images={"file_name": None}), r"images\[0\]: expected id, file_name, not"),
        (change(images={"file_name": "../../x.jpg"}), "lies outside of the data set's folder"),
        (change(images={"width": 0}), r"images\[0\]: expected pixels as width and height"),
        (change(annotations={"image_id": 4}), r"annotations\[0\]: image_id 4 is the id of no image"),
        (change(annotations={"category_id": [7]}), r"annotations\[0\]: category_id \[7\] is the id of no category"),
        (change(annotations={"bbox": [1, 2, 3]}), r"annotations\[0\]: expected left, top, width and height as bbox"),
        (change(annotations={"bbox": [1, 2, 3, float("nan")]}), r"annotations\[0\]: expected left, top"),
    ],
)
def test_wrong_coco_files_are_named(shapes, coco, apply, says):
    content = make_coco(shapes, "train")
    apply(content)
    file = coco.parent / "instances_train.json"
    file.write_text(json.dumps(content))
    with pytest.raises(Refused, match=rf"instances_train\.json.*{says}"):
        read_coco_json(file, coco.parent)


@pytest.mark.parametrize(
    "text, says", [("{", "is not JSON"), ("[]", "a list, as detections are"), ("[" * 9**5, "not JSON")]
)
def test_other_files_are_named(tmp_path, text, says):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(Refused, match=says):
        read_coco_json(file, tmp_path)


@pytest.mark.parametrize(
    "text, says",
    [
        ("<annotation>", "is not XML"),
        ("<root/>", "expected Pascal VOC's <annotation>, not <root>"),
        ("<annotation/>", "<filename> is missing"),
        ("<annotation><filename>a.jpg</filename><object/></annotation>", "object 1: expected <name> and <bndbox>"),
        ("<!DOCTYPE a><annotation/>", "declares a document type"),
        (
            "<annotation><filename>a.jpg</filename><size><width>x</width><height>2</height></size></annotation>",
            "expected pixels as <width> and <height>",
        ),
    ],
)
def test_wrong_xml_files_are_named(tmp_path, text, says):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(Refused, match=rf"a\.xml.*{says}"):
        read_voc_folder(tmp_path, tmp_path)


def test_a_category_that_the_data_yaml_lacks(coco):
    coco.write_text(f"{coco.read_text()}names: [square, circle]\n")
    with pytest.raises(Refused, match="instances_train.json has objects of 'triangle', and `names:`"):
        load(coco, "train")


def test_annotations_stand_alone(coco):
    coco.write_text(
        coco.read_text().replace("train: instances_train.json", "train: [instances_train.json, images/train]")
    )
    coco.write_text(f"{coco.read_text()}names: [square, circle, triangle]\n")
    with pytest.raises(Refused, match="images/train stands beside annotations"):
        load(coco, "train")


def test_xml_beside_images_that_have_labels_is_left(shapes, tmp_path):
    """As labelling tools leave it there, whose labels were converted."""
    folder = shapes.parent / "data" / "images" / "train"
    file = folder / "0000.xml"
    file.write_text("<annotation/>")
    try:
        assert not annotations.is_annotations(folder) and len(load(shapes, "train")) == 4
    finally:
        file.unlink()


@pytest.mark.parametrize("place", ["annotations", ".", "train2017", "images/train2017", "deep/er"])
def test_images_are_found_where_people_put_them(tmp_path, place):
    name = "a photo (1).jpg"
    (tmp_path / "annotations").mkdir()
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / name).write_bytes(b"")
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    file.write_text(json.dumps(content))
    assert Path(read_coco_json(file, tmp_path).images[0].file) == tmp_path / place / name


@pytest.mark.parametrize("name", [r"cam\1.jpg", "cam/1.jpg", "/elsewhere/1.jpg", r"C:\x\1.jpg"])
def test_names_of_other_systems(tmp_path, name):
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "1.jpg").write_bytes(b"")
    file = tmp_path / "x.json"
    content = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    file.write_text(json.dumps(content))
    assert Path(read_coco_json(file, tmp_path).images[0].file) == tmp_path / "cam" / "1.jpg"


@pytest.mark.parametrize("name", ["val", "val_coco", "instances_val", "my_val_set"])
def test_each_split_gets_its_own_images(tmp_path, name):
    """Where each split counts its images from 0."""
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "images" / split / "0.jpg").write_bytes(b"")
    file = tmp_path / "annotations" / f"{name}.json"
    write_coco(file, ("0.jpg", None, []))
    assert Path(read_coco_json(file, tmp_path).images[0].file) == tmp_path / "images" / "val" / "0.jpg"
    write_coco(tmp_path / "annotations" / "all.json", ("0.jpg", None, []))
    with pytest.raises(Refused, match=r"the image 0\.jpg may be .*0\.jpg or .*0\.jpg; put the annotations beside"):
        read_coco_json(tmp_path / "annotations" / "all.json", tmp_path)


def test_images_of_other_proportions_are_left_out(tmp_path, monkeypatch):
    """As one that a camera has turned by its EXIF data, of which the boxes are not."""
    image = Image.new("RGB", (40, 20))
    image.save(tmp_path / "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    write_coco(tmp_path / "a.json", ("plain.jpg", (40, 20), [[0, 0, 9, 9]]), ("turned.jpg", (40, 20), [[0, 0, 9, 9]]))
    (tmp_path / "d.yaml").write_text(f"path: {tmp_path}\ntrain: a.json\nval: a.json\n")
    said = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    assert [Path(label["im_file"]).name for label in load(tmp_path / "d.yaml", "train").labels] == ["plain.jpg"]
    assert any("turned.jpg: it is left out" in line and "turned by its EXIF data" in line for line in said)


def test_images_of_other_endings_are_told(tmp_path, monkeypatch):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg")
    write_coco(tmp_path / "a.json", ("a.jpg", None, []), ("b.gif", None, []))
    (tmp_path / "d.yaml").write_text(f"path: {tmp_path}\ntrain: a.json\nval: b.json\n")
    write_coco(tmp_path / "b.json", ("b.gif", None, []))
    said = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    assert len(load(tmp_path / "d.yaml", "train")) == 1
    assert any("1 of 2 images are left out for their ending, such as" in line for line in said)
    with pytest.raises(Refused, match="none of its images has an ending of an image"):
        load(tmp_path / "d.yaml", "val")


def test_names_without_an_ending(tmp_path):
    """As some tools write them into XML files."""
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.xml").write_text("<annotation><filename>a</filename></annotation>")
    assert read_voc_folder(tmp_path, tmp_path).images[0].file == str(tmp_path / "a.png")


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "d.yaml").write_text(f"path: {tmp_path}\ntrain: typo.json\nval: typo.json\n")
    with pytest.raises(Refused, match=r"`train:` names .*typo\.json, and there is no such file"):
        check_det_dataset(str(tmp_path / "d.yaml"))


def test_one_class_for_all(coco):
    """As upstream's trainer names it before the data set is opened."""
    data = check_det_dataset(str(coco))
    data["names"], data["nc"] = {0: "item"}, 1
    found = RTDETRDataset(img_path=data["train"], imgsz=64, data=data, hyp=get_cfg(), augment=False, single_cls=True)
    assert {int(c) for label in found.labels for c in label["cls"].flat} == {0}


def test_detections_bear_the_ids_of_the_annotations(coco, tmp_path, monkeypatch):
    """As numbers and text, with gaps; COCO's own evaluation takes them."""
    model = RTDETR("rtdetr-tiny.yaml")
    model.model.names, model.model.nc = {0: "square", 1: "circle", 2: "triangle"}, 3
    said = []
    monkeypatch.setattr(LOGGER, "info", said.append)
    model.val(
        data=str(coco), imgsz=64, save_json=True, conf=0.0, plots=False, workers=0, project=str(tmp_path), name="val"
    )
    rows = json.loads((tmp_path / "val" / "predictions.json").read_text())
    images = json.loads((coco.parent / "instances_val.json").read_text())["images"]
    assert {row["image_id"] for row in rows} == {image["id"] for image in images}
    assert all(row["image_id"] == f"no. {row['file_name']}" for row in rows)
    assert {row["category_id"] for row in rows} <= set(IDS.values()) and len(rows) == 60 * 4
    assert any("COCO's evaluation on" in line for line in said) and any("area= small" in line for line in said)


def test_labels_of_other_tasks_are_refused(coco):
    dataset = SimpleNamespace(use_segments=True, use_keypoints=False, use_obb=False, data={"path": coco.parent})
    with pytest.raises(Refused, match="only boxes are read of annotations"):
        annotations.list_images(None, dataset, [str(coco.parent / "instances_val.json")])


def test_a_label_is_made_of_copies(coco):
    """Nothing that upstream changes of a label changes the annotations."""
    found = read_coco_json(coco.parent / "instances_val.json", coco.parent)
    before = copy.deepcopy(found.images[0].boxes)
    label = annotations.make_label(found.images[0], (80, 80), {"circle": 0, "square": 1, "triangle": 2}, Counter())
    label["bboxes"] *= 0
    assert (found.images[0].boxes == before).all()
