"""Tests of the shapes dataset: what is drawn, what is labelled, and what is left when a run is stopped."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "cfg_custom" / "datasets" / "shapes.py"
FEW = {"train": 2, "val": 2, "size": 64}
# What generate(**FEW) puts in place, in order: the recipe, (label, image) twice, images/train, the same for val.
STEPS = range(1, 12)

# Runs the generator in a process of its own with `os.replace` changed by {change}. The progress bar is left out, as
# importing it imports torch, which takes seconds.
CHILD = """
import importlib.util, os, signal, sys, types
sys.modules["ultralytics"] = types.ModuleType("ultralytics")
sys.modules["ultralytics.utils"] = types.SimpleNamespace(TQDM=lambda items, **_: items)
spec = importlib.util.spec_from_file_location("shapes", {script!r})
shapes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shapes)
{change}
shapes.generate({root!r}, **{few!r})
"""

KILL_AT_STEP = """
done, replace = 0, os.replace
def replace_or_die(*paths):
    global done
    done += 1
    if done == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = replace_or_die
"""

# No file may grow beyond this many bytes: writing fails in the middle of a file, as it does on a full disk.
LIMIT_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"


def load() -> ModuleType:
    """Import the generator by its path; it is not in a package."""
    spec = importlib.util.spec_from_file_location("shapes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shapes = load()


def run_child(root: Path, change: str) -> subprocess.CompletedProcess:
    """Run generate(root, **FEW) in another process after the statements in `change`."""
    code = CHILD.format(script=str(SCRIPT), change=change, root=str(root), few=FEW)
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)


def read_tree(root: Path) -> dict[str, bytes]:
    """Return the content of every image and label file by its path below root."""
    folders = (root / "images", root / "labels")
    return {str(p.relative_to(root)): p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


def draw_many(count: int, size: int = 256) -> list[tuple[np.ndarray, list[tuple[int, int, int, int, int]]]]:
    """Draw images in memory."""
    return [shapes.draw(np.random.default_rng([7, index]), size) for index in range(count)]


def overlap(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return the area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def fill_square(left: float, top: float, right: float, bottom: float, size: int = 64) -> np.ndarray:
    """Return the coverage map of an upright rectangle."""
    return shapes.fill(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), size)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of the set that an undisturbed run makes."""
    root = tmp_path_factory.mktemp("whole")
    shapes.generate(root, **FEW)
    return read_tree(root)


def test_layout(whole: dict[str, bytes]):
    """Every split has its images, each with a label file of the same stem, and nothing else."""
    stems = [f"{split}/000{index}" for split in ("train", "val") for index in range(2)]
    assert sorted(whole) == sorted([f"images/{s}.jpg" for s in stems] + [f"labels/{s}.txt" for s in stems])
    for name, content in whole.items():
        if name.endswith(".jpg"):
            assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)


def test_images_differ(whole: dict[str, bytes], tmp_path: Path):
    """No image occurs twice, across splits and seeds too."""
    shapes.generate(tmp_path, **FEW, seed=1)
    images = [c for tree in (whole, read_tree(tmp_path)) for name, c in tree.items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 8


def test_image_does_not_depend_on_the_others(whole: dict[str, bytes], tmp_path: Path):
    """A larger set begins with the images of a smaller one."""
    shapes.generate(tmp_path, train=4, val=3, size=64)
    assert whole.items() <= read_tree(tmp_path).items()


@pytest.mark.parametrize(
    "lost", ["images/train/0001.jpg", "labels/train/0000.txt", "labels/val/0001.txt", "images/val"]
)
def test_lost_files_come_back(whole: dict[str, bytes], tmp_path: Path, lost: str):
    """A second run makes the same bytes again for what was deleted."""
    shapes.generate(tmp_path, **FEW)
    path = tmp_path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shapes.generate(tmp_path, **FEW)
    assert read_tree(tmp_path) == whole


def test_finished_set_is_left_alone(tmp_path: Path):
    """A second run draws nothing."""
    shapes.generate(tmp_path, **FEW)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.[jt][px][gt]")}
    shapes.generate(tmp_path, **FEW)
    assert len(before) == 8
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("step", STEPS)
def test_killed_run_is_completed(whole: dict[str, bytes], tmp_path: Path, step: int):
    """Whenever a run is killed, upstream sees no finished set, and the next run makes the one of an undisturbed run."""
    child = run_child(tmp_path, KILL_AT_STEP.format(step=step))
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (tmp_path / "images" / "val").exists()
    shapes.generate(tmp_path, **FEW)
    assert read_tree(tmp_path) == whole


def test_steps_are_all_steps(tmp_path: Path):
    """A run has no step after the last one killed above."""
    child = run_child(tmp_path, KILL_AT_STEP.format(step=STEPS[-1] + 1))
    assert child.returncode == 0, child.stderr
    assert (tmp_path / "images" / "val").is_dir()


@pytest.mark.parametrize("limit", [0, 30, 500])
def test_full_disk_leaves_nothing_that_looks_finished(whole: dict[str, bytes], tmp_path: Path, limit: int):
    """A write that fails halfway is reported, and leaves whole files only."""
    pytest.importorskip("resource")
    child = run_child(tmp_path, LIMIT_FILES.format(limit=limit))
    assert child.returncode == 1
    assert "OSError" in child.stderr
    assert not (tmp_path / "images" / "val").exists()
    assert not [path for path in tmp_path.rglob("*.part") if path.is_file()]
    shapes.generate(tmp_path, **FEW)
    assert read_tree(tmp_path) == whole


@pytest.mark.parametrize(
    "name, value", [("train", 0), ("val", 0), ("val", -3), ("size", 16), ("size", 64.0), ("seed", -1), ("seed", "a")]
)
def test_bad_arguments(tmp_path: Path, name: str, value: object):
    """The error names the argument and its value, and nothing is written."""
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        shapes.generate(tmp_path / "set", **{**FEW, name: value})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name, value", [("train", 3), ("size", 96), ("seed", 1)])
def test_two_recipes_do_not_mix(whole: dict[str, bytes], tmp_path: Path, name: str, value: int):
    """A folder with a set made with other numbers is refused and left as it was."""
    shapes.generate(tmp_path, **FEW)
    with pytest.raises(ValueError, match=f"'{name}': {value}"):
        shapes.generate(tmp_path, **{**FEW, name: value})
    assert read_tree(tmp_path) == whole


def test_label_lines(whole: dict[str, bytes]):
    """Labels are YOLO lines with a known class and a box of some size inside the image."""
    for name, content in whole.items():
        if name.endswith(".txt"):
            for line in content.decode().splitlines():
                kind, *box = line.split()
                assert kind in {"0", "1", "2"}
                assert all(len(value) == len("0.000000") for value in box)
                x, y, width, height = map(float, box)
                assert width > 0 and height > 0
                assert min(x - width / 2, y - height / 2) >= -1e-6
                assert max(x + width / 2, y + height / 2) <= 1 + 1e-6


def test_label_lines_agree_with_draw(whole: dict[str, bytes]):
    """The lines state the boxes in pixels that `draw` gave for the same seed, split and index."""
    _, labels = shapes.draw(np.random.default_rng([0, 1, 0]), 64)
    rows = np.array([line.split() for line in whole["labels/val/0000.txt"].decode().splitlines()], dtype=float)
    kinds, centres, sides = rows[:, 0], rows[:, 1:3] * 64, rows[:, 3:] * 64
    found = np.column_stack([kinds, centres - sides / 2, centres + sides / 2])
    np.testing.assert_allclose(found, labels, atol=1e-3)


def test_box_fits_the_pixels(monkeypatch: pytest.MonkeyPatch):
    """The box of a lone object spans the pixels in which its image differs from the bare ground."""
    monkeypatch.setattr(shapes, "MAX_OBJECTS", 1)
    for index in range(60):
        image, [(_, *box)] = shapes.draw(np.random.default_rng([7, index]), 256)
        ground, _ = shapes.draw_ground(np.random.default_rng([7, index]), 256)
        changed = np.linalg.norm(image - np.clip(ground, 0, 255), axis=2) > 45  # above the noise, below the contrast
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(box, edges, atol=2, err_msg=f"image {index}")


@pytest.mark.parametrize("kind", range(3))
def test_box_fits_the_outline(kind: int):
    """The box is that of the polygon, cut at the image's border."""
    for index in range(40):
        outline = shapes.make_outline(np.random.default_rng([kind, index]), kind, 256)
        [box] = shapes.find_boxes([shapes.fill(outline, 256)])
        assert len(outline) == (4 if kind == 1 else 3) or kind == 0
        np.testing.assert_allclose(box, np.clip([*outline.min(axis=0), *outline.max(axis=0)], 0, 256), atol=2)


def test_hidden_objects():
    """A box spans what can be seen; a shape that is mostly hidden is left out, and then hides nothing itself."""
    back, half, most = fill_square(10, 10, 40, 40), fill_square(28, 0, 60, 60), fill_square(15, 0, 60, 60)
    np.testing.assert_allclose(shapes.find_boxes([back, half])[0], (10, 10, 28, 40), atol=1)
    assert shapes.find_boxes([back, most])[0] is None
    assert shapes.find_boxes([back, most])[1] is not None
    # `back` lies under `half`, which is left out because of the shape in front of it.
    front = fill_square(32, 0, 64, 64)
    boxes = shapes.find_boxes([back, half, front])
    assert boxes[1] is None
    np.testing.assert_allclose(boxes[0], (10, 10, 32, 40), atol=1)


def test_variety():
    """All classes occur about as often; objects are small, large, overlapping and cut, and few or many to an image."""
    labels = [labels for _, labels in draw_many(150)]
    boxes = np.array([label for image in labels for label in image])
    sides = boxes[:, 3:] - boxes[:, 1:3]
    assert np.bincount(boxes[:, 0]).min() > len(boxes) / 4
    assert {len(image) for image in labels} == set(range(1, shapes.MAX_OBJECTS + 1))
    assert 0.05 < (sides.max(axis=1) <= 24).mean() < 0.25
    assert sides.max(axis=1).min() <= 14
    assert sides.min() >= 4
    assert (sides.max(axis=1) >= 80).mean() > 0.1
    assert (boxes[:, 1:3].min(axis=1) == 0).any() and (boxes[:, 3:].max(axis=1) == 256).any()
    overlapping = [any(overlap(a[1:], b[1:]) > 20 for a, b in itertools.combinations(image, 2)) for image in labels]
    assert 0.2 < np.mean(overlapping) < 0.8


def test_colours_stand_out():
    """A colour keeps its distance from those in use, and the farthest one is taken where none is far enough."""
    for index in range(50):
        rng = np.random.default_rng(index)
        _, used = shapes.draw_ground(rng, 64)
        assert np.linalg.norm(used - shapes.choose_colour(rng, used), axis=1).min() >= shapes.MIN_CONTRAST
    crowded = np.stack(np.meshgrid(*[np.linspace(0, 255, 5)] * 3), axis=-1).reshape(-1, 3)
    assert shapes.choose_colour(np.random.default_rng(0), crowded).shape == (3,)


def test_upstream_makes_and_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Upstream's own check of the YAML draws the set, once, and its dataset class finds every box."""
    data_utils = pytest.importorskip("ultralytics.data.utils")
    from ultralytics.data.dataset import YOLODataset

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_utils, "DATASETS_DIR", tmp_path / "datasets")
    monkeypatch.setattr(data_utils, "check_font", lambda *_: None)  # would download a font
    monkeypatch.setenv("ULTRALYTICS_RUN_DOWNLOADS", "1")  # the copy is not what the package has
    call, few = 'generate(yaml["path"])', 'generate(yaml["path"], train=3, val=2, size=64)'
    text = SCRIPT.with_suffix(".yaml").read_text()
    assert text.count(call) == 1
    (tmp_path / "shapes.yaml").write_text(text.replace(call, few))

    with pytest.raises(FileNotFoundError):
        data_utils.check_det_dataset("shapes.yaml", autodownload=False)
    data_utils.check_det_dataset("shapes.yaml")
    data = data_utils.check_det_dataset("shapes.yaml", autodownload=False)
    assert data["path"] == tmp_path / "datasets" / "shapes"
    assert tuple(data["names"].values()) == shapes.NAMES
    for split, count in (("train", 3), ("val", 2)):
        dataset = YOLODataset(img_path=data[split], data=data, imgsz=64, augment=False)
        lines = [path.read_text().splitlines() for path in sorted((data["path"] / "labels" / split).glob("*.txt"))]
        assert len(dataset) == len(lines) == count
        assert [len(label["cls"]) for label in dataset.labels] == [len(image) for image in lines]
