"""RT-DETRs of others: the outputs of Hugging Face's, official files, back again, classes, training, bad input."""

import json
import os
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

from ultralytics import RTDETR, YOLO, settings
from ultralytics.fork.errors import Refused
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


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of Hugging Face's with a small RT-DETR of three classes, and the model in it."""
    torch.manual_seed(1)
    model = make_model("small")
    model.config.id2label = {0: "disc", 1: "square", 2: "triangle"}
    folder = tmp_path_factory.mktemp("detectors") / "small"
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def official(small, tmp_path):
    """The tensors of an official v1 file, under their names there."""
    write_official(load_detector(small[0])[0], tmp_path / "made.pth")
    return torch.load(tmp_path / "made.pth", weights_only=True)["ema"]["module"]


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


def test_use_as_a_model(small, tmp_path, shapes):
    """A folder predicts, is saved as a checkpoint, and trains with the heads of classes of the same names."""
    folder = tmp_path / "r18"
    shutil.copytree(small[0], folder)
    model = YOLO(folder)
    assert type(model) is RTDETR and model.names == {0: "disc", 1: "square", 2: "triangle"}
    image = (torch.rand(96, 128, 3) * 255).byte().numpy()
    before = model.predict(image, imgsz=128, conf=0.0, verbose=False)[0].boxes.data
    model = RTDETR(str(folder))
    model.save(tmp_path / "saved.pt")
    after = RTDETR(tmp_path / "saved.pt").predict(image, imgsz=128, conf=0.0, verbose=False)[0].boxes.data
    assert after.shape == before.shape and (after[:, 4].mean() - before[:, 4].mean()).abs() < 0.01
    options = {"data": shapes, "epochs": 1, "imgsz": 64, "batch": 4, "project": tmp_path, "plots": False}
    model.train(**options, fraction=0.5, val=False, lr0=0.0, warmup_bias_lr=0.0, optimizer="SGD", exist_ok=True)
    trained = load_checkpoint(tmp_path / "train" / "weights" / "last.pt")[0]
    assert trained.yaml["norm_eps"] == 1e-5
    weight = "model.5.conv.weight"
    expected = load_detector(folder)[0].state_dict()[weight]
    assert torch.allclose(trained.state_dict()[weight], expected, atol=1e-3)


def shift(f):
    """The index of a layer of the neck, behind one that was inserted at the end of the backbone."""
    return [shift(x) for x in f] if isinstance(f, list) else f + 1 if f >= 4 else f


def test_pretrained_classes_are_matched_by_name(small, caplog):
    """The rows of the class heads go to the classes of their names; an unknown class starts anew."""
    source, _ = load_checkpoint(small[0])
    target = RTDETRDetectionModel(source.yaml, nc=2, verbose=False)
    target.names = {0: "triangle", 1: "hexagon"}
    before = target.model[-1].enc_score_head.weight.clone()
    target.load(source)
    after = target.model[-1].enc_score_head.weight
    assert torch.equal(after[0], source.model[-1].enc_score_head.weight[2]) and torch.equal(after[1], before[1])
    assert "1/2 decoder cls head rows" in caplog.text
    yaml = {**source.yaml, "backbone": [*source.yaml["backbone"], [-1, 1, "FocusedLinearAttention", [32, 4]]]}
    yaml["head"] = [[shift(f), *row] for f, *row in source.yaml["head"]]  # one layer further
    other = RTDETRDetectionModel(yaml, nc=4, verbose=False)
    other.load(source)
    assert torch.equal(other.model[4].blocks[0].cv1.conv.weight, source.model[4].blocks[0].cv1.conv.weight)
    assert "score_head" in caplog.text or "class" in caplog.text


def test_a_process_that_is_given_a_path_trains_the_model(small, shapes, tmp_path):
    """A launched process has the path only, no model."""
    from ultralytics.models.rtdetr.train import RTDETRTrainer

    options = {"model": str(small[0]), "data": str(shapes), "epochs": 1, "imgsz": 64, "batch": 4, "plots": False}
    trainer = RTDETRTrainer(overrides={**options, "project": str(tmp_path)})
    trainer.setup_model()
    expected = load_detector(small[0])[0]
    assert trainer.model.yaml["backbone"] == expected.yaml["backbone"]
    weight = "model.5.conv.weight"
    assert torch.equal(trainer.model.state_dict()[weight], expected.state_dict()[weight])


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


def run_with_the_same_noise(theirs, ours, image, objects, classes, monkeypatch):
    """The losses of a training step of both models, for the denoising queries that `transformers` draws."""
    from transformers.models.rt_detr import modeling_rt_detr as module

    from ultralytics.models.utils import ops

    drawn, draw = [], module.get_contrastive_denoising_training_group
    monkeypatch.setattr(
        module, "get_contrastive_denoising_training_group", lambda **kw: drawn.append(draw(**kw)) or drawn[-1]
    )
    labels = [{"class_labels": c, "boxes": b} for c, b in zip(classes, objects, strict=True)]
    expected = theirs.train()(image, labels=labels).loss
    ((embed, boxes, mask, meta),) = drawn
    counts = [len(b) for b in objects]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    told = {
        "dn_pos_idx": list(meta["dn_positive_idx"]),
        "dn_gt_idx": [torch.arange(n) + start for n, start in zip(counts, starts)],
        "dn_num_group": meta["dn_num_group"],
        "dn_num_split": meta["dn_num_split"],
    }
    blocked = mask if mask.dtype is torch.bool else mask < 0
    monkeypatch.setattr(ops, "get_cdn_group", lambda *_: (embed.detach(), boxes, blocked, told))
    batch = {
        "img": image,
        "batch_idx": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        "cls": torch.cat(classes)[:, None],
        "bboxes": torch.cat(objects),
    }
    ours.nc, ours.args = ours.yaml["nc"], {"loss": "official"}
    found, _ = ours.train()(batch)
    return found, expected


def test_a_training_step_has_the_loss_of_transformers(small, monkeypatch):
    """Batch norms, denoising, matching and all terms together; and the gradient that reaches the first convolution."""
    folder, theirs = small
    ours, _ = load_detector(folder)
    ours.requires_grad_(True)
    torch.manual_seed(3)
    objects = [torch.rand(n, 4) * 0.3 + 0.3 for n in (3, 1)]
    classes = [torch.tensor([0, 2, 1]), torch.tensor([1])]
    image = draw_image(2, 128, 160)
    try:
        found, expected = run_with_the_same_noise(theirs, ours, image, objects, classes, monkeypatch)
        torch.testing.assert_close(found.sum(), expected, rtol=1e-4, atol=0)
        (one,) = torch.autograd.grad(found.sum(), ours.model[0].convs[0].conv.weight)
        (other,) = torch.autograd.grad(expected, theirs.model.backbone.model.embedder.embedder[0].convolution.weight)
        assert (one - other).norm() < 5e-3 * other.norm()  # of all layers, in single precision
    finally:
        theirs.eval()
