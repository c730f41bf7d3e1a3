"""Models and images that are explained, and the command that explains them."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import TINY, lively
from torch import nn

import explain
from _explain import network
from _explain.image_view import load_view
from ultralytics import YOLO


def blobs(height: int, width: int) -> np.ndarray:
    """Draw an image of a few soft spots of different colours: (height, width, 3) bytes."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 40.0)
    for _ in range(5):
        centre, colour = random.random(2) * (height, width), random.random(3) * 215
        far = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        image = np.maximum(image, np.exp(-far / (2 * (min(height, width) / 8) ** 2))[..., None] * colour)
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """An image file that is not square."""
    file = tmp_path_factory.mktemp("images") / "spots.png"
    cv2.imwrite(str(file), blobs(60, 90))
    return file


@pytest.fixture(scope="module")
def models() -> dict[str, YOLO]:
    """Tiny models whose layers are not those of a fresh one."""
    return {name: lively(name) for name in TINY}


def look_at(image: np.ndarray):
    """Give an image's view in an input of its own size."""
    return load_view(image, network.OpenedModel(nn.Linear(1, 1), "none", image.shape[:2], True))


def run(monkeypatch, *argv: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["explain.py", *map(str, argv)])
    return explain.main()
