"""Draw the shapes dataset: circles, squares and triangles on textured ground, with YOLO detection labels.

`shapes.yaml` beside this file runs `generate` the first time the dataset is asked for. Every image depends only on
(seed, split, index), so a run that was stopped at any moment is completed by running it again.

Coordinates are pixels: pixel `i` covers the interval from `i` to `i + 1`. Images are BGR, as OpenCV has them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock  # comes with torch

from ultralytics.utils import TQDM

__all__ = ("NAMES", "draw", "generate")

NAMES = ("circle", "square", "triangle")
SPLITS = ("train", "val")  # a split's position is part of its images' seeds

MAX_OBJECTS = 6
MIN_DIAMETER = 12.0  # pixels across the enclosing circle; a square of that diameter has sides of 8.5
MAX_DIAMETER = 0.5  # of the image side
MIN_VISIBLE = 0.5  # an object of which less than this share can be seen is left out
MIN_CONTRAST = 100.0  # Euclidean distance between two BGR colours
JPEG_QUALITY = 90  # 7 MB for the set of 640; as PNG, which has to keep the noise, it would be 70 MB


def _smooth_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return random blobs as a (size, size) map, about 0 to 1."""
    cells = int(rng.integers(3, 13))
    return cv2.resize(rng.random((cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a ramp in a random direction as a (size, size) map from 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    along = np.linspace(-0.5, 0.5, size)
    ramp = along[None, :] * np.cos(angle) + along[:, None] * np.sin(angle)
    return (ramp - ramp.min()) / np.ptp(ramp)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return soft stripes in a random direction as a (size, size) map from 0 to 1."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(3, 14) * _gradient(rng, size))


TEXTURES = (_smooth_noise, _gradient, _stripes)


def draw_ground(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an empty textured image.

    Args:
        rng: Source of every random choice.
        size: Image side in pixels.

    Returns:
        The image (size, size, 3) as float32, and colours (3, 3) that occur in it: both ends and their middle.
    """
    first = rng.uniform(30, 225, 3)
    last = np.clip(first + rng.normal(0, 25, 3), 0, 255)
    mix = TEXTURES[rng.integers(len(TEXTURES))](rng, size)[..., None]
    return (first + mix * (last - first)).astype(np.float32), np.stack([first, (first + last) / 2, last])


def make_outline(rng: np.random.Generator, kind: int, size: int) -> np.ndarray:
    """Choose place, size and rotation of one shape.

    Args:
        rng: Source of every random choice.
        kind: Class index, a position in NAMES.
        size: Image side in pixels.

    Returns:
        The corners (n, 2) as x, y of a convex polygon; up to a fifth of its diameter lies outside the image.
    """
    diameter = rng.uniform(MIN_DIAMETER, MAX_DIAMETER * size)
    centre = rng.uniform(0.3 * diameter, size - 0.3 * diameter, 2)
    corners = (max(16, round(diameter)), 4, 3)[kind]  # enough corners that a circle looks round
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    if NAMES[kind] == "triangle":
        angles += rng.uniform(-0.3, 0.3, 3)  # not all equilateral, but none so thin that it looks like a line
    return centre + diameter / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def fill(outline: np.ndarray, size: int) -> np.ndarray:
    """Return how much of each pixel a convex polygon covers, a (size, size) map from 0 to 1 with smooth edges."""
    bits = 4  # OpenCV takes fixed-point corners, with whole numbers at the pixels' centres
    alpha = np.zeros((size, size), np.uint8)
    points = np.round((outline - 0.5) * 2**bits).astype(np.int32)
    cv2.fillConvexPoly(alpha, points, 255, lineType=cv2.LINE_AA, shift=bits)
    return alpha.astype(np.float32) / 255


def find_boxes(alphas: list[np.ndarray], min_visible: float = MIN_VISIBLE) -> list[tuple[int, int, int, int] | None]:
    """Find the tight box of what can be seen of each shape.

    Args:
        alphas: Coverage maps (size, size), the hindmost shape first.
        min_visible: Share of a shape that must be seen for it to be drawn.

    Returns:
        One box for each map as left, top, right, bottom, or None for a shape that is hidden too far to be drawn.
    """
    boxes = []
    hidden = np.zeros_like(alphas[0], dtype=bool)
    for alpha in reversed(alphas):  # from the front, so that shapes left out hide nothing
        shape = alpha >= 0.5
        seen = shape & ~hidden
        if seen.sum() < min_visible * shape.sum() or not seen.any():
            boxes.append(None)
            continue
        hidden |= shape
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return boxes[::-1]


def choose_colour(rng: np.random.Generator, used: np.ndarray, min_contrast: float = MIN_CONTRAST) -> np.ndarray:
    """Choose a random colour (3,) that is as far as `min_contrast` from the used ones (n, 3)."""
    candidates = rng.uniform(0, 255, (64, 3))
    gaps = np.linalg.norm(candidates[:, None] - used[None], axis=2).min(axis=1)  # (64,)
    return candidates[np.argmax(np.minimum(gaps, min_contrast))]  # the first far enough, or else the farthest


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """Draw one image.

    Args:
        rng: Source of every random choice.
        size: Image side in pixels.

    Returns:
        The image (size, size, 3) as uint8, and for each shape in it: class index, left, top, right, bottom.
    """
    image, used = draw_ground(rng, size)
    kinds = [int(kind) for kind in rng.integers(len(NAMES), size=rng.integers(1, MAX_OBJECTS + 1))]
    alphas = [fill(make_outline(rng, kind, size), size) for kind in kinds]
    labels = []
    for kind, alpha, box in zip(kinds, alphas, find_boxes(alphas)):
        if box is not None:
            colour = choose_colour(rng, used)
            used = np.vstack([used, colour])
            image += alpha[..., None] * (colour.astype(np.float32) - image)
            labels.append((kind, *box))
    image += rng.uniform(1, 6) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).round().astype(np.uint8), labels


def _format_labels(labels: list[tuple[int, int, int, int, int]], size: int) -> str:
    """Write labels in pixels as YOLO lines: class, centre x, centre y, width, height, in shares of the image side."""
    lines = []
    for kind, left, top, right, bottom in labels:
        box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        lines.append(" ".join([str(kind), *(f"{value / size:.6f}" for value in box)]) + "\n")
    return "".join(lines)


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it appears complete or not at all, however the process ends."""
    part = path.with_name(path.name + ".part")  # always the same name, so that the next run replaces what is left
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # a full disk gets its space back
        raise


def _write_sample(image_path: Path, label_path: Path, rng: np.random.Generator, size: int, draw: Callable) -> None:
    """Draw one image and write it with its label file; nothing is done where both exist."""
    if image_path.exists() and label_path.exists():
        return
    image, labels = draw(rng, size)
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    _write(label_path, _format_labels(labels, size).encode())  # first: no image is ever without its label
    _write(image_path, jpeg.tobytes())


def _check_recipe(root: Path, recipe: dict[str, int]) -> None:
    """Record how the set is made; raise ValueError if root holds one made otherwise, as the two would be mixed."""
    path = root / "recipe.json"
    if not path.exists():
        _write(path, json.dumps(recipe).encode())
    elif (found := json.loads(path.read_text())) != recipe:
        raise ValueError(f"{root} holds shapes made with {found}, not {recipe}: choose another root or remove it")


def generate(
    root: str | Path,
    train: int = 512,
    val: int = 128,
    size: int = 256,
    seed: int = 0,
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, list]] = draw,
    **facts: str,
) -> None:
    """Write the dataset below root, or what is missing of it.

    The folder images/val appears last and complete: upstream takes its existence for that of the whole set.

    Args:
        root: Dataset folder, made if missing.
        train: Number of training images.
        val: Number of validation images.
        size: Image side in pixels.
        seed: Another seed gives other images.
        draw: Draws an image from a generator and its side, as `draw` does, which draws shapes.
        facts: What tells a set that is drawn otherwise.

    Raises:
        ValueError: If a number is out of range, or root holds a set made with other numbers.
    """
    recipe = {"train": train, "val": val, "size": size, "seed": seed, **facts}
    for (name, value), least in zip(recipe.items(), (1, 1, 64, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")

    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "shapes.lock"):  # two trainings may start at once; the second waits and finds all done
        _check_recipe(root, recipe)
        for number, split in enumerate(SPLITS):
            final, labels = root / "images" / split, root / "labels" / split
            images = final if final.exists() else final.with_name(f"{split}.part")
            for folder in (images, labels):
                folder.mkdir(parents=True, exist_ok=True)
            for index in TQDM(range(recipe[split]), desc=f"Drawing {split} {facts.get('set', 'shapes')}"):
                rng = np.random.default_rng([seed, number, index])
                _write_sample(images / f"{index:04d}.jpg", labels / f"{index:04d}.txt", rng, size, draw)
            if images != final:
                os.replace(images, final)
