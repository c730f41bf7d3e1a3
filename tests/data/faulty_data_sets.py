"""Data sets with one fault each, and the outcome that is expected: training, or an error of one line."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

TRAINS = None  # in place of a word of the error
# By name: a function that puts the fault into a good set and may return another `data=`; TRAINS or a word of the error;
# the warning about what is left out
CASES: dict[str, tuple[Callable[[Path], object], str | None, str]] = {}


def write_set(root: Path, train: int = 4, val: int = 2) -> Path:
    """Write a set without a fault: textured images of 64 pixels with two objects each; give the path of its YAML."""
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(n):
            cv2.imwrite(str(root / "images" / split / f"{i}.jpg"), rng.integers(0, 255, (64, 64, 3), np.uint8))
            (root / "labels" / split / f"{i}.txt").write_text(f"{i % 2} 0.3 0.3 0.2 0.4\n1 0.6 0.6 0.5 0.5\n")
    return write_data_yaml(root)


def write_data_yaml(root: Path, **values: object) -> Path:
    """Write the YAML of a set, with some values changed; None leaves a key out."""
    data = {"path": str(root), "train": "images/train", "val": "images/val", "names": ["a", "b"], **values}
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}, sort_keys=False))
    return file


def fault(outcome: str | None, line: str = "") -> Callable:
    """Add a function as a case; {} in the line stands for the set's folder."""

    def add(function: Callable[[Path], object]) -> Callable:
        CASES[function.__name__] = function, outcome, line
        return function

    return add


def image_path(root: Path, name: str = "0.jpg") -> Path:
    """Give the path of an image of the training split."""
    return root / "images" / "train" / name


def write_label(root: Path, text: str, name: str = "0.txt") -> None:
    """Write a label file of the training split."""
    (root / "labels" / "train" / name).write_text(text)


def list_files(root: Path, split: str = "train", kind: str = "images") -> list[Path]:
    """List the images or labels of a split."""
    return sorted((root / kind / split).iterdir())


def make_png(width: int, height: int, data: bytes = b"") -> bytes:
    """Make a PNG that claims a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# Images ---------------------------------------------------------------------------------------------------------------
@fault(TRAINS)
def nothing(root):
    pass


@fault(TRAINS, "{}/images/train/0.jpg: ignoring corrupt image/label: ")
def image_of_zero_bytes(root):
    image_path(root).write_bytes(b"")


@fault(TRAINS, "{}/images/train/0.jpg: ignoring corrupt image/label: ")
def image_cut_short(root):
    image_path(root).write_bytes(image_path(root).read_bytes()[:700])


@fault(TRAINS, "{}/images/train/0.jpg: ignoring corrupt image/label: ")
def image_without_its_end(root):
    image_path(root).write_bytes(image_path(root).read_bytes()[:-2])


@fault(TRAINS)
def image_with_changed_bytes(root):
    data = bytearray(image_path(root).read_bytes())
    data[700:900] = bytes(200)
    image_path(root).write_bytes(data)


@fault(TRAINS, "{}/images/train/0.jpg: ignoring corrupt image/label: ")
def image_that_is_text(root):
    image_path(root).write_text("no image")


@fault(TRAINS, "{}/images/train/a.jpg: ignoring corrupt image/label: ")
def image_that_is_a_folder(root):
    image_path(root, "a.jpg").mkdir()


@fault(TRAINS, "{}/images/train/a.jpg: ignoring corrupt image/label: ")
def image_that_is_a_dangling_link(root):
    image_path(root, "a.jpg").symlink_to(root / "none.jpg")


@fault(TRAINS)
def image_that_may_not_be_read(root):
    image_path(root).chmod(0)


@fault(TRAINS, "{}/images/train/huge.png: ignoring corrupt image/label: ")
def image_that_claims_to_be_huge(root):
    image_path(root, "huge.png").write_bytes(make_png(100_000, 100_000))


@fault(TRAINS, "{}/images/train/a.png: ignoring corrupt image/label: ")
def png_cut_short(root):
    Image.open(image_path(root)).save(image_path(root, "a.png"))
    image_path(root, "a.png").write_bytes(image_path(root, "a.png").read_bytes()[:-500])


@fault(TRAINS, "{}/images/train/a.png: ignoring corrupt image/label: ")
def png_without_pixels(root):
    image_path(root, "a.png").write_bytes(make_png(64, 64, b"\0" * 64))


@fault(TRAINS, "{}/images/train/a.bmp: ignoring corrupt image/label: ")
def bmp_cut_short(root):
    Image.open(image_path(root)).save(image_path(root, "a.bmp"))
    image_path(root, "a.bmp").write_bytes(image_path(root, "a.bmp").read_bytes()[:200])


@fault(TRAINS, "{}/images/train/a.webp: ignoring corrupt image/label: ")
def webp_cut_short(root):
    Image.open(image_path(root)).save(image_path(root, "a.webp"))
    image_path(root, "a.webp").write_bytes(image_path(root, "a.webp").read_bytes()[:200])


@fault(TRAINS)
def tiff_cut_short(root):
    Image.open(image_path(root)).save(image_path(root, "a.tif"), compression="tiff_lzw")
    data = image_path(root, "a.tif").read_bytes()
    image_path(root, "a.tif").write_bytes(data[:8] + bytes(1000) + data[1008:])


@fault(TRAINS, "{}/images/train/a.heic: ignoring corrupt image/label: ")
def heic_of_nothing(root):
    image_path(root, "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


@fault(TRAINS, "{}/images/train/0.jpg: ignoring corrupt image/label: ")
def image_of_one_pixel(root):
    Image.new("RGB", (1, 1)).save(image_path(root))


@fault(TRAINS)
def image_long_and_thin(root):
    Image.new("RGB", (4000, 10)).save(image_path(root))


@fault(TRAINS)
def images_of_every_mode(root):
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        Image.new(mode, (64, 48)).save(image_path(root, f"{mode.replace(';', '')}.png"))
    for mode in ("L", "CMYK"):
        Image.new(mode, (64, 48)).save(image_path(root, f"{mode}.jpg"))


@fault("a.tif cannot be decoded: remove it")
def image_of_fractions(root):
    Image.fromarray(np.random.default_rng(0).random((48, 64), np.float32)).save(image_path(root, "a.tif"))


@fault(TRAINS, "{}/images/train/0.jpg: ignoring corrupt image/label: ")
def gif_called_jpg(root):
    Image.new("RGB", (64, 64)).save(image_path(root), "GIF")


@fault(TRAINS)
def png_called_jpg(root):
    Image.new("RGB", (64, 64)).save(image_path(root), "PNG")


@fault(TRAINS)
def image_turned_by_exif(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 48)).save(image_path(root), exif=exif)


@fault(TRAINS)
def image_with_broken_exif(root):
    Image.new("RGB", (96, 48)).save(image_path(root), exif=b"Exif\0\0" + b"\xff" * 40)


@fault(TRAINS)
def names_of_all_kinds(root):
    names = "ein bild.jpg", "чайка 图.jpg", "a.b.c.jpg", "'quoted' [1].jpg", "%20&;$(x).jpg", "new\nline.jpg"
    for i, name in enumerate(names):
        image_path(root, name).write_bytes(image_path(root).read_bytes())
        write_label(root, f"{i % 2} 0.5 0.5 0.2 0.2", f"{name[:-4]}.txt")


@fault(TRAINS)
def name_that_is_no_unicode(root):
    with open(os.fsencode(image_path(root)) + b"\xff.jpg", "wb") as f:
        f.write(image_path(root).read_bytes())


@fault("train")
def all_images_corrupt(root):
    for file in list_files(root):
        file.write_bytes(b"\xff\xd8\xff")


@fault("val")
def all_val_images_corrupt(root):
    for file in list_files(root, "val"):
        file.write_bytes(b"")


@fault("train: ")
def no_train_images(root):
    for file in list_files(root):
        file.unlink()


@fault("val: ")
def no_val_images(root):
    for file in list_files(root, "val"):
        file.unlink()


@fault(TRAINS, "{}/images/train/0.npy is no image and is not used for 0.jpg")
def npy_that_is_no_image(root):
    np.save(image_path(root, "0.npy"), np.zeros(3))


@fault(TRAINS, "{}/images/train/0.npy is no image and is not used for 0.jpg")
def npy_of_objects(root):
    np.save(image_path(root, "0.npy"), np.array([{}, 1], dtype=object))


@fault(TRAINS, "{}/images/train/0.npy is no image and is not used for 0.jpg")
def npy_of_nan(root):
    np.save(image_path(root, "0.npy"), np.full((64, 64, 3), np.nan))


@fault(TRAINS, "{}/images/train/0.npy is no image and is not used for 0.jpg")
def npy_of_no_pixels(root):
    np.save(image_path(root, "0.npy"), np.zeros((0, 64, 3), np.uint8))


@fault(TRAINS, "{}/images/train/0.npy is no image and is not used for 0.jpg")
def npy_that_claims_to_be_huge(root):
    np.save(image_path(root, "0.npy"), np.zeros((64, 64, 3), np.uint8))
    data = image_path(root, "0.npy").read_bytes()
    image_path(root, "0.npy").write_bytes(data.replace(b"(64, 64, 3), ", b"(9999999, 9999999, 3),"[:13]))


# Labels ---------------------------------------------------------------------------------------------------------------
LABELS = {  # that are taken
    "columns_of_a_segment": "0 0.1 0.1 0.5 0.1 0.5 0.5",
    "mixed_columns": "0 0.5 0.5 0.5 0.5\n0 0.1 0.1 0.5 0.1 0.5 0.5",
    "width_zero": "0 0.5 0.5 0 0.5",
    "box_outside": "0 1.0 1.0 1.0 1.0",
    "box_tiny": "0 0.5 0.5 1e-30 1e-30",
    "empty": "",
    "blank_lines": "\n\n   \n",
    "bom_and_crlf": "\ufeff0 0.5 0.5 0.5 0.5\r\n1 0.5 0.5 0.2 0.2\r\n",
    "same_row_twice": "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5",
    "underscores": "0 0.5_5 0.5 0.5 0.5",
    "thousand_boxes": "\n".join(f"0 0.5 0.5 {i / 1000} 0.5" for i in range(1, 1001)),
}
WRONG = {  # whose image is left out; the last row is the wrong one
    "words": "a cat",
    "a_word_for_a_number": "0 x 0.5 0.5 0.5",
    "too_few_columns": "0 0.5 0.5 0.5",
    "too_many_columns": "0 0.5 0.5 0.5 0.5 0.9",
    "an_odd_segment": "0 0.1 0.1 0.5 0.1 0.5 0.5 0.7",
    "mixed_and_beyond": "0 0.1 0.1 0.5 0.1 0.5 0.5\n0 1.5 0.5 0.5 0.5",
    "ragged_rows": "0 0.5 0.5 0.5 0.5\n0 0.5",
    "negative_class": "-1 0.5 0.5 0.5 0.5",
    "class_out_of_range": "2 0.5 0.5 0.5 0.5",
    "class_of_a_fraction": "0.5 0.5 0.5 0.5 0.5",
    "class_beyond_integers": "1e30 0.5 0.5 0.5 0.5",
    "class_nan": "nan 0.5 0.5 0.5 0.5",
    "coordinate_above_1": "0 1.5 0.5 0.5 0.5",
    "coordinates_in_pixels": "0 32 32 16 16",
    "negative_coordinate": "0 -0.5 0.5 0.5 0.5",
    "negative_width": "0 0.5 0.5 -0.005 0.5",
    "nan": "0 nan 0.5 0.5 0.5",
    "inf": "0 inf 0.5 0.5 0.5",
    "minus_inf": "0 -inf 0.5 0.5 0.5",
    "infinite_after_rounding": "0 1e309 0.5 0.5 0.5",
    "no_text": "\0\1\2\3",
    "commas": "0,0.5,0.5,0.5,0.5",
}
for _name, _text in LABELS.items():
    CASES[f"labels_{_name}"] = (lambda root, text=_text: write_label(root, text)), TRAINS, ""
for _name, _text in WRONG.items():
    _line = f"0.jpg: ignoring corrupt image/label: {{}}/labels/train/0.txt, row {_text.count(chr(10)) + 1}: "
    CASES[f"labels_{_name}"] = (lambda root, text=_text: write_label(root, text)), TRAINS, _line


@fault(TRAINS, "{}/labels/train/0.txt is no text in UTF-8")
def labels_in_utf16(root):
    (root / "labels" / "train" / "0.txt").write_bytes("0 0.5 0.5 0.5 0.5".encode("utf-16"))


@fault(TRAINS)
def labels_missing_for_one(root):
    (root / "labels" / "train" / "0.txt").unlink()


@fault("train")
def labels_missing(root):
    for file in list_files(root, kind="labels"):
        file.unlink()


@fault(TRAINS)
def val_labels_missing(root):
    for file in list_files(root, "val", "labels"):
        file.unlink()


@fault(TRAINS)
def val_labels_empty(root):
    for file in list_files(root, "val", "labels"):
        file.write_text("")


@fault(TRAINS)
def label_that_is_a_folder(root):
    (root / "labels" / "train" / "0.txt").unlink()
    (root / "labels" / "train" / "0.txt").mkdir()


@fault(TRAINS)
def a_batch_without_objects(root):
    for name in ("0.txt", "1.txt", "2.txt"):
        write_label(root, "", name)


@fault(TRAINS)
def one_image(root):
    for file in list_files(root)[1:]:
        file.unlink()


# The YAML -------------------------------------------------------------------------------------------------------------
def write_yaml_text(root: Path, text: str | bytes) -> None:
    """Write text in place of the set's YAML."""
    file = root / "data.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)


YAMLS = {
    "names_missing": (dict(names=None), "names"),
    "names_missing_with_nc": (dict(names=None, nc=2), TRAINS),
    "names_empty": (dict(names=[]), "names"),
    "names_empty_mapping": (dict(names={}), "names"),
    "names_a_word": (dict(names="cat"), "names"),
    "names_a_number": (dict(names=2), "names"),
    "nc_another": (dict(nc=3), "names"),
    "nc_zero": (dict(nc=0, names=None), "nc"),
    "nc_negative": (dict(nc=-1, names=None), "nc"),
    "nc_a_word": (dict(nc="two", names=None), "nc"),
    "nc_huge": (dict(nc=10**9, names=None), "nc"),
    "nc_infinite": (dict(nc=float("inf"), names=None), "nc"),
    "names_with_a_gap": (dict(names={0: "a", 2: "b"}), "names"),
    "names_from_one": (dict(names={1: "a", 2: "b"}), "names"),
    "names_negative": (dict(names={-1: "a", 0: "b"}), "names"),
    "names_of_words": (dict(names={"a": 0, "b": 1}), "names"),
    "names_of_numbers": (dict(names=[1, 2.5]), TRAINS),
    "names_of_nothing": (dict(names=[None, True]), TRAINS),
    "names_of_lists": (dict(names=[["a"], {"b": 1}]), TRAINS),
    "names_twice_the_same": (dict(names=["a", "a"]), TRAINS),
    "names_like_imagenet": (dict(names=["n01440764", "n01443537"]), TRAINS),
    "names_with_newlines": (dict(names=["a\nb", "%s {x} \x1b[31m"]), TRAINS),
    "names_1000_in_a_list": (dict(names=[f"c{i}" for i in range(1000)]), TRAINS),
    "names_1000_in_a_mapping": (dict(names={i: f"c{i}" for i in range(1000)}), TRAINS),
    "train_missing": (dict(train=None), "train"),
    "val_missing": (dict(val=None), "val"),
    "train_elsewhere": (dict(train="images/none"), "images/none"),
    "val_elsewhere": (dict(val="images/none"), "images/none"),
    "train_a_number": (dict(train=3), "train"),
    "train_a_list_of_numbers": (dict(train=[3]), "train"),
    "train_an_empty_list": (dict(train=[]), "train"),
    "train_an_empty_string": (dict(train=""), "train"),
    "train_a_url": (dict(train="https://example.invalid/train.zip"), "train"),
    "path_elsewhere": (dict(path="/none"), "/none"),
    "path_a_list": (dict(path=["a"]), "path"),
    "path_a_url": (dict(path="https://example.invalid/data"), "example.invalid"),
    "channels_a_word": (dict(channels="three"), "channels"),
    "channels_negative": (dict(channels=-1), "channels"),
    "channels_zero": (dict(channels=0), "channels"),
    "channels_1": (dict(channels=1), TRAINS),
    "download_a_number": (dict(path="/none", download=3), "download"),
    "kpt_shape_of_words": (dict(kpt_shape=["a", "b"]), "kpt_shape"),
    "kpt_shape_of_one": (dict(kpt_shape=[1]), "kpt_shape"),
    "kpt_shape_negative": (dict(kpt_shape=[-1, 5]), "kpt_shape"),
    "nc_true": (dict(names=None, nc=True), "nc"),
    "a_val_of_null": (dict(val=None, validation="images/val"), TRAINS),
    "test_elsewhere": (dict(test="images/none"), TRAINS),
}
for _name, (_values, _outcome) in YAMLS.items():
    CASES[f"yaml_{_name}"] = (lambda root, values=_values: write_data_yaml(root, **values) and None), _outcome, ""


@fault(TRAINS)
def yaml_one_class(root):
    write_data_yaml(root, names=["a"])
    for split in ("train", "val"):
        for file in list_files(root, split, "labels"):
            file.write_text("0 0.5 0.5 0.5 0.5\n")


@fault("train")
def yaml_path_is_a_file(root):
    write_data_yaml(root, path=str(image_path(root)))


@fault("train")
def yaml_train_is_an_image(root):
    write_data_yaml(root, train="images/train/0.jpg")


@fault(TRAINS, "{}/images/train/none.jpg: ignoring corrupt image/label: ")
def yaml_train_is_a_list_of_files(root):
    (root / "train.txt").write_text("".join(f"./images/train/{i}.jpg\n" for i in (0, 1, 2, "none")))
    write_data_yaml(root, train="train.txt")


@fault("train")
def yaml_train_is_an_empty_file(root):
    (root / "train.txt").write_text("")
    write_data_yaml(root, train="train.txt")


@fault("data.yaml")
def yaml_of_nothing(root):
    write_yaml_text(root, "")


@fault("data.yaml")
def yaml_a_list(root):
    write_yaml_text(root, "- a\n- b\n")


@fault("data.yaml")
def yaml_a_word(root):
    write_yaml_text(root, "hello")


@fault("data.yaml")
def yaml_of_tabs(root):
    write_yaml_text(root, "train:\timages/train\n\tval: images/val\n")


@fault("data.yaml")
def yaml_cut_short(root):
    write_yaml_text(root, 'train: "images')


@fault("data.yaml")
def yaml_of_bytes(root):
    write_yaml_text(root, bytes(range(256)))


@fault("data.yaml")
def yaml_of_tags(root):
    write_yaml_text(root, "train: !!python/object/apply:os.system [id]\nval: x\nnames: [a]\n")


@fault(TRAINS)
def yaml_with_crlf_and_bom(root):
    write_yaml_text(root, b"\xef\xbb\xbf" + (root / "data.yaml").read_bytes().replace(b"\n", b"\r\n"))


@fault("none.yaml")
def yaml_missing(root):
    return root / "none.yaml"


@fault("data.yaml")
def yaml_that_is_a_folder(root):
    (root / "data.yaml").unlink()
    (root / "data.yaml").mkdir()


@fault(TRAINS)
def data_is_the_folder(root):
    return root


@fault("YAML")
def data_is_a_folder_without_yaml(root):
    return root / "images"


@fault("0.jpg")
def data_is_an_image(root):
    return image_path(root)
