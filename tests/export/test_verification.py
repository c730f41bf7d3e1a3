"""An export runs in its own runtime and finds what PyTorch finds, or the command says why not."""

import ast
import shutil
import sys
from pathlib import Path

import onnx
import pytest
import torch
from conftest import MODELS, TINY, lively, mark_nightly
from predicted_labels import write_predicted_labels

from ultralytics import RTDETR, YOLO
from ultralytics.fork.export import verification
from ultralytics.fork.export.compare_detections import BOUNDS
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import ASSETS

SIZE = 96
NEWEST = torch.onnx._constants.ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET  # of the exporter that upstream uses
FORMATS = {
    "torchscript": {"format": "torchscript"},
    "torchscript-dynamic": {"format": "torchscript", "dynamic": True},
    "onnx": {"format": "onnx"},
    "onnx-17": {"format": "onnx", "opset": 17, "simplify": False, "batch": 2},
    "onnx-newest": {"format": "onnx", "opset": NEWEST},
    "onnx-dynamic": {"format": "onnx", "dynamic": True},
    "onnx-dynamic-17": {"format": "onnx", "dynamic": True, "opset": 17, "simplify": False},
    "onnx-fp16": {"format": "onnx", "quantize": 16},
    "onnx-int8": {"format": "onnx", "quantize": 8},
    "openvino": {"format": "openvino"},
    "openvino-dynamic": {"format": "openvino", "dynamic": True},
    "openvino-fp16": {"format": "openvino", "quantize": 16},
    "openvino-int8": {"format": "openvino", "quantize": 8},
    "mnn": {"format": "mnn"},
    "mnn-fp16": {"format": "mnn", "quantize": 16},
    "mnn-int8": {"format": "mnn", "quantize": 8},
    "mnn-dynamic": {"format": "mnn", "dynamic": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of each tiny model, under a name that says nothing."""
    folder = tmp_path_factory.mktemp("exports")
    found = {name: folder / name.removeprefix("rtdetr-") / "mine.pt" for name in TINY}
    for name, file in found.items():
        file.parent.mkdir()
        lively(name, settled=True).save(file)
        lively(name).save(file.with_name("calm.pt"))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """A plain tiny model that has seen the small data set for an epoch."""
    model = RTDETR("rtdetr-tiny.yaml")
    folder = tmp_path_factory.mktemp("trained")
    model.train(data=shapes, epochs=1, imgsz=64, batch=8, plots=False, project=folder, name="run", val=False)
    return folder / "run" / "weights" / "last.pt"


def metadata(file) -> dict:
    """Read what an export says of itself, without its runtime."""
    found = BaseBackend.read_metadata(file)["parity"]
    return ast.literal_eval(found) if isinstance(found, str) else found  # an ONNX property is text


REPEATED = "onnx-int8", "openvino-int8", "mnn", "mnn-dynamic", "onnx-dynamic", "onnx-dynamic-17"
TURNS = "rtdetr-tiny-FLA", "rtdetr-tiny-Biformer", "rtdetr-tiny-MQA", "rtdetr-tiny"


def mark_case(name: str, form: str) -> tuple | pytest.MarkDecorator:
    """Choose the tier of a case: each model in ONNX, each other form of one model, all others at night.

    So are the forms that tests below export, and what joins two others.
    """
    if (name, form) == ("rtdetr-tiny-FLA", "onnx"):
        return pytest.mark.end_to_end("export")
    turn = TURNS[list(FORMATS).index(form) % len(TURNS)]
    return () if form == "onnx" or (name == turn and form not in REPEATED) else pytest.mark.nightly


CASES = [pytest.param(name, form, marks=mark_case(name, form)) for name in TINY for form in FORMATS]


@pytest.mark.parametrize("name, form", CASES)
def test_every_tiny_model_in_every_format(files, shapes, name, form):
    """And the file tells what it is, whatever its name."""
    bits = 8 if "int8" in form else 16 if "fp16" in form else 32
    calibrated = bits == 8 and "mnn" not in form
    # So small that each position is a query: among the many equal scores of untrained weights others choose otherwise
    size = {"imgsz": SIZE if bits == 32 else (32, 64), **({"data": shapes} if calibrated else {})}
    # INT8 has not the precision for random weights that all count
    model = files[name] if bits > 8 else files[name].with_name("calm.pt")
    file = YOLO(model).export(**size, **FORMATS[form])
    found = metadata(file)
    assert form != "onnx" or list_operators(onnx.load(file)) <= TENSORRT
    assert len(found["inputs"]) == (4 if "dynamic" in form else 2)
    for row in found["inputs"]:
        # Of a photograph, INT8 that was calibrated on other images is only asked for finite numbers
        assert row["detections"] > 0 and row["finite"]
        assert row["matched"] + row["tied"] >= found["bounds"]["share"] * row["detections"] or (
            calibrated and "jpg" in row["input"]
        )
    exact = bits == 32
    assert found["bounds"] == vars(BOUNDS[bits])
    assert not exact or all(row["detections"] >= 60 and row["tied"] <= 2 for row in found["inputs"])
    model, original = YOLO(file), YOLO(files[name])
    assert type(model) is RTDETR
    options = {"imgsz": size["imgsz"], "conf": 0.0, "verbose": False}
    boxes, expected = (m.predict(ASSETS / "zidane.jpg", **options)[0].boxes for m in (model, original))
    assert len(boxes) == len(expected) == 60
    if exact:
        assert boxes.conf.sort().values == pytest.approx(expected.conf.sort().values, abs=1e-3)


def list_operators(model: onnx.ModelProto) -> set[str]:
    """List the operators of a graph."""
    return {node.op_type for node in model.graph.node}


LARGE = [name for name in MODELS if name not in TINY]


@pytest.mark.nightly
@pytest.mark.parametrize("name", LARGE)
def test_every_large_model_in_onnx(name, tmp_path, monkeypatch):
    """At a small size: the graph's operators are what matters, and that the weights are in it; regions are ragged."""
    monkeypatch.chdir(tmp_path)
    file = lively(name).export(format="onnx", imgsz=(64, 480), opset=17, simplify=False)
    assert all(row["matched"] + row["tied"] == row["detections"] > 0 for row in metadata(file)["inputs"])
    graph = onnx.load(file, load_external_data=False)
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == 17
    operators = list_operators(graph)
    # TensorRT has all of them, as its documented list of ONNX operators says; none that a release must be built for
    assert operators <= TENSORRT, operators - TENSORRT


TENSORRT = {
    "Abs",
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "Cos",
    "Div",
    "Einsum",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "HardSigmoid",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "AveragePool",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pad",
    "Pow",
    "PRelu",
    "Range",
    "Reciprocal",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Shape",
    "Sigmoid",
    "Sin",
    "Slice",
    "Softmax",
    "Softplus",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
}


@pytest.mark.parametrize("form", mark_nightly(("onnx", "openvino"), ()))
def test_int8_with_calibration(trained, shapes, tmp_path, form):
    """And what the model is most certain of is found again."""
    file = YOLO(trained).export(format=form, quantize=8, data=shapes, imgsz=64)
    found = metadata(file)
    assert found["bounds"] == vars(BOUNDS[8])
    assert [row["input"] for row in found["inputs"]] == ["bus.jpg", "4 images of small.yaml"]
    assert type(YOLO(file)) is RTDETR
    images = shapes.parent / "data" / "images" / "val"
    labelled = write_predicted_labels(trained, images, tmp_path / "labelled", 64, count=20)
    assert YOLO(file).val(data=labelled, imgsz=64, plots=False, project=tmp_path).box.map50 > 0.3


def test_a_wrong_export_is_an_error_and_is_not_kept(files, tmp_path, monkeypatch):
    """Here the runtime's boxes are shifted by two pixels; `verify=False` keeps the file."""
    forward = AutoBackend.forward

    def shifted(self, x, *args, **kwargs):
        y = forward(self, x, *args, **kwargs)
        y = y[0] if isinstance(y, (list, tuple)) else y
        y = torch.as_tensor(y).clone()
        y[..., 0] += 2 / SIZE
        return y

    monkeypatch.setattr(AutoBackend, "forward", shifted)
    model = YOLO(shutil.copy(files["rtdetr-tiny"], tmp_path / "mine.pt"))
    file = tmp_path / "mine.torchscript"
    with pytest.raises(ValueError, match=r"mine\.torchscript .*bus\.jpg: 0 of 60 .*verify=False"):
        model.export(format="torchscript", imgsz=SIZE)
    assert not file.exists()
    model.export(format="torchscript", imgsz=SIZE, verify=False)
    assert file.exists() and "parity" not in BaseBackend.read_metadata(file)
    with pytest.raises(ValueError, match="verify='maybe'.*True or False"):
        model.export(format="torchscript", imgsz=SIZE, verify="maybe")


def test_an_export_that_does_not_run_is_an_error_and_is_not_kept(files, monkeypatch):
    monkeypatch.setattr(AutoBackend, "forward", lambda *_: 1 / 0)
    folder = files["rtdetr-tiny-MQA"].parent
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match=r"mine\.torchscript .*ZeroDivisionError.*verify=False"):
        YOLO(files["rtdetr-tiny-MQA"]).export(format="torchscript", imgsz=SIZE)
    assert sorted(folder.iterdir()) == before


FAILURES = [(form, error) for form in ("onnx", "openvino") for error in (ValueError("no"), KeyboardInterrupt())]
KEPT = [FAILURES[0], FAILURES[3]]


def name_value(value: object) -> str:
    """Name a parameter's value: a text is its own name."""
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize("form, error", mark_nightly(FAILURES, KEPT), ids=name_value)
def test_what_was_exported_before_stays_where_another_export_fails(files, tmp_path, monkeypatch, form, error):
    """Whatever it holds, even where the new one goes through ONNX, and at Ctrl-C."""
    model = shutil.copy(files["rtdetr-tiny"], tmp_path / "mine.pt")
    (tmp_path / "mine_openvino_model").mkdir()
    for name in ("mine.onnx", "mine_openvino_model/mine.xml", "mine_openvino_model/mine.bin"):
        (tmp_path / name).write_text(f"an older {name}")
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(AutoBackend, "forward", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        YOLO(model).export(format=form, imgsz=SIZE)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == contents
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.nightly)])
def test_what_is_not_finite_proves_nothing(files, monkeypatch, value):
    """Not even where the model finds nothing in the photographs, so that nothing is missing."""
    model = YOLO(files["rtdetr-tiny-FLA"])
    for p in (head.bias for head in model.model.model[-1].dec_score_head):
        p.data.sub_(9)
    forward = AutoBackend.forward

    def spoilt(self, x, *args, **kwargs):
        y = forward(self, x, *args, **kwargs)
        return torch.full_like(torch.as_tensor(y[0] if isinstance(y, (list, tuple)) else y), value)

    monkeypatch.setattr(AutoBackend, "forward", spoilt)
    with pytest.raises(ValueError, match=r"mine\.onnx .*not all .*finite"):
        model.export(format="onnx", quantize=16, imgsz=SIZE)


def test_formats_that_cannot_say_why(files, monkeypatch):
    model = YOLO(files["rtdetr-tiny"])
    with pytest.raises(ValueError, match="format=ncnn.*format=mnn"):
        model.export(format="ncnn", imgsz=SIZE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="format=engine.*GPU.*format=onnx"):
        model.export(format="engine", imgsz=SIZE)
    with pytest.raises(ImportError, match="format=paddle.*x2paddle") as e:
        model.export(format="paddle", imgsz=SIZE)
    assert e.value.plain


@pytest.mark.nightly
def test_int8_is_calibrated_on_what_the_model_was_trained_on(files, trained, tmp_path, capsys, caplog):
    model = YOLO(shutil.copy(trained, tmp_path / "mine.pt"))
    found = metadata(model.export(format="openvino", quantize=8, imgsz=64))
    assert [row["input"] for row in found["inputs"]] == ["bus.jpg", "4 images of small.yaml"]
    assert "on which the model was trained" in capsys.readouterr().out + caplog.text
    with pytest.raises(ValueError, match="quantize=8 needs data="):
        YOLO(files["rtdetr-tiny"]).export(format="openvino", quantize=8, imgsz=64)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"imgsz": 0}, {"imgsz": (0, 64)}])
def test_sizes_that_are_none(files, wrong):
    with pytest.raises(ValueError, match=r"=.*0.*at least 1") as e:
        YOLO(files["rtdetr-tiny"]).export(format="torchscript", **{"imgsz": SIZE, **wrong})
    assert e.value.plain


def test_where_nothing_can_be_written(files, monkeypatch):
    def full(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    model = YOLO(files["rtdetr-tiny"])
    monkeypatch.setattr(verification.tempfile, "TemporaryDirectory", full)
    with pytest.raises(ValueError, match=r"mine\.pt.*Permission denied"):
        model.export(format="torchscript", imgsz=SIZE)


def test_a_runtime_of_another_machine_is_warned_of(files, monkeypatch, capsys, caplog):
    """What is written is kept: only there can it be tried."""
    monkeypatch.setattr(
        verification, "open_export", lambda *_: (_ for _ in ()).throw(ImportError("a part of another system"))
    )
    file = YOLO(files["rtdetr-tiny"]).export(format="torchscript", imgsz=SIZE)
    assert "is not verified: its runtime is not on this machine" in capsys.readouterr().out + caplog.text
    assert "parity" not in BaseBackend.read_metadata(file)


def test_mnn_keeps_the_onnx_file_of_before_and_its_tools_stay_silent(files, tmp_path):
    """Its way leads through ONNX; its tools would send what they do to their makers, and install a package for it."""
    model = shutil.copy(files["rtdetr-tiny"], tmp_path / "mine.pt")
    (tmp_path / "mine.onnx").write_text("an older file")
    assert Path(YOLO(model).export(format="mnn", imgsz=SIZE)).is_file()
    assert (tmp_path / "mine.onnx").read_text() == "an older file" and not list(tmp_path.glob(".*"))
    assert sys.modules["MNN.tools.utils.log"] is None and not any(name.startswith("aliyun") for name in sys.modules)


def test_the_model_that_is_compared_with_is_not_the_changed_one(files, monkeypatch):
    """A fused model that finds something else must not prove itself."""
    fuse = RTDETRDetectionModel.fuse

    def wrong(self, *args, **kwargs):
        model = fuse(self, *args, **kwargs)
        for p in model.model[-1].dec_score_head[-1].parameters():
            p.data.add_(1)
        return model

    monkeypatch.setattr(RTDETRDetectionModel, "fuse", wrong)
    with pytest.raises(ValueError, match=r"mine\.torchscript does not find"):
        YOLO(files["rtdetr-tiny-FLA"]).export(format="torchscript", imgsz=SIZE)


def test_fewer_detections_than_queries(files):
    file = YOLO(files["rtdetr-tiny"]).export(format="torchscript", imgsz=SIZE, max_det=7)
    assert all(row["matched"] == row["detections"] == 7 for row in metadata(file)["inputs"])


def test_other_models_export_as_upstream_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = YOLO("yolo11n.yaml").export(format="torchscript", imgsz=SIZE)
    assert "parity" not in BaseBackend.read_metadata(file)
