"""Write a small set of drawn shapes, for measurements and checks that need a data set."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import yaml

GENERATOR = Path(__file__).resolve().parents[2] / "cfg_custom" / "datasets" / "shapes.py"


def write_shapes(folder: Path, train: int, val: int, size: int = 256) -> Path:
    """Write images, labels and a data set's YAML with absolute paths, which any release of Ultralytics reads.

    Args:
        folder: Where the images go; the YAML is written beside it.
        train: Number of images.
        val: Number of images.
        size: Side of the images, pixels.

    Returns:
        The data set's YAML.
    """
    spec: object = importlib.util.spec_from_file_location("shapes_generator", GENERATOR)
    generator = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType] - the file is there
    spec.loader.exec_module(generator)  # pyright: ignore[reportAttributeAccessIssue]
    generator.generate(folder, train=train, val=val, size=size)
    data = {"path": str(folder), "train": "images/train", "val": "images/val"}
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**data, "names": list(generator.NAMES)}), encoding="utf-8")
    return file
