"""A fault in a data set: it trains, and names what it leaves out, or ends in one line that says why."""

import math
import subprocess
import sys

import faulty_data_sets as faulty
import pytest
import torch
from conftest import mark_nightly

from ultralytics import RTDETR
from ultralytics.cfg import get_cfg
from ultralytics.data import utils
from ultralytics.data.build import build_dataloader, build_yolo_dataset
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel
from ultralytics.utils import LOGGER

CFG = get_cfg(overrides={"imgsz": 64, "task": "detect", "mode": "train"})

LEARNED = (  # what a step might not be finite for
    "nothing",
    "a_batch_without_objects",
    "one_image",
    "labels_width_zero",
    "labels_box_tiny",
    "labels_box_outside",
    "labels_thousand_boxes",
)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What is logged."""
    lines = []
    for level in ("info", "warning", "error"):
        monkeypatch.setattr(LOGGER, level, lambda line="": lines.extend(str(line).splitlines()))
    monkeypatch.setattr(utils, "check_font", lambda *_: None)  # would download a font
    return lines


@pytest.fixture(scope="module")
def models():
    """A model of each kind, for two classes."""
    found = [
        RTDETRDetectionModel("rtdetr-tiny.yaml", nc=2, verbose=False),
        DetectionModel("yolo26n.yaml", nc=2, verbose=False),
    ]
    for model in found:
        model.nc, model.args = 2, CFG
    return found


def images_of(data: dict, split: str, kind: type):
    """Give the data set of a split as a training makes it."""
    train = split == "train"
    if kind is RTDETRDetectionModel:
        options = dict(batch_size=2, augment=train, hyp=CFG, prefix=f"{split}: ", data=data)
        return RTDETRDataset(img_path=data[split], imgsz=64, **options)
    return build_yolo_dataset(CFG, data[split], 2, data, mode=split, rect=not train, stride=32)


def learn(model, batch) -> None:
    """Take a step's loss and gradients of a batch, as the trainer does."""
    batch["img"] = batch["img"].float() / 255
    model.train()
    loss = model.loss(batch)[0].sum()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and grads and all(torch.isfinite(grad).all() for grad in grads)
    model.zero_grad()


def read(data, models, learners) -> None:
    """Read a data set as trainings of the models do, and let some of them learn from it."""
    found = utils.check_det_dataset(data)
    for model in models:
        for split in ("train", "val"):
            for batch in build_dataloader(images_of(found, split, type(model)), 2, workers=0, shuffle=False):
                assert batch["img"].dtype == torch.uint8 and batch["img"].shape[:2] == (
                    len(batch["im_file"]),
                    found["channels"],
                )
                boxes, classes = batch["bboxes"], batch["cls"]
                assert torch.isfinite(boxes).all() and ((boxes >= 0) & (boxes <= 1)).all()
                assert (classes % 1 == 0).all() and ((classes >= 0) & (classes < found["nc"])).all()
                assert len(boxes) == len(classes) == len(batch["batch_idx"])
                if model in learners and split == "train":
                    learn(model, batch)


@pytest.mark.parametrize("name", faulty.CASES)
def test_it_trains_or_is_one_line(name, tmp_path, models, said, often):
    put, words, line = faulty.CASES[name]
    data = faulty.write_set(tmp_path)
    data = put(tmp_path) or data
    learners = models[: often(1, 2)] if name in LEARNED else []
    if words:
        with pytest.raises(Exception) as e:
            read(data, models, learners)
        line = str(e.value)
        assert e.value.plain and line.isprintable() and str(tmp_path) in line
        assert words in line.replace(str(tmp_path), ""), line  # the folder's name has words of the test's
    else:
        read(data, models, learners)
        left_out = [text for text in said if "ignoring" in text or "not used" in text]
        assert any(line.format(tmp_path) in text for text in left_out) if line else not left_out


def yolo(command: str, **arguments) -> subprocess.CompletedProcess:
    """Run a `yolo` command; what it says is its output, without the colours."""
    code = "import sys; sys.argv[0] = 'yolo'; from ultralytics.cfg import entrypoint; entrypoint()"
    words = [f"{key}={value}" for key, value in arguments.items()]
    return subprocess.run([sys.executable, "-c", code, command, *words], capture_output=True, text=True, timeout=600)


FEW = {
    "rtdetr-tiny.yaml": ("a_batch_without_objects", "yaml_names_1000_in_a_list"),
    "yolo26n.yaml": ("a_batch_without_objects",),
}


@pytest.mark.parametrize("model", mark_nightly(FEW, {"rtdetr-tiny.yaml"}))
def test_the_command(model, tmp_path, often):
    """What trains, trains to its end, and what does not ends with one line and a status of 1; so does `yolo val`."""
    for name in often(FEW[model], faulty.CASES):
        put, words, _ = faulty.CASES[name]
        root = tmp_path / name
        root.mkdir()
        data = faulty.write_set(root)
        data = put(root) or data
        options = dict(data=data, imgsz=64, batch=2, device="cpu", workers=0, plots=False, project=root, name="run")
        weights = root / "run" / "weights" / "best.pt"
        ran = [yolo("train", model=model, epochs=1, **options)]
        if often(False, not words):
            ran.append(yolo("val", model=weights, **options))
        for done in ran:
            lines = [line for line in done.stderr.splitlines() if line and "WARN" not in line]
            assert "Traceback" not in done.stdout + done.stderr, (name, done.stderr)
            assert (done.returncode, bool(words)) in ((0, False), (1, True)), (name, done.stderr)
            assert not words or (len(lines) == 1 and words in lines[0]), (name, done.stderr)
        if not words:
            row = (root / "run" / "results.csv").read_text().splitlines()[-1]
            assert all(math.isfinite(float(value)) for value in row.split(",")), (name, row)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_away_is_one_line(workers, tmp_path):
    """Read by a worker of the data loader, too."""
    images = images_of(utils.check_det_dataset(faulty.write_set(tmp_path)), "val", RTDETRDetectionModel)
    image = tmp_path / "images" / "val" / "1.jpg"
    image.write_bytes(b"")
    with pytest.raises(ValueError) as e:
        list(build_dataloader(images, 2, workers, shuffle=False))
    assert e.value.plain and str(e.value).startswith(f"{image} ") and "remove it" in str(e.value)


def test_a_run_that_such_an_image_ends_says_how_to_go_on(tmp_path):
    data = faulty.write_set(tmp_path)
    model = RTDETR("rtdetr-tiny.yaml")
    options = dict(data=data, imgsz=64, batch=2, workers=0, plots=False, project=tmp_path, name="run")
    model.add_callback("on_train_start", lambda _: [file.unlink() for file in faulty.list_files(tmp_path)])
    with pytest.raises(ValueError, match=r"jpg is gone.*0 of 1 epochs.*yolo train resume model=") as e:
        model.train(epochs=1, **options)
    assert e.value.plain and str(e.value).isprintable()
