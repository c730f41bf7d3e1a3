"""Draw the crowd dataset: many small, overlapping objects of ten classes, near-duplicates and textured distractors.

It is hard where a detector's scores are made: easy negatives are many, two objects of a class may lie almost on each
other, classes differ by a corner or a hole, and what is no object looks like one. `crowd.yaml` beside this file runs
`generate` the first time the dataset is asked for. Every image depends only on (seed, split, index).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

spec = importlib.util.spec_from_file_location("shapes", Path(__file__).with_name("shapes.py"))
assert spec is not None and spec.loader is not None  # a Python file
shapes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shapes)

__all__ = ("NAMES", "draw", "generate")

CORNERS = {"circle": 24, "triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
NAMES = tuple(f"{kind} {name}" for kind in ("solid", "hollow") for name in CORNERS)

OBJECTS = 15, 40  # of an image, the least and the most
DIAMETERS = 10.0, 40.0  # pixels; small ones are more frequent
HOLE = 0.55  # of a hollow object's diameter
DUPLICATE = 0.3  # of the objects: another of the same class and colour, almost on the one before
SHIFT = 0.35, 0.7  # of the diameter, from an object to its near-duplicate
MIN_VISIBLE = 0.35  # an object of which less than this share can be seen is left out
DISTRACTORS = 6, 14
MIN_CONTRAST = 45.0  # Euclidean distance of an object's BGR colour from the ground's


def make_polygon(centre: np.ndarray, diameter: float, corners: int, angle: float) -> np.ndarray:
    """Return the corners (n, 2), as x, y, of a regular polygon."""
    angles = angle + np.arange(corners) * 2 * np.pi / corners
    return centre + diameter / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def cover(kind: int, centre: np.ndarray, diameter: float, angle: float, size: int) -> np.ndarray:
    """Return how much of each pixel an object of class `kind` covers, (size, size) from 0 to 1."""
    corners = list(CORNERS.values())[kind % len(CORNERS)]
    alpha = shapes.fill(make_polygon(centre, diameter, corners, angle), size)
    if NAMES[kind].startswith("hollow"):
        alpha = alpha * (1 - shapes.fill(make_polygon(centre, HOLE * diameter, corners, angle), size))
    return alpha


def place_objects(rng: np.random.Generator, size: int) -> list[tuple[int, np.ndarray, float, float, bool]]:
    """Choose class, centre, diameter and angle of each object, and whether it duplicates the one before."""
    placed = []
    for _ in range(rng.integers(OBJECTS[0], OBJECTS[1] + 1)):
        if placed and rng.random() < DUPLICATE:
            kind, centre, diameter, angle, _ = placed[-1]
            direction = rng.uniform(0, 2 * np.pi)
            shift = rng.uniform(*SHIFT) * diameter * np.array([np.cos(direction), np.sin(direction)])
            placed.append((kind, centre + shift, diameter * rng.uniform(0.9, 1.1), angle + rng.normal(0, 0.1), True))
            continue
        diameter = DIAMETERS[0] * (DIAMETERS[1] / DIAMETERS[0]) ** (rng.random() ** 1.5)
        centre = rng.uniform(0.3 * diameter, size - 0.3 * diameter, 2)
        placed.append((int(rng.integers(len(NAMES))), centre, diameter, rng.uniform(0, 2 * np.pi), False))
    return placed


def draw_distractor(rng: np.random.Generator, image: np.ndarray, size: int) -> None:
    """Draw what is no object into an image: a thin bar, or a blob whose edge fades, with a texture of its own."""
    centre, diameter, angle = rng.uniform(0, size, 2), rng.uniform(*DIAMETERS), rng.uniform(0, 2 * np.pi)
    texture, _ = shapes.draw_ground(rng, size)
    if rng.random() < 0.5:
        along = diameter * np.array([np.cos(angle), np.sin(angle)])
        across = rng.uniform(0.06, 0.12) * np.array([-along[1], along[0]])
        alpha = shapes.fill(centre + np.stack([along + across, along - across, -along - across, -along + across]), size)
    else:
        places = np.arange(size) + 0.5
        distance = np.hypot(places[None, :] - centre[0], places[:, None] - centre[1])
        alpha = np.clip(1.2 - distance / (diameter / 2), 0, 0.9).astype(np.float32)
    image += alpha[..., None] * (texture - image)


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """Draw one image.

    Args:
        rng: Source of every random choice.
        size: Image side in pixels.

    Returns:
        The image (size, size, 3) as uint8, and for each object in it: class index, left, top, right, bottom.
    """
    image, ground = shapes.draw_ground(rng, size)
    for _ in range(rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1)):
        draw_distractor(rng, image, size)
    placed = place_objects(rng, size)
    alphas = [cover(kind, centre, diameter, angle, size) for kind, centre, diameter, angle, _ in placed]
    labels, colour = [], ground[0]
    for (kind, *_, is_duplicate), alpha, box in zip(placed, alphas, shapes.find_boxes(alphas, MIN_VISIBLE)):
        if is_duplicate:
            colour = np.clip(colour + rng.normal(0, 12, 3), 0, 255)
        else:
            colour = shapes.choose_colour(rng, ground, MIN_CONTRAST)
        if box is not None:
            image += alpha[..., None] * (colour.astype(np.float32) - image)
            labels.append((kind, *box))
    image += rng.uniform(2, 10) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).round().astype(np.uint8), labels


def generate(root: str | Path, train: int = 512, val: int = 128, size: int = 256, seed: int = 0) -> None:
    """Write the dataset below root, or what is missing of it.

    Args:
        root: Dataset folder, made if missing.
        train: Number of training images.
        val: Number of validation images.
        size: Image side in pixels.
        seed: Another seed gives other images.

    Raises:
        ValueError: If a number is out of range, or root holds another set.
    """
    shapes.generate(root, train, val, size, seed, draw=draw, set="crowd")
