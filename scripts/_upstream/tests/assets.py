"""Make the files that upstream's tests would download: checkpoints with random weights, drawn data sets and films.

This runs in the environment of the tests, on the untouched release, once for both sides:

    python -m _upstream.tests.assets FOLDER

Nothing in FOLDER was trained, and all pictures are drawn, except upstream's own two photographs. The tests ask for
these names, and each file has the format that its name says.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

from ultralytics import __version__
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.models.sam.build import build_mobile_sam
from ultralytics.nn import tasks
from ultralytics.nn.modules.block import BNContrastiveHead
from ultralytics.nn.modules.head import Detect, RTDETRDecoder, YOLOEDetect
from ultralytics.utils import ASSETS, ROOT, YAML

SPLITS = ("train", "val")
SIZE = (160, 120)  # of a drawn picture: width, height
FRAMES = 6  # of a film
COCO, POSE, DOTA, IMAGENET, CITYSCAPES, DEPTH = "coco8", "coco8-pose", "dota8", "ImageNet", "cityscapes8", "depth8"
# Of each checkpoint: the model file, upstream's class, the data set whose classes it has, its task, its input channels
CHECKPOINTS = {
    **{f"yolo26{size}": (f"yolo26{size}", tasks.DetectionModel, COCO, "detect", 3) for size in "ns"},
    **{f"yolo26{size}-seg": (f"yolo26{size}-seg", tasks.SegmentationModel, COCO, "segment", 3) for size in "ns"},
    **{f"yolo26{size}-pose": (f"yolo26{size}-pose", tasks.PoseModel, POSE, "pose", 3) for size in "ns"},
    **{f"yolo26{size}-obb": (f"yolo26{size}-obb", tasks.OBBModel, DOTA, "obb", 3) for size in "ns"},
    "yolo26n-cls": ("yolo26n-cls", tasks.ClassificationModel, IMAGENET, "classify", 3),
    "yolo26n-sem": ("yolo26n-sem", tasks.SemanticSegmentationModel, CITYSCAPES, "semantic", 3),
    "yolo26n-depth": ("yolo26n-depth", tasks.DepthModel, DEPTH, "depth", 3),
    "yolo11n": ("yolo11n", tasks.DetectionModel, COCO, "detect", 3),
    "yolo11n-grayscale": ("yolo11n", tasks.DetectionModel, COCO, "detect", 1),
    "solution_assets/solutions_ci_parking_model": ("yolo11n", tasks.DetectionModel, COCO, "detect", 3),
    "rtdetr-l": ("rtdetr-l", tasks.RTDETRDetectionModel, COCO, "detect", 3),
    "FastSAM-s": ("yolov8s-seg", tasks.SegmentationModel, None, "segment", 3),
    "yoloe-26n-seg": ("yoloe-26n-seg", tasks.YOLOESegModel, COCO, "segment", 3),
    "yoloe-26n-seg-pf": ("yoloe-26n-seg", tasks.YOLOESegModel, COCO, "segment", 3),
}


# Checkpoints ----------------------------------------------------------------------------------------------------------
def class_names(data: str | None) -> dict[int, str]:
    """Read the class names of one of upstream's data sets, or for None the one class of FastSAM."""
    return YAML.load(ROOT / "cfg" / "datasets" / f"{data}.yaml")["names"] if data else {0: "object"}


def load_photographs(channels: int, size: int = 320) -> torch.Tensor:
    """Return upstream's two photographs and their mirror images as a batch (4, channels, size, size) from 0 to 1."""
    pictures = [cv2.resize(cv2.imread(str(ASSETS / name)), (size, size)) for name in ("bus.jpg", "zidane.jpg")]
    batch = torch.from_numpy(np.stack(pictures)[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    batch = batch if channels == 3 else batch.mean(1, keepdim=True)
    return torch.cat([batch, batch.flip(3)])


def make_model(name: str) -> nn.Module:
    """Build a model with random weights whose output depends on its input."""
    config, model_class, data, task, channels = CHECKPOINTS[name]
    names = class_names(data)
    model = model_class(f"{config}.yaml", ch=channels, nc=len(names), verbose=False)
    model.names, model.task = names, task
    model.args = {**DEFAULT_CFG_DICT, "model": f"{config}.yaml", "data": f"{data}.yaml", "task": task}
    if isinstance(model, tasks.YOLOEModel):
        model.set_classes(list(names.values()), nn.functional.normalize(torch.randn(1, len(names), 512), dim=-1))
    batch = load_photographs(channels)
    calibrate_batch_norms(model, batch)
    raise_scores(model, batch)
    if name.endswith("-pf"):
        set_vocabulary(model)
    return model


@torch.no_grad()
def calibrate_batch_norms(model: nn.Module, batch: torch.Tensor) -> None:
    """Set the statistics of the batch norms from a batch.

    With the statistics of a fresh model, each layer shrinks its input, and in eval mode all pictures give the same
    output.
    """
    model.eval()
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.eval().momentum = momentum


@torch.no_grad()
def raise_scores(model: nn.Module, batch: torch.Tensor) -> None:
    """Change a detector so that it finds some objects of its first class in each picture of a batch.

    A fresh head scores near zero everywhere, and nothing after the detection would run. Only the layer of the largest
    stride is changed: about a dozen objects are enough.
    """
    outputs = {}
    hooks = [
        layer.register_forward_hook(lambda *call: outputs.update({call[0]: call[2]}))
        for layer in find_score_layers(model)
    ]
    model(batch)
    for hook in hooks:
        hook.remove()
    for layer, output in outputs.items():
        scores = output[..., 0] if isinstance(layer, nn.Linear) else output[:, 0]
        scale = 2 / scores.std()
        # A logit of -1.1 is a score of 0.25, the default threshold: the best places of each picture get there
        shift = -1.1 - scale * scores.flatten(1).topk(8).values[:, -1].min()
        if isinstance(layer, BNContrastiveHead):
            layer.bias.data = layer.bias * scale + shift
            layer.logit_scale.data = layer.logit_scale + scale.log()
        else:
            layer.weight[0] *= scale
            layer.bias[0] = layer.bias[0] * scale + shift


def find_score_layers(model: nn.Module) -> list[nn.Module]:
    """List the layers that compute the class scores: at the largest stride, or of the last decoder layer."""
    head = model.model[-1]
    if isinstance(head, RTDETRDecoder):
        return [head.dec_score_head[-1]]
    if isinstance(head, YOLOEDetect):
        return [head.cv4[-1], head.one2one_cv4[-1]]
    if isinstance(head, Detect):
        return [branch[-1][-1] for branch in (head.cv3, getattr(head, "one2one_cv3", None)) if branch]
    return []


def set_vocabulary(model: nn.Module) -> None:
    """Turn a prompted model into one with a vocabulary, as upstream does."""
    prompted = deepcopy(model)
    prompted.model[-1].fuse(prompted.pe)
    head = prompted.model[-1]
    vocabulary = nn.ModuleList(layers[-1] for layers in (head.one2one_cv3 if head.end2end else head.cv3))
    model.set_vocab(vocabulary, list(model.names.values()))


def save_checkpoint(model: nn.Module, file: Path) -> None:
    """Write a checkpoint in the form of a finished one of upstream's: half precision, no optimizer, its arguments."""
    checkpoint = {
        "date": "2026-01-01T00:00:00+00:00",
        "version": __version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "epoch": -1,
        "model": model.requires_grad_(False).half(),
        "train_args": model.args,
        "train_metrics": {},
        "train_results": {},
        **dict.fromkeys(("best_fitness", "ema", "updates", "optimizer", "scaler")),
    }
    torch.save(checkpoint, file)


def make_mobile_sam(file: Path) -> None:
    """Write a segment-anything model whose predicted mask quality is high."""
    model = build_mobile_sam()
    nn.init.ones_(model.mask_decoder.iou_prediction_head.layers[-1].bias)
    torch.save(model.state_dict(), file)


def make_text_encoder(file: Path) -> None:
    """Write a TorchScript text encoder that returns a unit vector for each row of tokens, as MobileCLIP's does."""

    class TextEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(49408, 64)
            self.project = nn.Linear(64, 512)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.project(self.embedding(tokens).mean(1)), dim=-1)

    torch.jit.script(TextEncoder().eval()).save(str(file))


def make_backbones(folder: Path) -> None:
    """Write torchvision's weights that upstream's model files name, where torch looks before it downloads them."""
    folder.mkdir(parents=True)
    rows = [row for file in (ROOT / "cfg" / "models").rglob("*.yaml") for row in YAML.load(file)["backbone"]]
    for name in sorted({row[3][1] for row in rows if row[2] == "TorchVision"}):
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        torch.save(torchvision.models.get_model(name).half().state_dict(), folder / url.rpartition("/")[2])


def make_weights(folder: Path) -> None:
    """Write every checkpoint."""
    (folder / "solution_assets").mkdir(parents=True)
    torch.manual_seed(0)
    for name in CHECKPOINTS:
        save_checkpoint(make_model(name), folder / f"{name}.pt")
    make_mobile_sam(folder / "mobile_sam.pt")
    make_text_encoder(folder / "mobileclip2_b.ts")
    spaces = folder / "path with spaces"  # where the suite tests that such a path is handled
    spaces.mkdir()
    for file in folder.glob("yolo26n*.pt"):
        shutil.copyfile(file, spaces / file.name)


# Data sets ------------------------------------------------------------------------------------------------------------
def draw_shapes(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw a picture (height, width, 3) of three convex shapes; return it and their corners in pixels."""
    _width, _height = size
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


def bounding_box(points: np.ndarray) -> list[float]:
    """Return the centre, width and height of a normalised outline's box."""
    low, high = points.min(0), points.max(0)
    return [*(low + high) / 2, *(high - low)]


def detect_label(points: np.ndarray) -> list[float]:
    """Return the label of a box."""
    return bounding_box(points)


def segment_label(points: np.ndarray) -> list[float]:
    """Return the label of an outline."""
    return points.ravel().tolist()


def pose_label(points: np.ndarray) -> list[float]:
    """Put 17 visible key points on the outline."""
    around = points[np.arange(17) % len(points)]
    return [*bounding_box(points), *np.concatenate([around, np.full((17, 1), 2.0)], 1).ravel()]


def obb_label(points: np.ndarray) -> list[float]:
    """Return the label of an oriented box."""
    return cv2.boxPoints(cv2.minAreaRect(points.astype(np.float32))).clip(0, 1).ravel().tolist()


def make_labelled(folder: Path, label: Callable, classes: int, suffix: str = ".jpg", count: int = 4) -> None:
    """Write pictures and a label file of each."""
    for split in SPLITS:
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng([SPLITS.index(split), index])
            picture, outlines = draw_shapes(rng)
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
    """Write a folder of pictures for each class."""
    for split in SPLITS:
        for index in range(classes):
            (folder / split / f"class{index}").mkdir(parents=True)
            picture, _ = draw_shapes(np.random.default_rng([SPLITS.index(split), index]))
            write_picture(folder / split / f"class{index}" / f"{index}.jpg", picture)


def make_dense(folder: Path, target: str, paint: Callable, size: tuple[int, int] = SIZE) -> None:
    """Write pictures and a map of each, which `paint` makes from the shapes' place: 0 for ground, then 1, 2, 3."""
    for split in SPLITS:
        for kind in ("images", target):
            (folder / kind / split).mkdir(parents=True)
        for index in range(4):
            picture, outlines = draw_shapes(np.random.default_rng([SPLITS.index(split), index]), size)
            shapes = np.zeros(picture.shape[:2], np.uint8)
            for number, points in enumerate(outlines, 1):
                cv2.fillPoly(shapes, [points.astype(np.int32)], number)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), picture)
            cv2.imwrite(str(folder / target / split / f"{index}.png"), paint(shapes))


def make_datasets(folder: Path) -> None:
    """Write each data set under the folder name in upstream's YAML."""
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
    cv2.imwrite(str(folder / "boats.jpg"), draw_shapes(np.random.default_rng(0), (640, 480))[0])


def main() -> None:
    """Write all files into the folder."""
    folder = Path(sys.argv[1])
    make_weights(folder / "weights")
    make_backbones(folder / "torch" / "hub" / "checkpoints")
    make_datasets(folder / "datasets")
    make_solution_assets(folder / "weights" / "solution_assets")


if __name__ == "__main__":
    main()
