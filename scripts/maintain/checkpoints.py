"""Make what upstream's tests load and would download: checkpoints with random weights, data sets and films, drawn.

Runs in the environment of the tests, on the untouched release, once for both sides:

    python -m maintain.checkpoints FOLDER

Nothing in FOLDER has been trained, and no picture in it but upstream's own two photographs was taken by anybody. The
names are those that the tests ask for, and each file is of the kind that its name says.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from ultralytics import __version__
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.models.sam.build import build_mobile_sam
from ultralytics.nn import tasks
from ultralytics.utils import ASSETS, ROOT, YAML

SPLITS = ("train", "val")
SIZE = (160, 120)  # of a drawn picture: width, height
FRAMES = 6  # of a film
COCO, DOTA, IMAGENET, CITYSCAPES = "coco8", "dota8", "ImageNet", "cityscapes8"
# Architecture and class names of each checkpoint, and the channels that it sees
CHECKPOINTS = {
    **{f"yolo26{size}": (f"yolo26{size}", tasks.DetectionModel, COCO, 3) for size in "ns"},
    **{f"yolo26{size}-seg": (f"yolo26{size}-seg", tasks.SegmentationModel, COCO, 3) for size in "ns"},
    **{f"yolo26{size}-pose": (f"yolo26{size}-pose", tasks.PoseModel, "coco8-pose", 3) for size in "ns"},
    **{f"yolo26{size}-obb": (f"yolo26{size}-obb", tasks.OBBModel, DOTA, 3) for size in "ns"},
    "yolo26n-cls": ("yolo26n-cls", tasks.ClassificationModel, IMAGENET, 3),
    "yolo26n-sem": ("yolo26n-sem", tasks.SemanticSegmentationModel, CITYSCAPES, 3),
    "yolo26n-depth": ("yolo26n-depth", tasks.DepthModel, "depth8", 3),
    "yolo11n": ("yolo11n", tasks.DetectionModel, COCO, 3),
    "yolo11n-grayscale": ("yolo11n", tasks.DetectionModel, COCO, 1),
    "solution_assets/solutions_ci_parking_model": ("yolo11n", tasks.DetectionModel, COCO, 3),
    "rtdetr-l": ("rtdetr-l", tasks.RTDETRDetectionModel, COCO, 3),
    "FastSAM-s": ("yolov8s-seg", tasks.SegmentationModel, None, 3),
    "yoloe-26n-seg": ("yoloe-26n-seg", tasks.YOLOESegModel, COCO, 3),
}


# Checkpoints ----------------------------------------------------------------------------------------------------------
def class_names(data: str | None) -> dict[int, str]:
    """Read the class names of one of upstream's data sets; of none, the one class that FastSAM knows."""
    return YAML.load(ROOT / "cfg" / "datasets" / f"{data}.yaml")["names"] if data else {0: "object"}


def make_checkpoint(file: Path, config: str, model_class: type[nn.Module], data: str | None, channels: int) -> None:
    """Write a checkpoint as upstream writes a finished one: half precision, no optimizer, what it was trained with."""
    names = class_names(data)
    model = model_class(f"{config}.yaml", ch=channels, nc=len(names), verbose=False)
    model.names = names
    see_something(model)
    train_args = {**DEFAULT_CFG_DICT, "model": f"{config}.yaml", "data": f"{data}.yaml", "task": guess_task(model)}
    model.args, model.task = train_args, train_args["task"]
    model.requires_grad_(False)
    checkpoint = {
        "date": "2026-01-01T00:00:00+00:00",
        "version": __version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "epoch": -1,
        "model": model.half(),
        "train_args": train_args,
        "train_metrics": {},
        "train_results": {},
        **dict.fromkeys(("best_fitness", "ema", "updates", "optimizer", "scaler")),
    }
    torch.save(checkpoint, file)


def guess_task(model: nn.Module) -> str:
    return tasks.guess_model_task(model)


def see_something(model: nn.Module) -> None:
    """Raise the first class's score above the usual thresholds.

    A fresh head gives every class a score near zero, so that nothing that comes after a detection would be run.
    """
    head = model.model[-1]
    for branch in ("cv3", "one2one_cv3"):
        for layers in getattr(head, branch, None) or ():
            if getattr(layers[-1], "bias", None) is not None:
                layers[-1].bias.data[0] = 1.0


def make_text_encoder(file: Path) -> None:
    """Write a TorchScript text encoder that gives each row of tokens a unit vector, as MobileCLIP's does."""

    class TextEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(49408, 512)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.embedding(tokens).mean(1), dim=-1)

    torch.jit.script(TextEncoder().eval()).save(str(file))


def make_weights(folder: Path) -> None:
    """Write every checkpoint."""
    (folder / "solution_assets").mkdir(parents=True)
    for name, (config, model_class, data, channels) in CHECKPOINTS.items():
        torch.manual_seed(0)
        make_checkpoint(folder / f"{name}.pt", config, model_class, data, channels)
    torch.manual_seed(0)
    torch.save(build_mobile_sam().state_dict(), folder / "mobile_sam.pt")
    make_text_encoder(folder / "mobileclip2_b.ts")
    spaces = folder / "path with spaces"  # where the suite tests that such a path is handled
    spaces.mkdir()
    for file in folder.glob("yolo26n*.pt"):
        shutil.copyfile(file, spaces / file.name)


# Data sets ------------------------------------------------------------------------------------------------------------
def draw(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw a picture (height, width, 3) of three convex shapes; returns it and their corners in pixels."""
    width, height = size
    ground = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)
    picture = cv2.resize(ground, size, interpolation=cv2.INTER_CUBIC)
    outlines = []
    for _ in range(3):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 6))
        centre = rng.uniform(0.3, 0.7, 2) * size
        points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.15, 0.25) * min(size)
        cv2.fillPoly(picture, [points.astype(np.int32)], rng.integers(0, 255, 3).tolist())
        outlines.append(points)
    return picture, outlines


def box_of(points: np.ndarray) -> list[float]:
    """Give the centre, width and height of a normalised outline's box."""
    low, high = points.min(0), points.max(0)
    return [*(low + high) / 2, *(high - low)]


def detect_label(points: np.ndarray) -> list[float]:
    return box_of(points)


def segment_label(points: np.ndarray) -> list[float]:
    return points.ravel().tolist()


def pose_label(points: np.ndarray) -> list[float]:
    """Put 17 visible key points on the outline."""
    around = points[np.arange(17) % len(points)]
    return [*box_of(points), *np.concatenate([around, np.full((17, 1), 2.0)], 1).ravel()]


def obb_label(points: np.ndarray) -> list[float]:
    return cv2.boxPoints(cv2.minAreaRect(points.astype(np.float32))).clip(0, 1).ravel().tolist()


def make_labelled(folder: Path, label: Callable, classes: int, suffix: str = ".jpg", count: int = 4) -> None:
    """Write pictures and a label file of each."""
    for split in SPLITS:
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng([SPLITS.index(split), index])
            picture, outlines = draw(rng)
            write_picture(images / f"{index:012d}{suffix}", picture)
            rows = [[int(rng.integers(classes)), *label(points / SIZE)] for points in outlines]
            text = "\n".join(" ".join(f"{value:.6g}" for value in row) for row in rows)
            (labels / f"{index:012d}.txt").write_text(text + "\n")


def write_picture(file: Path, picture: np.ndarray) -> None:
    """Write a picture; as TIFF, ten pages of one channel each."""
    if file.suffix == ".tiff":
        pages = [Image.fromarray(np.roll(picture[..., page % 3], page, 1)) for page in range(10)]
        pages[0].save(file, save_all=True, append_images=pages[1:])
    else:
        cv2.imwrite(str(file), picture)


def make_classes(folder: Path, classes: int = 10) -> None:
    for split in SPLITS:
        for index in range(classes):
            (folder / split / f"class{index}").mkdir(parents=True)
            picture, _ = draw(np.random.default_rng([SPLITS.index(split), index]))
            write_picture(folder / split / f"class{index}" / f"{index}.jpg", picture)


def make_dense(folder: Path, target: str, paint: Callable, size: tuple[int, int] = SIZE) -> None:
    """Write pictures and a map of each, which `paint` makes from the shapes' place: 0 for ground, then 1, 2, 3."""
    for split in SPLITS:
        for kind in ("images", target):
            (folder / kind / split).mkdir(parents=True)
        for index in range(4):
            picture, outlines = draw(np.random.default_rng([SPLITS.index(split), index]), size)
            shapes = np.zeros(picture.shape[:2], np.uint8)
            for number, points in enumerate(outlines, 1):
                cv2.fillPoly(shapes, [points.astype(np.int32)], number)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), picture)
            cv2.imwrite(str(folder / target / split / f"{index}.png"), paint(shapes))


def make_datasets(folder: Path) -> None:
    """Write each data set under the name that upstream's YAML of it has for its folder."""
    make_labelled(folder / "coco8", detect_label, 80)
    make_labelled(folder / "coco8-seg", segment_label, 80)
    make_labelled(folder / "coco8-pose", pose_label, 1)
    make_labelled(folder / "dota8", obb_label, 15)
    make_labelled(folder / "coco8-multispectral", detect_label, 80, ".tiff")
    make_labelled(folder / "coco128-seg", segment_label, 80)
    for kind in ("images", "labels"):  # that set has one split, of this name
        (folder / "coco128-seg" / kind / "train").rename(folder / "coco128-seg" / kind / "train2017")
    make_classes(folder / "imagenet10")
    raw = np.array([7, 11, 24, 26], np.uint8)  # what Cityscapes calls road, building, person and car
    make_dense(folder / "cityscapes8", "masks", lambda shapes: raw[shapes])
    make_dense(folder / "depth8-png", "depth", lambda shapes: 4000 - 1000 * shapes.astype(np.uint16))


# Films ----------------------------------------------------------------------------------------------------------------
def make_film(file: Path, size: tuple[int, int]) -> None:
    """Write a film that pans over upstream's photograph of a bus."""
    photograph = cv2.imread(str(ASSETS / "bus.jpg"))
    film = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 5, size)
    for frame in range(FRAMES):
        film.write(cv2.resize(photograph[10 * frame : 700 + 10 * frame], size))
    film.release()


def make_solution_assets(folder: Path) -> None:
    """Write the films and files of the solutions' tests."""
    for name in ("solutions_ci_demo.mp4", "decelera_landscape_min.mov", "solution_ci_pose_demo.mp4"):
        make_film(folder / name, (640, 360))
    make_film(folder / "solution_ci_parking_demo.mp4", (640, 360))
    for name in ("solution_vertical_demo.mp4", "decelera_portrait_min.mov"):
        make_film(folder / name, (360, 640))
    places = [{"points": [[x, 100], [x + 90, 100], [x + 90, 250], [x, 250]]} for x in range(0, 600, 100)]
    (folder / "solution_ci_parking_areas.json").write_text(json.dumps(places))
    cv2.imwrite(str(folder / "boats.jpg"), draw(np.random.default_rng(0), (640, 480))[0])


def main() -> None:
    """Fill the folder."""
    folder = Path(sys.argv[1])
    make_weights(folder / "weights")
    make_datasets(folder / "datasets")
    make_solution_assets(folder / "weights" / "solution_assets")


if __name__ == "__main__":
    main()
