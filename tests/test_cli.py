"""The main job through the `yolo` command's own entry point, for every shipped model."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import MODELS, TINY

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


@pytest.fixture(scope="module", params=MODELS)
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


def test_val(trained, shapes):
    name, folder, weights = trained
    metrics = YOLO(weights).val(data=shapes, imgsz=SIZE[name], project=folder, name="val", workers=0, plots=False)
    assert set(metrics.results_dict) >= {"metrics/mAP50(B)", "metrics/mAP50-95(B)"}


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


def test_track(trained, tmp_path):
    name, folder, weights = trained
    for i, source in enumerate(("bus.jpg", "bus.jpg")):
        shutil.copy(ASSETS / source, tmp_path / f"{i}.jpg")
    yolo("track", model=weights, source=tmp_path, imgsz=SIZE[name], conf=0.01, project=folder, name="track", save=True)
    assert len(list((folder / "track").glob("*.jpg"))) == 2


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_export_and_run(trained, form, often):
    """The exported file, found to be an RT-DETR by what it holds, gives the scores that the weights give."""
    name, folder, weights = trained
    if name not in TINY and not often(False, True):
        pytest.skip("with --nightly; test_exports.py exports the large models")
    yolo("export", model=weights, format=form, imgsz=SIZE[name])
    scores = []
    for file in (weights, weights.with_suffix(f".{form}")):
        model = YOLO(file)
        assert type(model) is RTDETR
        # rect=False: an exported model has the square size that it was exported for
        (result,) = model.predict(ASSETS / "bus.jpg", imgsz=SIZE[name], conf=0.0, rect=False, verbose=False)
        scores.append(result.boxes.conf.sort(descending=True).values[:20])
    torch.testing.assert_close(scores[0], scores[1], atol=2e-3, rtol=0)
