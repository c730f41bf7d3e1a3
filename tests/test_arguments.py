"""Nothing that a user says is ignored in silence: each argument works with an RT-DETR, or a line says that not."""

import types

import cv2
import numpy as np
import pytest
import torch

from ultralytics import RTDETR, YOLO, cfg
from ultralytics.fork import arguments
from ultralytics.fork.errors import Refused
from ultralytics.utils import ASSETS, DEFAULT_CFG_DICT, IterableSimpleNamespace

# Not read in a run of each mode, and said or used nonetheless
ELSEWHERE = {
    "train": {
        *("cfg", "profile", "warmup_momentum", "dis"),  # of the command; of loggers; of SGD; of a distillation
        "pretrained",  # of a model from a YAML
        *("decoder_layers", "num_queries"),  # refused
    },
    "val": {"cfg", "profile", "save", "decoder_layers", "num_queries", "rect"},  # which upstream sets
    "predict": {
        "single_cls",  # which upstream keeps of the training
        *("cfg", "profile", "decoder_layers", "num_queries", "model", "task", "workers", "source", "tracker"),
        "save_frames",  # of videos
    },
    "export": {
        *("cfg", "profile", "cache", "channels_last", "compile", "dnn", "exist_ok", "mode", "model", "name", "plots"),
        *("project", "save", "save_json", "single_cls", "split", "task", "val", "verbose", "workers"),
        *("decoder_layers", "num_queries"),
    },
}


READ = set()  # keys of a configuration


class Recorder(IterableSimpleNamespace):
    def __getattribute__(self, key):
        READ.add(key)
        return object.__getattribute__(self, key)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(arguments.LOGGER, "warning", lines.append)
    arguments.warn_once.cache_clear()
    return lines


@pytest.fixture
def read(monkeypatch):
    """The keys of the configuration that are read while a mode runs."""
    from ultralytics.engine import exporter, predictor, trainer, validator

    READ.clear()
    get_cfg = cfg.get_cfg
    for module in (exporter, predictor, trainer, validator):
        monkeypatch.setattr(module, "get_cfg", lambda *args, **kwargs: Recorder(**vars(get_cfg(*args, **kwargs))))
    monkeypatch.setattr(arguments, "say_what_is_ignored", lambda *_: None)
    monkeypatch.setattr("ultralytics.fork.export.verification.say_what_is_ignored", lambda *_: None)
    return READ


def run(mode, model, shapes, folder, **options):
    """Run a mode with a tiny model."""
    options = {"imgsz": 64, "project": str(folder), "device": "cpu", **options}
    if mode == "train":
        model.train(data=shapes, epochs=2, batch=4, workers=0, **options)
    elif mode == "val":
        model.val(data=shapes, workers=0, plots=True, **options)
    elif mode == "predict":
        model.predict(ASSETS / "bus.jpg", save=True, save_txt=True, save_crop=True, **options)
    else:
        model.export(format="torchscript", imgsz=64)


@pytest.mark.parametrize("mode", ["train", "val", "predict", "export"])
def test_an_argument_that_nobody_reads_is_said_to_do_nothing(mode, read, shapes, tmp_path):
    """A way to find them in each new release: what is never read does nothing."""
    model = RTDETR("rtdetr-tiny.yaml")
    model.save(tmp_path / "x.pt")
    run(mode, RTDETR(tmp_path / "x.pt"), shapes, tmp_path)
    silent = set(DEFAULT_CFG_DICT) - read - set(arguments.IGNORED[mode]) - ELSEWHERE[mode]
    assert not silent, f"{mode}: say in fork/arguments.py what these do"
    assert {"imgsz", "batch"} & read


@pytest.mark.parametrize("mode, key", [(mode, key) for mode, keys in arguments.IGNORED.items() for key in keys])
def test_each_of_them_is_one_line(mode, key, said):
    default = DEFAULT_CFG_DICT[key]
    value = not default if isinstance(default, bool) else "x" if default is None else 7
    arguments.say_what_is_ignored(mode, types.SimpleNamespace(**{**DEFAULT_CFG_DICT, key: value}))
    (line,) = said
    assert line.startswith(f"{key}={value} does nothing in {mode} with an RT-DETR: ") and "\n" not in line


@pytest.mark.parametrize("mode", arguments.IGNORED)
def test_nothing_is_said_of_the_defaults(mode, said):
    arguments.say_what_is_ignored(mode, types.SimpleNamespace(**DEFAULT_CFG_DICT))
    assert not said


@pytest.mark.parametrize(
    "mode, options, lines",
    [
        (
            "train",
            {"rect": True, "copy_paste": 0.3, "close_mosaic": 2, "val": False, "plots": False},
            ["rect=True", "copy_paste=0.3", "close_mosaic=2 with epochs=2"],
        ),
        ("val", {"augment": True, "quantize": 16}, ["augment=True", "half precision"]),
        ("predict", {"iou": 0.2, "quantize": 16}, ["iou=0.2", "half precision"]),
    ],
)
def test_the_modes_say_it(mode, options, lines, said, shapes, tmp_path):
    run(mode, RTDETR("rtdetr-tiny.yaml"), shapes, tmp_path, **options)
    for line in lines:
        assert sum(line in each for each in said) == 1, (line, said)


def test_other_models_keep_what_works_with_them(said, tmp_path):
    YOLO("yolo11n.yaml").predict(ASSETS / "bus.jpg", imgsz=64, iou=0.2, augment=False, device="cpu", project=tmp_path)
    assert not any("does nothing" in line for line in said)


@pytest.mark.parametrize("classes", [[7], 3, [0, -1], [1.5]])
def test_classes_that_there_are_not(classes, shapes, tmp_path):
    model = RTDETR("rtdetr-tiny.yaml")
    model.model.names = {0: "a", 1: "b", 2: "c"}
    for mode in ("train", "predict"):
        with pytest.raises((Refused, TypeError), match=r"classes="):
            run(mode, model, shapes, tmp_path, classes=classes)


@pytest.mark.parametrize("classes", [0, [0, 2], (1,), range(2), np.array([0, 1]), [np.int64(2)], None])
def test_classes_that_there_are(classes):
    arguments.check_classes(types.SimpleNamespace(classes=classes), {0: "a", 1: "b", 2: "c"})
    arguments.check_classes(types.SimpleNamespace(classes=[2], single_cls=True), {0: "item"})


def test_another_model_is_no_rtdetr(tmp_path):
    YOLO("yolo11n.yaml").save(tmp_path / "x.pt")
    with pytest.raises(Refused, match=r"x\.pt is a model of YOLO.*YOLO\("):
        RTDETR(tmp_path / "x.pt")


def test_a_typo_is_one_line(monkeypatch, shapes):
    for call in (
        lambda: RTDETR("rtdetr-tiny.yaml").train(data=shapes, epoch=3),
        lambda: cfg.entrypoint("yolo train epoch=3"),
        lambda: cfg.entrypoint("yolo train epochs3"),
    ):
        with pytest.raises(SyntaxError, match="'epoch.*' is not a valid YOLO argument") as e:
            call()
        assert e.value.plain and "\n" not in str(e.value)


@pytest.mark.nightly
def test_denoising_with_compile(monkeypatch, shapes, tmp_path):
    """The compiler is replaced by the identity: what matters is what the decoder sees."""
    from ultralytics.engine import trainer
    from ultralytics.models.utils import ops

    seen, make_group = [], ops.get_cdn_group

    def spy(*args, **kwargs):
        group = make_group(*args, **kwargs)
        seen.append(group[0] is not None)
        return group

    monkeypatch.setattr(ops, "get_cdn_group", spy)
    monkeypatch.setattr(trainer, "attempt_compile", lambda m, **_: m)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = RTDETR("rtdetr-tiny.yaml")
        model.add_callback("on_train_batch_end", lambda t: losses.append(float(t.loss)))
        run("train", model, shapes, tmp_path, compile=compiled, val=False, plots=False, mosaic=0.0)
    half = len(losses) // 2
    assert losses[:half] == pytest.approx(losses[half:], rel=1e-4) and half == 4
    assert seen.count(True) == 8
    assert type(YOLO(model.trainer.last).model.model[-1]).__name__ == "RTDETRDecoder"


def test_what_layers_keep_of_inference_mode_is_used_in_training(shapes, tmp_path):
    """As a logger does that traces the model before the first step, and a layer that keeps a mask."""
    model = RTDETR("rtdetr-tiny.yaml")

    class Keeps(torch.nn.Module):
        mask = None

        def forward(self, x):
            if self.mask is None:
                self.mask = torch.ones_like(x[:1])
            return x * self.mask

    def trace(trainer):
        trainer.model.model[2].add_module("keeps", Keeps())
        trainer.model.model[2].register_forward_hook(lambda m, _, output: m.keeps(output))
        with torch.inference_mode():
            trainer.model.eval()(torch.rand(1, 3, 64, 64))

    model.add_callback("on_train_start", trace)
    run("train", model, shapes, tmp_path, plots=False, mosaic=0.0, val=False)
    net = RTDETR("rtdetr-tiny.yaml").model
    net.nc = 3
    with torch.inference_mode():
        net.eval()(torch.rand(1, 3, 64, 64))
    batch = {"cls": torch.zeros(1, 1), "bboxes": torch.full((1, 4), 0.4), "batch_idx": torch.zeros(1)}
    loss, _ = net.train().loss({"img": torch.rand(1, 3, 64, 64), **batch})
    loss.sum().backward()


def test_boxes_are_clipped_and_a_model_can_be_copied_after_a_prediction():
    import copy
    import pickle

    model = RTDETR("rtdetr-tiny.yaml")
    (result,) = model.predict(ASSETS / "bus.jpg", imgsz=64, conf=0.0, verbose=False)
    height, width = cv2.imread(str(ASSETS / "bus.jpg")).shape[:2]
    x1, y1, x2, y2 = result.boxes.xyxy.T
    assert min(x1.min(), y1.min()) >= 0 and x2.max() <= width and y2.max() <= height
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        (again,) = other.predict(ASSETS / "bus.jpg", imgsz=64, conf=0.0, verbose=False)
        assert torch.equal(again.boxes.data, result.boxes.data)
