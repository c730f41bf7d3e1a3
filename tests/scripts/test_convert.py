"""Detectors in other forms: the command, what it refuses, and the folder of `format=safetensors`."""

import sys

import pytest
import torch
from conftest import lively

import convert
from ultralytics import RTDETR, YOLO
from ultralytics.fork.errors import Refused
from ultralytics.fork.export.convert_detector import write_official
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML


@pytest.fixture(scope="module")
def r18(tmp_path_factory):
    """A checkpoint of an R18 whose classes have names of their own."""
    torch.manual_seed(0)
    model = lively("rtdetr-r18")
    model.model.names = {i: f"kind {i}" for i in range(80)}
    file = tmp_path_factory.mktemp("convert") / "r18.pt"
    model.save(file)
    return file


@pytest.mark.parametrize(
    "kind, out", [("official", "a/r18.pth"), ("huggingface", "a/folder"), ("safetensors", "a/folder")]
)
def test_command(r18, tmp_path, monkeypatch, capsys, kind, out):
    """The written model is opened as any other, with its classes."""
    monkeypatch.setattr(sys, "argv", ["convert.py", str(r18), "--to", kind, "--out", str(tmp_path / out)])
    convert.main()
    assert "the same boxes and scores" in capsys.readouterr().out
    again = RTDETR(tmp_path / out)
    expected = load_checkpoint(r18)[0]
    assert again.names == {i: f"kind {i}" for i in range(80)}
    assert convert.compare_models(expected, again.model) < 1e-6
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [(tmp_path / out).name]
    with pytest.raises(SystemExit, match="exists; name another --out"):
        convert.main()


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("rtdetr-r18-FLA", "official", "row 5 of this model, FocusedLinearAttention, is not one of the official"),
        ("rtdetr-tiny-MQA", "huggingface", "row 0 of this model, ResNetLayer_MQA"),
        ("rtdetr-tiny", "official", "an eps of 0.001, the official ones 1e-05.*norm_eps: 1e-05"),
        ("yolo26n", "official", "is not an RT-DETR"),
    ],
)
def test_models_that_have_no_such_form(name, kind, message, tmp_path):
    YOLO(f"{name}.yaml").save(tmp_path / "a.pt")
    out = tmp_path / ("b.pth" if kind == "official" else "b")
    with pytest.raises(Refused, match=message):
        convert.convert(str(tmp_path / "a.pt"), kind, out)
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1


def test_a_fused_model_has_no_official_form(r18, tmp_path):
    model = load_checkpoint(r18)[0].fuse(verbose=False)
    with pytest.raises(Refused, match="the layers of this model are fused"):
        write_official(model, tmp_path / "r18.pth")


def test_names_of_what_is_written(r18, tmp_path):
    with pytest.raises(Refused, match="a file that ends in .pth"):
        convert.convert(str(r18), "official", tmp_path / "folder")
    with pytest.raises(Refused, match="writes a folder"):
        convert.convert(str(r18), "safetensors", tmp_path / "file.pth")


def test_a_model_that_differs_is_not_kept(r18, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "compare_models", lambda *_: 0.1)
    with pytest.raises(Refused, match="differs by 0.1; nothing was kept"):
        convert.convert(str(r18), "official", tmp_path / "r18.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["rtdetr-tiny-FLA", "rtdetr-tiny-EMO", "yolo26n-seg"])
def test_export_as_a_folder_without_a_pickle(name, tmp_path):
    """Any model, of ours or upstream's, comes back with its tensors, classes and task."""
    model = YOLO(f"{name}.yaml")
    model.save(tmp_path / "best.pt")
    model = YOLO(tmp_path / "best.pt")
    norm = next(m for m in model.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.eps = 2e-4  # as a backbone of timm's has its own
    folder = model.export(format="safetensors", imgsz=64)
    assert folder == str(tmp_path / "best_safetensors")
    again = YOLO(folder)
    assert type(again) is type(model) and again.task == model.task and again.names == model.names
    ours, theirs = model.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert next(m for m in again.model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eps == 2e-4
    image = (torch.rand(64, 96, 3) * 255).byte().numpy()
    found = [m.predict(image, imgsz=96, conf=0.001, verbose=False)[0].boxes.data for m in (model, again)]
    assert torch.equal(*found)
    model.model.fuse(verbose=False)
    with pytest.raises(Refused, match="layers of this model are fused"):
        model.export(format="safetensors", imgsz=64)


def test_what_a_model_file_does_not_say_is_refused(tmp_path):
    """An activation that was changed by hand would be lost."""
    model = YOLO("yolo26n.yaml")
    model.model.model[0].act = torch.nn.ReLU()
    model.save(tmp_path / "best.pt")
    with pytest.raises(Refused, match="computes something else than its model file builds"):
        YOLO(tmp_path / "best.pt").export(format="safetensors")
    assert not (tmp_path / "best_safetensors").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "fly"}, "`task: fly`, expected one of detect"),
        ({"norms": {"model.99.bn": [1e-5, 0.1]}}, "`norms: model.99.bn` is not a batch norm"),
        ({"nc": 7}, "3 `names:` for 7 classes"),
        ({"nc": 7, "names": None}, "is not a tensor of the model in model.yaml, or is missing"),
        ({"head": [[-1, 1, "Nothing", []]]}, "no module is named 'Nothing'"),
    ],
)
def test_folders_that_are_damaged(tmp_path, change, message):
    YOLO("rtdetr-tiny.yaml").save(tmp_path / "best.pt")
    folder = YOLO(tmp_path / "best.pt").export(format="safetensors")
    file = tmp_path / "best_safetensors" / "model.yaml"
    YAML.save(file, {**YAML.load(file), **change})
    with pytest.raises(ValueError, match=message) as error:
        YOLO(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argument", [{"decoder_layers": 1}, {"half": True}, {"num_queries": 20}, {"dynamic": True}])
def test_arguments_that_would_change_the_model_are_refused(tmp_path, argument):
    YOLO("rtdetr-tiny.yaml").save(tmp_path / "best.pt")
    with pytest.raises(ValueError, match="writes the model as it is"):
        YOLO(tmp_path / "best.pt").export(format="safetensors", **argument)
    assert not (tmp_path / "best_safetensors").exists()


def test_the_image_size_of_the_training_stays(r18, tmp_path):
    model = load_checkpoint(r18)[0]
    torch.save({"model": model, "train_args": {"imgsz": 96}}, tmp_path / "a.pt")
    convert.convert(str(tmp_path / "a.pt"), "safetensors", tmp_path / "folder")
    assert RTDETR(tmp_path / "folder").overrides["imgsz"] == 96
