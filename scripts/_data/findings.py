"""What is wrong with a data set, or may be: one finding for each kind, with the images that it is about."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from _data.splits import Picture, Split
from ultralytics.fork.data.image_kinds import FEW_BITS, SMALL_SHARE, SMALL_SIDE

AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # square pixels, as COCO's


@dataclass
class Finding:
    """Something that is wrong, or may be.

    Attributes:
        is_wrong: Whether it changes what a training learns, or what a validation says; else it is a hint.
        text: What it is, and what to do.
        files: The images that it is about, the worst first.
    """

    is_wrong: bool
    text: str
    files: list[str] = field(default_factory=list)


def find_all(splits: list[Split], names: dict[int, str], channels: int, bits: int | None, imgsz: int) -> list[Finding]:
    """Find what is wrong with a data set.

    Args:
        splits: Its splits.
        names: Of its classes.
        channels: That its YAML states.
        bits: That its YAML states; None for none.
        imgsz: Pixels a side, to which a training stretches images.
    """
    found: list[Finding] = []
    for split in splits:
        found += find_left_out(split)
        found += find_small_boxes(split, imgsz)
        found += find_kinds(split, channels, bits)
        found += find_duplicates_within(split)
    found += find_duplicates_across(splits)
    found += find_missing_classes(splits, names)
    found += find_orphans(splits)
    return sorted(found, key=lambda finding: not finding.is_wrong)


def find_left_out(split: Split) -> list[Finding]:
    """Find images and objects that a training leaves out."""
    out = [picture for picture in split.pictures if not picture.shape]
    odd = [picture for picture in split.used if picture.problem]
    found = []
    for group, what in ((out, "left out"), (odd, "changed when they are read")):
        reasons = Counter(shorten(picture.problem, picture.file) for picture in group)
        for reason, count in reasons.most_common():
            files = [picture.file for picture in group if shorten(picture.problem, picture.file) == reason]
            share = count / len(split.pictures)
            found.append(Finding(True, f"{split.name}: {count} images ({share:.1%}) are {what}: {reason}", files))
    found += [Finding(True, f"{split.name}: {count} {what}") for what, count in split.notes.items() if count]
    return found


def find_orphans(splits: list[Split]) -> list[Finding]:
    """Find label files that belong to no image, beside those of all splits."""
    known = {label for split in splits for label in split.labels}
    folders = sorted({Path(label).parent for label in known})
    orphans = [
        file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.txt")) if str(file) not in known
    ]
    if not orphans:
        return []
    return [Finding(False, f"{len(orphans)} label files belong to no image, such as {orphans[0]}")]


def shorten(problem: str, file: str) -> str:
    """Shorten a reason so that it is the same for all images that have it: without names and numbers of one file."""
    text = re.sub(r"[\w:./\\-]*\b" + re.escape(Path(file).stem) + r"(\.[a-zA-Z]+)", r"*\1", problem)
    text = re.sub(r"row \d+", "a row", re.sub(r", not .*", "", text))
    text = re.sub(r"a row: class \S+ is", "a row: a class is", text)
    text = re.sub(r"a row: .* is not finite", "a row: a value is not finite", text)
    return " ".join(text.split())[:160]


def find_small_boxes(split: Split, imgsz: int) -> list[Finding]:
    """Find boxes of which hardly a pixel is left where images are stretched to a square."""
    counts = {picture.file: int((picture.boxes[:, 2:] * imgsz < SMALL_SIDE).any(1).sum()) for picture in split.used}
    lost, total = sum(counts.values()), sum(len(picture.boxes) for picture in split.used)
    if not lost:
        return []
    files = sorted((file for file in counts if counts[file]), key=lambda file: -counts[file])
    text = (
        f"{split.name}: {lost} of {total} boxes ({lost / total:.1%}) are less than {SMALL_SIDE} pixels wide or high at "
        f"imgsz={imgsz}, where each image is stretched to a square, and are not learned: a larger imgsz, or tiles"
    )
    return [Finding(lost / total > SMALL_SHARE, text, files)]


def find_kinds(split: Split, channels: int, bits: int | None) -> list[Finding]:
    """Find images of other channels than are stated, of few levels, and of several pages."""
    found = []
    if channels not in (1, 3):  # to which upstream converts
        other = [picture for picture in split.used if picture.channels != channels]
        text = f"{split.name}: {len(other)} images have not the {channels} channels of the data YAML"
        found += [Finding(True, text, files_of(other))] * bool(other)
    low = [picture for picture in split.used if picture.largest is not None and picture.largest < 2**FEW_BITS]
    if low and not bits:
        largest = max(picture.largest or 0 for picture in low)
        text = (
            f"{split.name}: {len(low)} images are of 16 bits with values up to {largest}, of which "
            f"{largest // 256 + 1} levels of 256 are left: `bits: {max(9, largest.bit_length())}` in the data YAML"
        )
        found.append(Finding(True, text, files_of(low)))
    paged = [
        picture for picture in split.used if picture.pages > 1 and (channels in (1, 3) or picture.pages != channels)
    ]
    text = f"{split.name}: {len(paged)} images have several pages, of which the first is used"
    return found + [Finding(True, text, files_of(paged))] * bool(paged)


def find_duplicates_within(split: Split) -> list[Finding]:
    """Find images that a split has twice."""
    twice = [group for group in group_by_pixels([split]) if len(group) > 1]
    if not twice:
        return []
    files = [picture.file for group in twice for _, picture in group]
    count = sum(len(group) - 1 for group in twice)
    different = sum(1 for group in twice if len({labels_of(picture) for _, picture in group}) > 1)
    labels = f", {different} of them with other labels" if different else ""
    return [Finding(bool(different), f"{split.name}: {count} images are copies of another{labels}", files)]


def find_duplicates_across(splits: list[Split]) -> list[Finding]:
    """Find images that two splits share: a validation on them says how well they were learned by heart."""
    found = []
    for first, second in itertools.combinations(splits, 2):
        shared = [group for group in group_by_pixels([first, second]) if len({name for name, _ in group}) > 1]
        if not shared:
            continue
        bytes_too = sum(len({picture.digest for _, picture in group}) < len(group) for group in shared)
        held = {picture.file for group in shared for name, picture in group if name == second.name}
        text = (
            f"{first.name} and {second.name} share {len(held)} images ({len(held) / len(second.pictures):.1%} of "
            f"{second.name}), {bytes_too} of them as the same file: remove them from one"
        )
        found.append(Finding(True, text, [picture.file for group in shared for _, picture in group]))
    return found


def group_by_pixels(splits: list[Split]) -> Iterable[list[tuple[str, Picture]]]:
    """Group images of the same pixels, with their splits."""
    groups: dict[str, list[tuple[str, Picture]]] = defaultdict(list)
    for split in splits:
        for picture in split.pictures:
            if picture.pixels:
                groups[picture.pixels].append((split.name, picture))
    return groups.values()


def labels_of(picture: Picture) -> tuple:
    """Return an image's objects in a form that can be compared."""
    return tuple(sorted((int(c), *np.round(box, 3).tolist()) for c, box in zip(picture.classes, picture.boxes)))


def find_missing_classes(splits: list[Split], names: dict[int, str]) -> list[Finding]:
    """Find classes that have no objects in a split."""
    found = []
    for split in splits:
        counts = count_classes(split, len(names))
        none = [names[i] for i in range(len(names)) if not counts[i]]
        if none and split.used:
            listed = ", ".join(none[:10]) + (f" and {len(none) - 10} more" if len(none) > 10 else "")
            found.append(Finding(split.name == "train", f"{split.name} has no object of {listed}"))
    return found


def count_classes(split: Split, classes: int) -> np.ndarray:
    """Count the objects of each class, (classes,)."""
    owned = np.concatenate([np.zeros(0, int), *(picture.classes for picture in split.used)])
    return np.bincount(owned, minlength=classes)


def count_sizes(split: Split) -> dict[str, int]:
    """Count the objects of COCO's sizes, by their area in the original image."""
    areas = [p.boxes[:, 2] * p.boxes[:, 3] * p.shape[0] * p.shape[1] for p in split.used if p.shape]
    area = np.concatenate([np.zeros(0), *areas])
    return {name: int(((area >= least) & (area < most)).sum()) for name, (least, most) in AREAS.items()}


def files_of(pictures: list[Picture]) -> list[str]:
    """List the files of images."""
    return [picture.file for picture in pictures]
