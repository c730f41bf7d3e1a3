"""An exported model is what its metadata says, whatever its name, and runs in the precision that it was exported in."""

import shutil

import pytest

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import entrypoint
from ultralytics.nn.AddModules.metadata import is_exact, stem
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.utils import ASSETS

SUFFIXES = ".torchscript", ".onnx", "_openvino_model", ".mnn"
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
    assert stem(named) == "rtdetr" and type(YOLO(named)) is RTDETR


@pytest.mark.parametrize("mode", ["predict", "val", "track"])
def test_commands(export, tmp_path, shapes, mode):
    """As a user types them, with a name that upstream takes for another model's."""
    file = tmp_path / f"fastsam-best{export.name.removeprefix('mine')}"
    (shutil.copytree if export.is_dir() else shutil.copy)(export, file)
    given = f"data={shapes} plots=False" if mode == "val" else f"source={ASSETS / 'zidane.jpg'} conf=0.01 save=True"
    if mode == "val":  # its classes are of COCO, and so is their number
        text = shapes.read_text(encoding="utf-8").splitlines()
        names = [f"  {i}: {name}" for i, name in YOLO(export.parent / "mine.pt").names.items()]
        data = tmp_path / "data.yaml"
        data.write_text("\n".join([*text[:-1], "names:", *names]), encoding="utf-8")
        given = f"data={data} plots=False"
    entrypoint(f"yolo {mode} model={file} imgsz=96 {given} project={tmp_path} name=run")
    assert (tmp_path / "run").is_dir() and (mode == "val" or (tmp_path / "run" / "zidane.jpg").is_file())


def test_another_model_is_not_taken_for_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = YOLO("yolo11n.yaml").export(format="torchscript", imgsz=96)
    shutil.move(file, "rtdetr-no.torchscript")
    assert stem("rtdetr-no.torchscript") == "yolo" and stem("rtdetr-l.pt") == "rtdetr-l"
    assert stem("FastSAM-s.onnx") == "fastsam-s"  # it is not there


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
        YOLO(exported[suffix]).predict(ASSETS / "zidane.jpg", imgsz=96, verbose=False)
    assert given[0]["INFERENCE_PRECISION_HINT"] == "f32" and given[1]["precision"] == "high"


@pytest.mark.parametrize(
    "metadata, exact",
    [
        ({"head": "RTDETRDecoder", "args": {}}, True),
        ({"head": "RTDETRDecoder", "args": {"quantize": 32}}, True),
        ({"head": "RTDETRDecoder", "args": {"quantize": 16}}, False),
        ({"head": "RTDETRDecoder", "args": {"quantize": 8}}, False),
        ({"head": "Detect", "args": {}}, False),
        ({}, False),
    ],
)
def test_only_rtdetr_in_fp32_is_exact(metadata, exact):
    assert is_exact(metadata) is exact
