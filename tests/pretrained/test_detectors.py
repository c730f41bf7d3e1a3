"""RT-DETRs of others give the outputs of Hugging Face's, and official files open here and are written again."""

import json
import shutil
import zipfile

import pytest
import torch
from conftest import ROOT, mark_nightly
from huggingface_models import (
    SIZES,
    draw_image,
    largest_difference,
    make_model,
    outputs,
    randomise,
    share_of_equal_queries,
)
from safetensors.torch import load_file, save_file
from small_detector import official, small  # noqa: F401 - fixtures

from ultralytics import RTDETR
from ultralytics.fork.export.convert_detector import list_official_tensors, write_hugging_face, write_official
from ultralytics.fork.pretrained.detector_names import clean_official, from_hugging_face, to_hugging_face
from ultralytics.fork.pretrained.detectors import is_detector, load_detector
from ultralytics.nn.tasks import RTDETRDetectionModel, load_checkpoint
from ultralytics.utils import YAML

MODELS = ROOT / "cfg_custom" / "models"


def read_none(x):
    """Rows in which `None`, which YAML reads as a text, is None."""
    return [read_none(item) for item in x] if isinstance(x, list) else None if x == "None" else x


def shipped_rows(name):
    """The rows of a shipped file."""
    yaml = YAML.load(MODELS / f"{name}.yaml")
    return read_none(yaml["backbone"]), read_none(yaml["head"])


CASES = [
    ("r18", 1, 80, {}),
    ("r18", 2, 3, {}),
    ("r18", 2, 3, {"decoder_method": "discrete"}),
    ("r34", 1, 3, {}),
    ("r50m", 1, 80, {}),
    ("r50", 2, 80, {}),
    ("l", 2, 3, {}),
    ("r101", 1, 3, {}),
    ("x", 2, 80, {}),
]
LARGE = CASES[-2:]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.nightly if case in LARGE else ()) for case in CASES],
    ids=lambda case: f"{case[0]}-v{case[1]}-{case[2]}{'-dsp' if case[3] else ''}",
)
def test_outputs_are_those_of_transformers(case, tmp_path, often):
    """The rows are those of the shipped file, and boxes and logits are equal, query by query."""
    size, version, nc, others = case
    torch.manual_seed(0)
    theirs = make_model(size, version, nc, **others)
    theirs.save_pretrained(tmp_path)
    ours, _ = load_detector(tmp_path)
    name = f"rtdetr{'v2' if version == 2 else ''}-{size}{'-dsp' if others else ''}"
    backbone, head = shipped_rows(name)
    assert ours.yaml["backbone"] == backbone
    assert ours.yaml["head"][:-1] == head[:-1]
    expected = head[-1]
    if size == "r50m":  # Hugging Face's models have no layer to read but the last
        expected[3] = expected[3][:1]
    assert ours.yaml["head"][-1] == expected
    assert {m.eps for m in ours.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-5}

    if not others:  # to the nearest position: rounding decides between neighbours
        assert share_of_equal_queries(ours, theirs, draw_image(1, 96, 160), 1e-4) > 0.97
    ours.double(), theirs.double()
    for shape in often([(128, 192)], [(416, 640), (640, 640)]):
        image = draw_image(1, *shape, torch.double)
        assert largest_difference(ours, theirs, image) < 1e-6
    boxes, scores = outputs(theirs, image)
    assert boxes.std() > 0.1 and scores.std(1).min() > 0.1 and scores.std(2).mean() > 0.1


@pytest.mark.parametrize(
    "name",
    mark_nightly(
        [
            "rtdetr-r18",
            "rtdetr-r34",
            "rtdetr-r50m",
            "rtdetr-r50",
            "rtdetr-r101",
            "rtdetrv2-r18-dsp",
            "rtdetrv2-r50m",
            "rtdetrv2-l",
            "rtdetrv2-x",
            "rtdetr-r18-p2",
        ],
        {"rtdetr-r18-p2", "rtdetrv2-r18-dsp", "rtdetr-r50m", "rtdetrv2-l"},
    ),
)
def test_what_is_written_opens_elsewhere(name, tmp_path):
    """Hugging Face's library and our own reader of official files give what the model gives."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    torch.manual_seed(0)
    ours = RTDETRDetectionModel(f"{name}.yaml", nc=3, verbose=False).eval()
    randomise(ours)
    ours.names = {0: "disc", 1: "square", 2: "triangle"}
    write_hugging_face(ours, tmp_path / "folder")
    write_official(ours, tmp_path / "file.pth")
    theirs, info = AutoModelForObjectDetection.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == ours.names
    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert (processor.size.height, processor.size.width, processor.do_normalize) == (640, 640, False)
    again, _ = load_detector(tmp_path / "file.pth")
    assert (again.yaml["backbone"], read_none(again.yaml["head"])) == shipped_rows(name) and again.names == ours.names
    image = draw_image(1, 160, 224, torch.double)
    ours.double(), theirs.double().eval(), again.double()
    assert largest_difference(ours, theirs, image) < 1e-6
    assert largest_difference(again, ours, image) < 1e-6


def test_names_translate_both_ways(small):
    """Each name of Hugging Face's file comes back."""
    tensors = load_file(small[0] / "model.safetensors")
    again = to_hugging_face(from_hugging_face(tensors))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_names_in_memory_are_read(small):
    """The library's names in memory are others than in its files; a state dict that somebody saves has them."""
    state = small[1].state_dict()
    assert any(".mlp.fc1." in key for key in state) and any(".o_proj." in key for key in state)
    assert (
        clean_official(from_hugging_face(state)).keys()
        == clean_official(from_hugging_face(load_file(small[0] / "model.safetensors"))).keys()
    )


def test_official_files(small, official, tmp_path, caplog):
    """EMA comes first, whatever training left beside it; names of several processes and of HGNetv2 are read."""
    ours = load_detector(small[0])[0]
    assert "encoder.input_proj.0.0.weight" in official and "decoder.enc_output.0.weight" in official
    assert "backbone.res_layers.1.blocks.0.short.conv.norm.weight" in official
    assert official["decoder.denoising_class_embed.weight"].shape == (4, 32)
    other = {key: torch.zeros_like(t) for key, t in official.items()}
    training = {
        "date": "2026-01-01",
        "last_epoch": 71,
        "model": other,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "ema": {"module": {f"module.{key}": t for key, t in official.items()}, "updates": 7, "warmups": 2000},
    }
    torch.save(training, tmp_path / "training.pth")
    model, checkpoint = load_detector(tmp_path / "training.pth")
    assert checkpoint["model"] is model and "averaged" not in caplog.text
    assert all(torch.equal(t, ours.state_dict()[key]) for key, t in model.state_dict().items())
    torch.save({"model": official}, tmp_path / "bare.pth")
    assert torch.equal(load_detector(tmp_path / "bare.pth")[0].state_dict()["model.0.convs.0.conv.weight"],
                       ours.state_dict()["model.0.convs.0.conv.weight"])  # fmt: skip
    assert "no averaged weights" in caplog.text
    save_file(official, tmp_path / "tensors.safetensors")
    assert load_detector(tmp_path / "tensors.safetensors")[0].yaml["head"][:-1] == ours.yaml["head"][:-1]


def test_official_file_of_r50m_is_read_at_its_third_layer(tmp_path):
    model = RTDETRDetectionModel("rtdetr-r50m.yaml", nc=80, verbose=False)
    tensors = list_official_tensors(model)
    torch.save({"ema": {"module": tensors}}, tmp_path / "r50m.pth")
    again, _ = load_detector(tmp_path / "r50m.pth")
    assert (again.yaml["backbone"], again.yaml["head"]) == shipped_rows("rtdetr-r50m")
    assert again.names[0] == "person" and again.names[79] == "toothbrush"


def test_version_and_points_are_read_off_an_official_file(tmp_path, caplog):
    """v2's buffer tells the version and the points of each level; only the name tells of discrete sampling."""
    yaml = YAML.load(MODELS / "rtdetrv2-r18.yaml")
    yaml["head"][-1][3] = ["nc", 256, 300, [4, 4, 2], 8, 3]
    model = RTDETRDetectionModel(yaml, nc=3, verbose=False)
    write_official(model, tmp_path / "made.pth")
    content = torch.load(tmp_path / "made.pth", weights_only=True)
    assert content["ema"]["module"]["decoder.anchors"].shape == (1, 8400, 4)
    del content["addmodules"]  # as the official code writes it
    torch.save(content, tmp_path / "rtdetrv2_r18vd_dsp_3x.pth")
    torch.save(content, tmp_path / "rtdetrv2_r18vd_3x.pth")
    read = load_detector(tmp_path / "rtdetrv2_r18vd_dsp_3x.pth")[0]
    assert read.yaml["head"][-1][3] == ["nc", 256, 300, [4, 4, 2], 8, 3, 1024, -1, "discrete"]
    assert "dsp in its name" in caplog.text
    assert load_detector(tmp_path / "rtdetrv2_r18vd_3x.pth")[0].yaml["head"][-1] == yaml["head"][-1]


def test_kinds_of_weights(small, official, tmp_path):
    assert (
        is_detector(small[0]) and is_detector(str(small[0] / "model.safetensors")) and is_detector("hf/somebody/rtdetr")
    )
    torch.save({"ema": {"module": official}}, tmp_path / "a.pth")
    assert is_detector(tmp_path / "a.pth") and not is_detector(tmp_path) and not is_detector(tmp_path / "none.pth")
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "timm.pth")
    assert not is_detector(tmp_path / "timm.pth") and not is_detector({"a": 1})
    with zipfile.ZipFile(tmp_path / "large.pt", "w", zipfile.ZIP_DEFLATED) as archive:  # as no torch writes it
        archive.writestr("large/data.pkl", b"decoder.dec_score_head." + b"0" * 2**20)
    assert not is_detector(tmp_path / "large.pt")
    damaged = bytearray((tmp_path / "a.pth").read_bytes())
    damaged[200:300] = bytes(100)
    (tmp_path / "damaged.pth").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.pth"):
        load_checkpoint(tmp_path / "damaged.pth")


def test_the_file_that_is_named_is_the_one_that_is_read(small, tmp_path):
    """Others beside it, of other steps of a training, are not."""
    folder = tmp_path / "folder"
    shutil.copytree(small[0], folder)
    tensors = load_file(folder / "model.safetensors")
    key = "model.decoder.class_embed.0.bias"
    save_file({**tensors, key: torch.full((3,), 7.0)}, folder / "step2.safetensors", metadata={"format": "pt"})
    for path, expected in ((folder, tensors[key]), (folder / "model.safetensors", tensors[key])):
        assert torch.equal(load_detector(path)[0].model[-1].dec_score_head[0].bias, expected)
    assert (load_detector(folder / "step2.safetensors")[0].model[-1].dec_score_head[0].bias == 7).all()
    (folder / "model.safetensors").rename(folder / "part1.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "part1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_detector(folder)[0].model[-1].dec_score_head[0].bias, tensors[key])


def test_exports_lie_beside_the_folder(small, tmp_path):
    folder = tmp_path / "run.1"
    shutil.copytree(small[0], folder)
    assert RTDETR(folder).export(format="safetensors") == str(tmp_path / "run.1_safetensors")
    assert RTDETR(folder).export(format="torchscript", imgsz=96, verify=False) == str(tmp_path / "run.1.torchscript")


def test_sizes_cover_the_shipped_files():
    shipped = {file.stem for file in MODELS.glob("rtdetr*-r[0-9]*.yaml")} | {"rtdetrv2-l", "rtdetrv2-x"}
    official_models = {name for name in shipped if not name.partition("-r18-")[2] or name.endswith("-dsp")}
    sizes = {name.removesuffix("-dsp").partition("-")[2] for name in official_models}
    assert sizes == SIZES.keys()
