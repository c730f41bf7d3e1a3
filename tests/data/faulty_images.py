"""Data sets with a fault in an image, a cached image or a folder of images."""

from __future__ import annotations

import os

import numpy as np
from data_set_writer import TRAINS, fault, image_path, list_files, make_png, write_label
from PIL import Image


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
