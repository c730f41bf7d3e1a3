"""What this fork does to upstream's data/: it runs, unpickles and fetches nothing of a data set unasked.

A data YAML is checked, and its `download:` needs consent; label caches hold numbers and text; what is wrong with a data
set, an image or a label is one line that names it. Annotations in COCO JSON and Pascal VOC's XML are read, too.
"""

from __future__ import annotations

import functools
from typing import Any

from ultralytics.fork.data import annotations
from ultralytics.fork.data.data_yaml import check_data_yaml
from ultralytics.fork.data.dataset_errors import explain_dataset_errors
from ultralytics.fork.data.download_consent import convert_ndjson, require_download_consent
from ultralytics.fork.data.image_depth import read_image, with_depth_of
from ultralytics.fork.data.image_kinds import look_at_images
from ultralytics.fork.data.image_lists import read_image_list
from ultralytics.fork.data.images import check_image_pixels, load_readable_image, open_image
from ultralytics.fork.data.label_cache import load_label_cache, save_label_cache
from ultralytics.fork.data.label_errors import name_wrong_row
from ultralytics.fork.data.mixed_labels import verify_mixed
from ultralytics.fork.data.official_augmentation import keep_image_size
from ultralytics.fork.hooks import downloads
from ultralytics.fork.hooks.override import install_module, override, upstream_release, version

__all__ = "check_data_yaml", "install_data", "require_download_consent"

UTILS = "ultralytics.data.utils"
BASE = "ultralytics.data.base"
BASE_DATASET = "ultralytics.data.base.BaseDataset"
YOLO_DATASET = "ultralytics.data.dataset.YOLODataset"


def install_data() -> None:
    """Put the overrides in place, from the end of upstream's data/__init__.py."""
    from PIL import Image

    from ultralytics.utils import patches

    for target in (UTILS, BASE, BASE_DATASET, YOLO_DATASET):
        install_module(target)
    downloads.install()
    if version(upstream_release()) >= version("8.4.15"):  # which puts its own function in place of Pillow's
        Image.open = functools.wraps(Image.open)(functools.partial(open_image, Image.open, patches._image_open))


@override(UTILS)
def load_dataset_cache_file(original: Any, path: Any) -> dict:
    """Read a label cache without unpickling it; `original` unpickles, and is not called."""
    return load_label_cache(path)


@override(UTILS)
def save_dataset_cache_file(original: Any, *args: Any, **kwargs: Any) -> None:
    """Write a label cache as numbers and text, not as a pickle."""
    save_label_cache(original, *args, **kwargs)


@override(UTILS)
def check_det_dataset(original: Any, dataset: Any, *args: Any, **kwargs: Any) -> dict:
    """Say in one line what is wrong with a data set."""
    with explain_dataset_errors(dataset):
        return original(dataset, *args, **kwargs)


@override(UTILS)
def check_cls_dataset(original: Any, dataset: Any, *args: Any, **kwargs: Any) -> dict:
    """Say in one line what is wrong with a data set."""
    with explain_dataset_errors(dataset):
        return original(dataset, *args, **kwargs)


@override(UTILS, since="8.4.52")
def check_image(original: Any, im_file: str) -> tuple:
    """Leave out an image whose pixels cannot be decoded; upstream reads its header only."""
    result = original(im_file)
    check_image_pixels(im_file)
    return result


@override(UTILS)
def verify_image_label(original: Any, args: tuple) -> Any:
    """Read boxes beside polygons; name the file and the row of a wrong label."""
    return name_wrong_row(args, verify_mixed(original, args))


@override(UTILS, since="8.4.43")
def convert_ndjson_to_yolo_if_needed(original: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
    """Ask for consent before images that a file names are fetched."""
    return convert_ndjson(original, data, *args, **kwargs)


@override(BASE_DATASET)
def get_img_files(original: Any, self: Any, img_path: Any, *args: Any) -> list[str]:
    """Read annotations, and lists that were written on Windows; say in one line what is wrong with a data set."""
    with explain_dataset_errors(self):
        paths = img_path if isinstance(img_path, list) else [img_path]
        if any(map(annotations.is_annotations, paths)):
            return annotations.list_images(original, self, paths, *args)
        return read_image_list(original, self, img_path, *args)


@override(BASE_DATASET)
def cache_images_to_disk(original: Any, self: Any, *args: Any) -> Any:
    """Keep images of the depth that the data YAML states."""
    return with_depth_of(self, original, *args)


@override(BASE, since="8.3.120")
def imread(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Read 16-bit images by the range that the data YAML states."""
    return read_image(original, *args, **kwargs)


@override(BASE_DATASET)
def check_cache_ram(original: Any, self: Any, *args: Any, **kwargs: Any) -> bool:
    """Count whole images where they are kept as they are."""
    view = keep_image_size(self) if hasattr(self, "plan") else self
    fits = original(view, *args, **kwargs)
    self.cache = view.cache  # upstream notes there that it does not fit
    return fits


@override(BASE_DATASET)
def load_image(original: Any, self: Any, i: int, *args: Any, **kwargs: Any) -> tuple:
    """Use no cached .npy file that is not an image; name an image that cannot be decoded.

    The official augmentation stretches images itself, and takes them as they are.
    """
    if hasattr(self, "plan"):
        self, args, kwargs = keep_image_size(self), (), {"rect_mode": True}
    return with_depth_of(self, functools.partial(load_readable_image, original), i, *args, **kwargs)


@override(YOLO_DATASET)
def get_labels(original: Any, self: Any, *args: Any, **kwargs: Any) -> list[dict]:
    """Say in one line what is wrong with a data set, and what would be lost of its images."""
    with explain_dataset_errors(self):
        is_annotated, listed = hasattr(self, "annotations"), len(self.im_files)
        labels = annotations.read_labels(self) if is_annotated else original(self, *args, **kwargs)
        look_at_images(self, labels, listed)
        return labels
