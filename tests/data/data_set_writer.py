"""Writes a good data set, puts faults into it, and keeps each fault as a case with the expected outcome."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import yaml

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
