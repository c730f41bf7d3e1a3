"""The main job through the `yolo` command's own entry point, for every shipped model."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import MODELS, TINY, mark_nightly

from ultralytics import RTDETR, YOLO, cfg
from ultralytics.utils import ASSETS

SIZE = {name: 96 if name in TINY else 64 for name in MODELS}


def yolo(command: str, **arguments) -> None:
    """Run a `yolo` command in this process."""
    with pytest.MonkeyPatch.context() as patch:  # not as one text, which is split at the spaces of a path
        patch.setattr(cfg, "ARGV", ["yolo", command, *(f"{key}={value}" for key, value in arguments.items())])
        cfg.entrypoint()


class Stop(Exception):
    """Ends a training from outside."""


# The tiny models have the modules of the large ones; this one has a backbone of several outputs
@pytest.fixture(scope="module", params=mark_nightly(MODELS, {"rtdetr-tiny-EMO"}))
def trained(request, shapes, tmp_path_factory):
    """A model trained for two epochs: its name, its run's folder, and its weights under a name without "rtdetr".

    The run is stopped in the second epoch and resumed by the command.
    """

    def stop(trainer):
        if trainer.epoch == 1:
            raise Stop

    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = YOLO(f"{name}.yaml")
    model.add_callback("on_train_epoch_start", stop)
    options = {"imgsz": SIZE[name], "batch": 4, "workers": 0, "plots": name in TINY}
    with pytest.raises(Stop):
        model.train(data=shapes, epochs=2, project=folder, name="train", **options)
    last = folder / "train" / "weights" / "last.pt"
    assert torch.load(last, weights_only=False)["epoch"] == 0
    yolo("train", resume=last, model=last)
    weights = shutil.copy(folder / "train" / "weights" / "best.pt", folder / "mine.pt")
    yield name, folder, Path(weights)
    shutil.rmtree(folder)


def test_train_and_resume_leave_what_upstream_leaves(trained):
    name, folder, _ = trained
    left = {f.relative_to(folder / "train").as_posix() for f in (folder / "train").rglob("*") if f.is_file()}
    assert {"weights/best.pt", "weights/last.pt", "results.csv", "args.yaml"} <= left
    rows = (folder / "train" / "results.csv").read_text().splitlines()
    assert [row.split(",")[0].strip() for row in rows[1:]] == ["1", "2"]  # the second one resumed
    if name in TINY:
        assert {"results.png", "confusion_matrix.png", "train_batch0.jpg", "val_batch0_pred.jpg"} <= left


class Oracle:
    """Makes an RT-DETR find what it is told to: (B, N, 6) rows of x, y, w, h, score, class."""

    def __init__(self, model: YOLO):
        self.rows = torch.zeros(0, 0, 6)

        def answer(head, inputs, output):  # a function, which a copy of the model shares
            found = torch.zeros(len(output[0]), 60, 6)
            if self.rows.shape[1]:  # none where a backend is warmed up
                found[:, : self.rows.shape[1]] = self.rows
            return (found, output[1])

        model.model.model[-1].register_forward_hook(answer)


@pytest.mark.end_to_end("val")
@pytest.mark.parametrize("shift, least, most", [(0.0, 0.99, 1.0), (0.5, 0.0, 0.01)])
def test_val_of_right_and_of_wrong_boxes(shapes, tmp_path, shift, least, most):
    """A model that finds each label has an mAP of one, and one that finds it half an image away has none."""
    model = RTDETR("rtdetr-tiny.yaml")
    oracle, seen = Oracle(model), []

    def tell(validator) -> None:
        preprocess = validator.preprocess

        def keep(batch):
            batch = preprocess(batch)
            rows = [torch.cat([batch["bboxes"], torch.full_like(batch["cls"], 0.9), batch["cls"]], 1)]
            rows = [rows[0][batch["batch_idx"] == i] for i in range(len(batch["img"]))]
            oracle.rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            oracle.rows[..., 0] = (oracle.rows[..., 0] + shift) % 1
            seen.append(sum(map(len, rows)))
            return batch

        validator.preprocess = keep

    model.add_callback("on_val_start", tell)
    metrics = model.val(data=shapes, imgsz=96, project=tmp_path, name="val", workers=0, plots=False, batch=2)
    assert metrics.nt_per_class.sum() == sum(seen) > 4
    assert least <= metrics.box.map50 <= most and least <= metrics.box.map <= most


def test_val_finds_what_training_has_found(trained, shapes):
    """`val` of best.pt gives the figures that the last validation of the training has printed and kept."""
    name, folder, weights = trained
    metrics = YOLO(weights).val(data=shapes, imgsz=SIZE[name], project=folder, name="val", workers=0, plots=False)
    assert metrics.nt_per_class.sum() > 4 and len(metrics.names) == 3
    rows = [line.split(",") for line in (folder / "train" / "results.csv").read_text().splitlines()]
    column = [key.strip() for key in rows[0]].index("metrics/mAP50-95(B)")
    assert metrics.box.map == pytest.approx(max(float(row[column]) for row in rows[1:]), abs=0.02)


def test_predict_image_folder_video_and_array(trained, tmp_path):
    name, folder, weights = trained
    image = cv2.imread(str(ASSETS / "bus.jpg"))
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (160, 96))
    for shift in range(3):
        writer.write(cv2.resize(np.roll(image, 20 * shift, axis=1), (160, 96)))
    writer.release()
    model = YOLO(weights)
    assert type(model) is RTDETR
    options = {"imgsz": SIZE[name], "conf": 0.0, "verbose": False}
    for source, count in ((ASSETS / "bus.jpg", 1), (ASSETS, len(list(ASSETS.glob("*.jpg")))), (video, 3), (image, 1)):
        results = model.predict(source, **options)
        assert len(results) == count
        assert all(len(r.boxes) and r.boxes.data.isfinite().all() for r in results)
    yolo(
        "predict", model=weights, source=ASSETS / "bus.jpg", imgsz=SIZE[name], project=folder, name="predict", save=True
    )
    assert (folder / "predict" / "bus.jpg").is_file()


def test_track_keeps_the_numbers_of_objects_that_move(tmp_path):
    for i in range(4):
        shutil.copy(ASSETS / "bus.jpg", tmp_path / f"{i}.jpg")
    model = RTDETR("rtdetr-tiny.yaml")
    oracle, found = Oracle(model), []
    for i in range(4):
        oracle.rows = torch.tensor([[[0.2 + 0.02 * i, 0.3, 0.2, 0.2, 0.9, 0], [0.7, 0.6 + 0.02 * i, 0.2, 0.3, 0.8, 2]]])
        (result,) = model.track(tmp_path / f"{i}.jpg", imgsz=96, persist=True, verbose=False)
        found.append(dict(zip(result.boxes.id.int().tolist(), result.boxes.cls.int().tolist())))
    assert found == [{1: 0, 2: 2}] * 4


def test_track_by_the_command(trained, tmp_path):
    name, folder, weights = trained
    for i in range(2):
        shutil.copy(ASSETS / "bus.jpg", tmp_path / f"{i}.jpg")
    yolo("track", model=weights, source=tmp_path, imgsz=SIZE[name], conf=0.01, project=folder, name="track", save=True)
    drawn = [cv2.imread(str(file)) for file in sorted((folder / "track").glob("*.jpg"))]
    assert len(drawn) == 2 and all(image.shape == cv2.imread(str(ASSETS / "bus.jpg")).shape for image in drawn)


@pytest.mark.parametrize("form", ["torchscript", pytest.param("onnx", marks=pytest.mark.nightly)])
def test_export_and_run(trained, form):
    """The exported file, found to be an RT-DETR by what it holds, gives the scores that the weights give."""
    name, _folder, weights = trained
    yolo("export", model=weights, format=form, imgsz=SIZE[name])
    scores = []
    for file in (weights, weights.with_suffix(f".{form}")):
        model = YOLO(file)
        assert type(model) is RTDETR
        # rect=False: an exported model has the square size that it was exported for
        (result,) = model.predict(ASSETS / "bus.jpg", imgsz=SIZE[name], conf=0.0, rect=False, verbose=False)
        scores.append(result.boxes.conf.sort(descending=True).values[:20])
    torch.testing.assert_close(scores[0], scores[1], atol=2e-3, rtol=0)
