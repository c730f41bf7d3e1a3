"""Annotations as other tools write them, read where they lie: COCO JSON and Pascal VOC XML, without copies.

A data YAML names them in place of images, as `train: annotations/instances_train.json` or `train: VOC/Annotations`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from ultralytics.fork.data.annotated_images import AnnotatedImage, Annotations
from ultralytics.fork.data.coco_json import read_coco_json
from ultralytics.fork.data.voc_xml import is_voc_folder, read_voc_folder
from ultralytics.fork.errors import Refused

SAME_PROPORTIONS = 0.01  # by which the proportions of an image may differ from those that are stated


def is_annotations(path: Any) -> bool:
    """Whether a path of a data YAML names annotations, not images.

    A folder of images with XML files beside them is one of images, if these have upstream's label files.
    """
    from ultralytics.data.utils import IMG_FORMATS, img2label_paths

    path = Path(path)
    if not is_voc_folder(path):
        return path.suffix.lower() == ".json" and not path.is_dir()
    images: list[Any] = [str(file) for file in path.iterdir() if file.suffix.lower().lstrip(".") in IMG_FORMATS]
    return not any(Path(label).is_file() for label in img2label_paths(images))


def read_annotations(path: Path, root: Path) -> Annotations:
    """Read a file or a folder of annotations.

    Args:
        path: The file or folder.
        root: Of the data set, below which images are looked for, too.

    Raises:
        Refused: With the file, the entry and what is expected.
    """
    return read_coco_json(path, root) if path.suffix.lower() == ".json" else read_voc_folder(path, root)


def fill_class_names(data: dict) -> None:
    """Take the class names of a data YAML that has none from the annotations of its training images.

    Raises:
        Refused: If they are not there.
    """
    from ultralytics.utils import DATASETS_DIR

    if data.get("names") is not None or "nc" in data or not data.get("train"):
        return
    root = Path(data.get("path") or Path(data.get("yaml_file", "")).parent)
    if not root.exists() and not root.is_absolute():
        root = DATASETS_DIR / root  # where upstream looks
    paths = [root / path for path in (data["train"] if isinstance(data["train"], list) else [data["train"]])]
    lacking = next((path for path in paths if path.suffix.lower() == ".json" and not path.exists()), None)
    if lacking is not None:
        raise Refused(f"{data.get('yaml_file')}, `train:` names {lacking}, and there is no such file")
    if all(path.exists() and is_annotations(path) for path in paths):
        names = dict.fromkeys(name for path in paths for name in read_annotations(path, root).categories)
        data["names"] = dict(enumerate(names))


def list_images(get_img_files: Callable, dataset: Any, img_path: Any, *args: Any) -> list[str]:
    """List the images of annotations, and note the annotations on the data set.

    Args:
        get_img_files: Upstream's method, which reads a list of images.
        dataset: Upstream's data set.
        img_path: The annotations, or several of them.

    Raises:
        Refused: If there are images beside them, or for a task that needs more than boxes.
    """
    paths = img_path if isinstance(img_path, list) else [img_path]
    others = [path for path in paths if not is_annotations(path)]
    if others:
        raise Refused(f"{others[0]} stands beside annotations, {paths[0]}: name images and labels, or annotations only")
    if any(getattr(dataset, key, False) for key in ("use_segments", "use_keypoints", "use_obb")):
        raise Refused(
            f"{paths[0]}: only boxes are read of annotations; upstream's convert_coco() writes labels of others"
        )
    from ultralytics.data.utils import IMG_FORMATS
    from ultralytics.utils import LOCAL_RANK, LOGGER

    dataset.annotations = [read_annotations(Path(path), Path(dataset.data["path"])) for path in paths]
    files = [image.file for found in dataset.annotations for image in found.images]
    others = [file for file in files if Path(file).suffix.lower().lstrip(".") not in IMG_FORMATS]
    if len(others) == len(files):
        raise Refused(f"{paths[0]}: none of its images has an ending of an image, such as {files[0]}")
    if others and LOCAL_RANK in {-1, 0}:
        LOGGER.warning(
            f"{dataset.prefix}{paths[0]}: {len(others)} of {len(files)} images are left out for their ending, such as "
            f"{others[0]}"
        )
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise Refused(f"{paths[0]}: {twice[0]} is named {files.count(twice[0])} times; each image has one entry")
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "images.txt")
        listed.write_text("\n".join(files), encoding="utf-8")
        return get_img_files(dataset, str(listed), *args)


def read_labels(dataset: Any) -> list[dict[str, Any]]:
    """Make upstream's labels of the annotations of a data set's images; leave out images that cannot be read.

    Raises:
        Refused: If an object is of a category that the data YAML lacks, or no image can be read.
    """
    from ultralytics.utils import LOCAL_RANK, LOGGER

    sources, numbers = dataset.annotations, number_classes(dataset)
    by_file = {image.file: image for found in sources for image in found.images}
    shapes, messages = check_images(dataset)
    labels, notes = [], Counter()
    for file in dataset.im_files:
        if file in shapes:
            problem = find_shape_problem(by_file[file], shapes[file])
            if problem:
                messages = [*messages, f"{dataset.prefix}{file}: it is left out: {problem}"]
            else:
                labels.append(make_label(by_file[file], shapes[file], numbers, notes))
    if not labels:
        raise Refused(f"{sources[0].source}: none of its images can be read: {messages[0] if messages else ''}")
    if LOCAL_RANK in {-1, 0}:
        notes["images that cannot be used, and are left out"] = len(dataset.im_files) - len(labels)
        boxes = sum(len(label["cls"]) for label in labels)
        told = "".join(f"; {count} {what}" for what, count in notes.items() if count)
        named = ", ".join(str(found.source) for found in sources)
        LOGGER.info(f"{dataset.prefix}{named}: {len(labels)} images with {boxes} objects{told}")
        for message in messages[:10]:
            LOGGER.warning(message)
    dataset.im_files = [label["im_file"] for label in labels]
    return labels


def number_classes(dataset: Any) -> dict[str, int]:
    """Number the classes of a data set by name; with `single_cls` all are one, which upstream has named by then.

    Raises:
        Refused: If an object is of a category that the data YAML lacks.
    """
    if getattr(dataset, "single_cls", False):
        return {name: 0 for found in dataset.annotations for name in found.categories}
    numbers = {name: number for number, name in dataset.data["names"].items()}
    for found in dataset.annotations:
        used = {name for image in found.images for name in image.names}
        lacking = next((name for name in found.categories if name in used and name not in numbers), None)
        if lacking is not None:
            known = ", ".join(map(str, numbers))
            raise Refused(f"{found.source} has objects of {lacking!r}, and `names:` of the data YAML lacks it: {known}")
    return numbers


def find_shape_problem(image: AnnotatedImage, shape: Sequence[int]) -> str | None:
    """Say why the boxes of an image cannot be placed in it, if it has other proportions than the annotations state.

    Args:
        image: What the annotations say of it.
        shape: Its height and width in pixels.
    """
    if image.size is None:
        return None
    width, height = image.size
    factors = shape[1] / width, shape[0] / height
    if abs(factors[0] / factors[1] - 1) <= SAME_PROPORTIONS or max(abs(shape[1] - width), abs(shape[0] - height)) <= 1:
        return None
    turned = "; it is turned by its EXIF data" if (width, height) == (shape[0], shape[1]) else ""
    return f"it has {shape[1]}x{shape[0]} pixels, and its annotations are for {width:g}x{height:g}{turned}"


def make_label(image: AnnotatedImage, shape: Sequence[int], numbers: dict[str, int], notes: Counter) -> dict[str, Any]:
    """Make upstream's label of an image.

    Args:
        image: What the annotations say of it.
        shape: Its height and width in pixels.
        numbers: Of the classes by name.
        notes: Counts what is left out.
    """
    width, height = image.size or (shape[1], shape[0])
    notes["images of another size than they state, to which boxes are scaled"] += (width, height) != (
        shape[1],
        shape[0],
    )
    kept = ~image.is_ignored
    notes["regions of many or difficult objects, which are not learned"] += int(image.is_ignored.sum())
    corners = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], 1)
    inside = corners.clip(0, [width, height, width, height])
    has_area = (inside[:, 2:] > inside[:, :2]).all(1)
    notes["boxes beyond the image, which are cut to it"] += int(
        (kept & has_area & (abs(inside - corners) > 1).any(1)).sum()  # less is a matter of rounding
    )
    notes["boxes without an area in the image, which are left out"] += int((kept & ~has_area).sum())
    kept &= has_area
    inside = inside[kept] / [width, height, width, height]
    boxes = np.concatenate([(inside[:, :2] + inside[:, 2:]) / 2, inside[:, 2:] - inside[:, :2]], 1)
    classes = np.array([numbers[name] for name, keep in zip(image.names, kept) if keep], np.float32).reshape(-1, 1)
    rows = np.concatenate([classes, boxes.astype(np.float32)], 1)
    unique = np.unique(rows, axis=0)
    if len(unique) < len(rows):
        notes["objects that are named twice"] += len(rows) - len(unique)
        rows = unique
    return {
        "im_file": image.file,
        "shape": tuple(shape),
        "cls": rows[:, :1],
        "bboxes": rows[:, 1:],
        "segments": [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }


def check_images(dataset: Any) -> tuple[dict[str, list[int]], list[str]]:
    """Check the images of a data set as upstream does; what was found is kept beside the annotations.

    Returns:
        By file its height and width, for those that can be read, and what is wrong with the others.
    """
    from ultralytics.data import utils
    from ultralytics.data.dataset import DATASET_CACHE_VERSION
    from ultralytics.utils import LOCAL_RANK, NUM_THREADS, TQDM

    sources, files = dataset.annotations, dataset.im_files
    text = "\n".join([*(found.digest for found in sources), *files, str(utils.get_hash(files))])
    digest = hashlib.sha256(text.encode()).hexdigest()
    cache = sources[0].source.with_suffix(".cache")
    try:
        known = utils.load_dataset_cache_file(cache)
        if known["version"] == DATASET_CACHE_VERSION and known["hash"] == digest:
            return known["shapes"], known["msgs"]
    except Exception:  # missing, or another's
        pass
    others = list_last_arguments(utils.verify_image_label)
    arguments = ((file, "", dataset.prefix, False, 1, 0, 0, *others) for file in files)  # without a label file
    shapes, messages = {}, []
    with ThreadPool(NUM_THREADS) as pool:
        found = pool.imap(utils.verify_image_label, arguments)
        show = TQDM(found, f"{dataset.prefix}Reading images of {cache.stem}", len(files), disable=LOCAL_RANK > 0)
        for file, _, shape, *others in show:
            if file:
                shapes[file] = [int(side) for side in shape]
            if others[-1]:
                messages.append(others[-1])
    if shapes and LOCAL_RANK in {-1, 0}:
        found = {"hash": digest, "shapes": shapes, "msgs": messages}
        utils.save_dataset_cache_file(dataset.prefix, cache, found, DATASET_CACHE_VERSION)
    return shapes, messages


def list_last_arguments(verify: Callable) -> tuple:
    """List what `verify_image_label` takes behind its first seven arguments: `single_cls`, in later releases."""
    try:
        verify(("", "", "", False, 1, 0, 0, False))
    except ValueError:  # too many values to unpack
        return ()
    return (False,)
