"""An exported model is what its metadata says, whatever its name, and runs in the precision that it was exported in."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from predicted_labels import write_predicted_labels

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import entrypoint
from ultralytics.engine.validator import BaseValidator
from ultralytics.fork.export.metadata import keeps_fp32, model_stem
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.utils import ASSETS

SUFFIXES = ".torchscript", ".onnx", "_openvino_model", ".mnn"
SIZE = 96
NAMES = "best", "fastsam-best", "sam_best", "yolo_nas-1", "yolo11n"


@pytest.fixture(params=SUFFIXES)
def export(request, exported):
    return exported[request.param]


@pytest.fixture(params=NAMES)
def named(request, export, tmp_path):
    """An export under another name."""
    path = tmp_path / f"{request.param}{export.name.removeprefix('mine')}"
    (shutil.copytree if export.is_dir() else shutil.copy)(export, path)
    return path


def test_whatever_its_name(named):
    assert model_stem(named) == "rtdetr" and type(YOLO(named)) is RTDETR


@pytest.fixture(scope="module")
def found_by_torch(exported, tmp_path_factory) -> Callable[[str], list[list[float]]]:
    """Give a function of a mode: the rows that the checkpoint writes into its text file."""
    return cache(lambda mode: read_rows(exported[".pt"], mode, tmp_path_factory.mktemp(mode)))


def read_rows(file: Path, mode: str, folder: Path) -> list[list[float]]:
    """Run a command and read the rows of its text file: class, box, confidence, and the number of a track."""
    image = f"source={ASSETS / 'zidane.jpg'} conf=0.01 save=True save_txt=True save_conf=True"
    entrypoint(f"yolo {mode} model={file} imgsz={SIZE} {image} project={folder} name=run")
    assert (folder / "run" / "zidane.jpg").is_file()
    text = (folder / "run" / "labels" / "zidane.txt").read_text(encoding="utf-8")
    return [[float(value) for value in line.split()] for line in text.splitlines()]


@pytest.fixture
def misnamed(export, tmp_path) -> Path:
    """An export under a name that upstream takes for another model's."""
    path = tmp_path / f"fastsam-best{export.name.removeprefix('mine')}"
    (shutil.copytree if export.is_dir() else shutil.copy)(export, path)
    return path


@pytest.mark.parametrize("mode", ["predict", "track"])
def test_predict_and_track_find_what_the_checkpoint_finds(misnamed, found_by_torch, tmp_path, mode):
    """As a user types the commands."""
    rows, expected = read_rows(misnamed, mode, tmp_path), found_by_torch(mode)
    assert len(rows) == len(expected) > 5
    if mode == "track":
        assert sorted(row.pop() for row in rows) == list(range(1, len(rows) + 1))
    for row in expected:
        near = [other for other in rows if other == pytest.approx(row[:6], abs=0.012)]  # a pixel
        assert any(abs(other[5] - row[5]) < 2e-3 for other in near), row


def test_val_finds_what_the_checkpoint_finds(misnamed, labelled, tmp_path):
    """As a user types the command; the labels are the checkpoint's detections."""
    metrics = entrypoint_metrics(f"yolo val model={misnamed} imgsz={SIZE} data={labelled} plots=False", tmp_path)
    assert metrics.seen == 4 and metrics.metrics.box.map > 0.95


@pytest.fixture(scope="module")
def labelled(exported, shapes, tmp_path_factory) -> Path:
    """The data set whose labels are the checkpoint's detections."""
    root = tmp_path_factory.mktemp("labelled")
    return write_predicted_labels(exported[".pt"], shapes.parent / "data" / "images" / "val", root, SIZE, count=40)


def entrypoint_metrics(command: str, folder: Path) -> BaseValidator:
    """Run `yolo val` and give the validator that it made."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        init = BaseValidator.__init__
        patch.setattr(BaseValidator, "__init__", lambda s, *args, **kwargs: made.append(s) or init(s, *args, **kwargs))
        entrypoint(f"{command} project={folder} name=run")
    (validator,) = made
    return validator


def test_another_model_is_not_taken_for_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = YOLO("yolo11n.yaml").export(format="torchscript", imgsz=SIZE)
    shutil.move(file, "rtdetr-no.torchscript")
    assert model_stem("rtdetr-no.torchscript") == "yolo" and model_stem("rtdetr-l.pt") == "rtdetr-l"
    assert model_stem("FastSAM-s.onnx") == "fastsam-s"  # it is not there


def test_metadata_of_mnn_without_mnn(exported):
    found = BaseBackend.read_metadata(exported[".mnn"])
    assert found["head"] == "RTDETRDecoder" and len(found["parity"]["inputs"]) == 2


# Precision ------------------------------------------------------------------------------------------------------------
def test_what_was_exported_in_fp32_runs_in_fp32(exported, monkeypatch):
    """On a processor with bf16 or half precision, the runtimes would take those."""
    MNN, openvino = pytest.importorskip("MNN"), pytest.importorskip("openvino")
    given = []
    compile_model, manager = openvino.Core.compile_model, MNN.nn.create_runtime_manager

    def compiled(self, model, device_name=None, config=None, **kwargs):
        given.append(config)
        return compile_model(self, model, device_name, config, **kwargs)

    def managed(configs):
        given.append(configs[0])
        return manager(configs)

    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    monkeypatch.setattr(MNN.nn, "create_runtime_manager", managed)
    for suffix in ("_openvino_model", ".mnn"):
        YOLO(exported[suffix]).predict(ASSETS / "zidane.jpg", imgsz=SIZE, verbose=False)
    assert given[0]["INFERENCE_PRECISION_HINT"] == "f32" and given[1]["precision"] == "high"


@pytest.mark.parametrize(
    "metadata, expected",
    [
        ({"head": "RTDETRDecoder", "args": {}}, True),
        ({"head": "RTDETRDecoder", "args": {"quantize": 32}}, True),
        ({"head": "RTDETRDecoder", "args": {"quantize": 16}}, False),
        ({"head": "RTDETRDecoder", "args": {"quantize": 8}}, False),
        ({"head": "Detect", "args": {}}, False),
        ({}, False),
    ],
)
def test_only_rtdetr_in_fp32_keeps_fp32(metadata, expected):
    assert keeps_fp32(metadata) is expected


@pytest.mark.parametrize("suffix", [".pt", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_a_first_prediction_on_a_cpu_does_not_wait_for_torchvision(suffix, exported, tmp_path):
    """Which takes a second, and whose NMS an RT-DETR does not use."""
    code = (
        "import sys; from ultralytics import RTDETR\n"
        "results = RTDETR(sys.argv[1]).predict(sys.argv[2], imgsz=96, save=True, project=sys.argv[3])\n"
        "print(len(results), [name for name in ('torchvision', 'torch._dynamo') if name in sys.modules])"
    )
    given = [str(exported[suffix]), str(ASSETS / "zidane.jpg"), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 []" and list(tmp_path.rglob("zidane.jpg"))
