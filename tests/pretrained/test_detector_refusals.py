"""Files and folders that are no RT-DETR, are damaged or run code are refused in one line."""

import json
import os
import shutil

import pytest
import torch
from small_detector import official, small  # noqa: F401 - fixtures

from ultralytics import RTDETR, settings
from ultralytics.fork.errors import Refused
from ultralytics.fork.pretrained.detectors import load_detector
from ultralytics.nn.tasks import load_checkpoint


def test_a_name_needs_a_network_or_a_folder(small):
    with pytest.raises(ConnectionError, match=r"hf/somebody/none: .*config.json and model.safetensors.*somebody--none"):
        load_detector("hf/somebody/none")
    with pytest.raises(Refused, match="hf/ORGANISATION/NAME"):
        load_detector("hf/none")
    shutil.copytree(small[0], f"{settings['weights_dir']}/somebody--r18")
    assert load_detector("hf/somebody/r18")[0].names[0] == "disc"


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("must-not-be",)


def change(tensors, kind):
    """Make what is not an RT-DETR out of one that is."""
    if kind == "LAB":
        return {**tensors, "backbone.stem.stem1.lab.scale": torch.ones(1)}
    if kind == "D-FINE":
        return {**tensors, "decoder.pre_bbox_head.layers.0.weight": torch.zeros(1)}
    if kind == "missing":
        return {key: t for key, t in tensors.items() if key != "decoder.dec_score_head.1.weight"}
    if kind == "unknown":
        return {**tensors, "decoder.gate.weight": torch.zeros(1)}
    if kind == "shape":
        return {**tensors, "decoder.query_pos_head.layers.0.weight": torch.zeros(7, 4)}
    return {key: t for key, t in tensors.items() if key.startswith("decoder.dec_score_head.")}


@pytest.mark.parametrize(
    "kind, message",
    [
        ("D-FINE", "is a D-FINE, not an RT-DETR; expected"),
        ("LAB", "a tensor backbone.stem.stem1.lab.scale, which no RT-DETR has"),
        ("missing", "no tensor decoder.dec_score_head.1.weight"),
        ("unknown", "a tensor decoder.gate.weight, which no RT-DETR has"),
        ("shape", r"query_pos_head.layers.0.weight is \[7, 4\]; .* \[64, 4\]"),
        ("heads", "no tensor .* not a whole RT-DETR"),
    ],
)
def test_other_models_are_refused(official, tmp_path, kind, message):
    file = tmp_path / "x.pth"
    torch.save({"ema": {"module": change(official, kind)}}, file)
    for load in (RTDETR, load_checkpoint):
        with pytest.raises(ValueError, match=message) as error:
            load(file)
        assert "x.pth" in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_damaged_or_run_code_are_refused(small, official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": {"module": official}, "hook": RunsCode()}, "code.pth")
    with pytest.raises(ValueError, match="code.pth cannot be opened: .*mkdir"):
        load_checkpoint("code.pth")
    assert not (tmp_path / "must-not-be").exists()
    torch.save({"ema": {"module": official}}, "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"short.pth"):
        load_checkpoint("short.pth")
    folder = tmp_path / "folder"
    shutil.copytree(small[0], folder)
    tensors = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(tensors[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole .safetensors file"):
        RTDETR(folder)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model_type", "detr", "`model_type` is 'detr'; expected rt_detr or rt_detr_v2"),
        ("normalize_before", True, "`normalize_before` is True; RT-DETR is built here with False"),
        ("activation_function", "relu", "`activation_function` is 'relu'"),
        ("backbone_config", {"downsample_in_bottleneck": True}, "`downsample_in_bottleneck` is True"),
        ("backbone_config", {"hidden_act": "silu"}, "`hidden_act` is 'silu'"),
        ("decoder_method", "cubic", "`decoder_method` is 'cubic'; expected default or discrete"),
    ],
)
def test_configurations_of_other_models_are_refused(small, tmp_path, key, value, message):
    shutil.copytree(small[0], tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(Refused, match=f"config.json: {message}"):
        load_detector(tmp_path / "folder")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("num_queries", None, "`num_queries` is None; expected a whole number"),
        ("num_queries", -1, "`num_queries` is -1"),
        ("num_queries", 1.5, "`num_queries` is 1.5"),
        ("decoder_offset_scale", "far", "`decoder_offset_scale` is far"),
        ("id2label", {"0": "disc"}, "1 names of classes, but scores of 3"),
    ],
)
def test_settings_that_no_decoder_can_have_are_refused(small, tmp_path, key, value, message):
    shutil.copytree(small[0], tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(Refused, match=message):
        load_detector(tmp_path / "folder")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_points_that_are_no_numbers_are_refused(official, tmp_path, value):
    official["decoder.decoder.layers.0.cross_attn.num_points_scale"] = torch.full((12,), value)
    torch.save({"model": official}, tmp_path / "x.pth")
    with pytest.raises(Refused, match="num_points_scale is not 1 / n"):
        load_detector(tmp_path / "x.pth")
