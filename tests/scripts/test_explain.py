"""The command explains each tiny model, leaves it as it was, and says in one line what it cannot explain."""

import copy
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, lively
from explained_models import blobs, models, picture, run  # noqa: F401 - fixtures
from PIL import Image, ImageColor

import explain
from _explain import click_query, drawing, focusing, layer_cam, network, receptive_field, routing
from ultralytics.nn.AddModules.Biformer import Regions

FILES = {"rtdetr-tiny-FLA": ["cam", "focusing"], "rtdetr-tiny-Biformer": ["cam", "routing"]}


@pytest.mark.parametrize("name", TINY)
def test_models_are_left_as_they_were(name, models):
    """Modes, what needs gradients, hooks, the head's anchors, weights; also where it ends with an error."""
    model = lively(name)
    net, image = model.model, blobs(48, 64)
    net.train()
    net.model[1].eval()
    next(net.model[2].parameters()).requires_grad_(False)
    head = net.model[-1]
    head.shapes, head.anchors = [[1, 2]], torch.zeros(3)
    anchors, state = head.anchors, copy.deepcopy(net.state_dict())

    def seen() -> tuple:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
        modes = [m.training for m in net.modules()]
        needed = [p.requires_grad for p in net.parameters()]
        extra = [name for m in net.modules() for name in vars(m) if name == "_attend"]
        return hooks, modes, needed, extra, head.shapes, "valid_mask" in vars(head), Regions.route

    before = seen()
    for explanation in (layer_cam.layer_cam, routing.routing, focusing.focusing):
        explanation(model, image, imgsz=64)
    receptive_field.receptive_fields(model, [image], imgsz=64)
    bias = net.model[-1].dec_score_head[-1].bias.data
    right = bias.clone()
    bias[:] = float("nan")
    for explanation in (layer_cam.layer_cam, routing.routing, focusing.focusing):
        with pytest.raises(ValueError, match="not finite"):
            explanation(model, image, imgsz=64)
    bias.copy_(right)
    assert seen() == before and head.anchors is anchors
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values()))


def check_picture(file: Path) -> None:
    """A PNG that a desktop shows whole, with something on it."""
    with Image.open(file) as image:
        assert image.format == "PNG" and 500 <= image.width <= 4000 and 300 <= image.height <= 6000
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 20 and len(np.unique(pixels)) > 50


@pytest.mark.parametrize("name", TINY)
def test_every_model_from_its_yaml(name, monkeypatch, capsys, tmp_path, picture):
    assert run(monkeypatch, f"{name}.yaml", picture, "--imgsz=64", f"--out={tmp_path / 'out'}") == 0
    out, err = capsys.readouterr()
    kinds = FILES.get(name, ["cam"])
    expected = [*(f"spots-{kind}.png" for kind in kinds), f"{name}-field.png", "contact.png"]
    assert out.splitlines() == [str(tmp_path / "out" / file) for file in expected]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(expected)
    for file in (tmp_path / "out").iterdir():
        check_picture(file)
    assert [line for line in err.splitlines() if line.startswith("warning")] == [
        f"warning: {name}.yaml has no weights yet: the pictures show an untrained model"
    ]


def test_a_checkpoint_two_images_of_a_stem_and_the_default_folder(monkeypatch, capsys, tmp_path, models, picture):
    """The input's size is the one that it was trained with."""
    model = lively("rtdetr-tiny-FLA")
    model.model.args = {**model.model.args, "imgsz": 96}
    model.ckpt = {"train_args": {"imgsz": 96}}
    model.save(tmp_path / "mine.pt")
    other = tmp_path / "other" / picture.name
    other.parent.mkdir()
    cv2.imwrite(str(other), blobs(70, 40)[::-1])
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "mine.pt", picture, other, "--what", "focusing", "--query=30,50", "--conf=0.5") == 0
    out, err = capsys.readouterr()
    folder = Path("runs", "explain", "mine")
    assert out.splitlines() == [str(folder / n) for n in ("spots-focusing.png", "spots-2-focusing.png", "contact.png")]
    assert "warning: mine" not in err
    assert (folder / "spots-focusing.png").read_bytes() != (folder / "spots-2-focusing.png").read_bytes()
    assert network.open_model("mine.pt").size == (96, 96) and network.open_model("mine.pt").title.startswith("mine (")


def test_small_files(monkeypatch, tmp_path, picture):
    """They have fewer colours, and hardly another look."""
    for name, argv in (("whole", []), ("small", ["--small"])):
        torch.manual_seed(0)  # for the same weights
        assert (
            run(monkeypatch, "rtdetr-tiny.yaml", picture, "--imgsz=64", "--what=cam", f"--out={tmp_path / name}", *argv)
            == 0
        )
    whole, small = (tmp_path / name / "spots-cam.png" for name in ("whole", "small"))
    with Image.open(whole) as a, Image.open(small) as b:
        assert b.mode == "P" and a.size == b.size
        assert np.abs(np.asarray(a.convert("RGB"), float) - np.asarray(b.convert("RGB"), float)).mean() < 3
    assert 2 * small.stat().st_size < whole.stat().st_size
    rng = np.random.default_rng(0)
    drawn = Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8))
    for x, colour in enumerate(drawing.COLOURS):  # one pixel of each kind of mark
        drawn.putpixel((x, 0), ImageColor.getrgb(colour))
    few = drawing.reduce_colours(drawn).convert("RGB")
    assert [few.getpixel((x, 0)) for x in range(len(drawing.COLOURS))] == [*map(ImageColor.getrgb, drawing.COLOURS)]
    assert len(few.getcolors()) <= 256


def test_names_are_no_formulas(monkeypatch, tmp_path, picture):
    """What matplotlib cannot read as one would end the command."""
    named = tmp_path / r"a $\frac$ 图.png"
    shutil.copy(picture, named)
    assert run(monkeypatch, "rtdetr-tiny.yaml", named, "--imgsz=64", "--what=cam", f"--out={tmp_path / 'out'}") == 0
    assert (tmp_path / "out" / f"{named.stem}-cam.png").is_file()


def test_stems():
    assert explain.name_pictures([Path("a/x.jpg"), Path("b/X.png"), Path("x-2.jpg"), Path("y.png"), Path("x.bmp")]) == [
        "x",
        "X-3",
        "x-2",
        "y",
        "x-4",
    ]


def onnx(folder: Path) -> Path:
    file = folder / "mine.onnx"
    file.write_bytes(b"\x08\x0a")
    return file


def cut(folder: Path) -> Path:
    file = folder / "cut.jpg"
    cv2.imwrite(str(file), blobs(200, 200))
    file.write_bytes(file.read_bytes()[:-2000])
    return file


def text(folder: Path, name: str) -> Path:
    file = folder / name
    file.write_text("hello", encoding="utf-8")
    return file


ROW = "nc: 3\nbackbone:\n  - [-1, 1, Nope, [3]]\nhead:\n  - [-1, 1, RTDETRDecoder, [3]]\n"


def broken(folder: Path, content: str) -> Path:
    file = folder / "broken.yaml"
    file.write_text(content, encoding="utf-8")
    return file


def nan(folder: Path) -> Path:
    model = lively("rtdetr-tiny")
    model.model.model[3].m[0].conv.weight.data[0] = float("nan")
    model.save(folder / "nan.pt")
    return folder / "nan.pt"


M = "rtdetr-tiny.yaml"
ERRORS = {
    "missing model": (lambda d, i: ["none.pt", i], "none.pt does not exist"),
    "missing YAML": (lambda d, i: ["none.yaml", i], "none.yaml"),
    "broken YAML": (lambda d, i: [broken(d, "nc: [3\nbackbone: {"), i], "broken.yaml"),
    "wrong row": (lambda d, i: [broken(d, ROW), i], "no module is named 'Nope'"),
    "exported": (lambda d, i: [onnx(d), i], "mine.onnx: explanations need a model's layers"),
    "no suffix": (lambda d, i: ["rtdetr-tiny", i], "rtdetr-tiny: explanations need a model's layers"),
    "no checkpoint": (lambda d, i: [text(d, "bad.pt"), i], "bad.pt is damaged or truncated"),
    "other head": (lambda d, i: ["yolo11n.yaml", i], "yolo11n is not an RT-DETR: its head is Detect"),
    "not finite": (lambda d, i: [nan(d), i], "the model's scores are not finite"),
    "missing image": (lambda d, i: [M, i, d / "none.jpg"], "none.jpg does not exist"),
    "folder": (lambda d, i: [M, d], "is a folder; expected an image"),
    "no image": (lambda d, i: [M, i, text(d, "a.jpg")], "a.jpg is not an image"),
    "cut image": (lambda d, i: [M, cut(d)], "cut.jpg is "),
    "query outside": (lambda d, i: [M, i, "--query=90,10"], "query 90,10 is outside of spots: expected x from 0 to 89"),
    "query above": (lambda d, i: [M, i, "--query=5,-1"], "query 5,-1 is outside of spots"),
    "layer": (lambda d, i: [M, i, "--layers", "3", "26"], "layer 26: expected a row from 0 to 25"),
    "class": (lambda d, i: [M, i, "--classes", "3"], "class 3: expected a number from 0 to 2"),
    "routing": (
        lambda d, i: [M, i, "--what", "cam", "routing"],
        "rtdetr-tiny has no BiLevelRoutingAttention_nchw for --what routing: it is BiFormer's; rtdetr-l-Biformer,",
    ),
    "focusing": (
        lambda d, i: [M, i, "--what", "focusing"],
        "rtdetr-tiny has no FocusedLinearAttention for --what focusing: it is FLatten's; rtdetr-l-FLA,",
    ),
    "imgsz": (lambda d, i: [M, i, "--imgsz", "1", "2", "3"], "imgsz=[1, 2, 3]: expected one side in pixels"),
    "out": (lambda d, i: [M, i, f"--out={text(d, 'file') / 'sub'}"], "cannot be written to: Not a directory"),
    "out is a file": (lambda d, i: [M, i, f"--out={text(d, 'file')}"], "cannot be written to: File exists"),
}


@pytest.mark.parametrize("argv, message", ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(argv, message, monkeypatch, capsys, tmp_path, picture):
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    words = argv(tmp_path / "files", picture)
    words += [] if "--imgsz" in words else ["--imgsz=64"]
    assert run(monkeypatch, *words) == 1
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if not line.startswith("warning: rtdetr-tiny.yaml has no weights yet"))
    assert line.startswith("error: ") and message in line
    assert out == "" and not (tmp_path / "runs").exists() and not list(tmp_path.rglob("*-*.png"))


def test_a_map_that_a_module_does_not_take_is_one_line(monkeypatch, capsys, tmp_path, picture):
    """What a module says of it, with the input's size."""
    source = (ROOT / "cfg_custom" / "models" / "rtdetr-tiny-FLA.yaml").read_text()
    row = "[-1, 3, HGBlock, [64, 192, 5, True, False]]"
    file = tmp_path / "rtdetr-reduced.yaml"
    file.write_text(source.replace(row, "[-1, 1, FocusedLinearAttention, [64, 8, True, None, 0.0, 0.0, 4]]"))
    assert run(monkeypatch, file, picture, "--imgsz=64", f"--out={tmp_path / 'out'}") == 1
    err = capsys.readouterr().err
    assert "error: the model does not take an input of 64 x 64 px: a 2 x 2 map is smaller than sr_ratio=4" in err


def test_a_picture_that_cannot_be_written_leaves_the_one_before(monkeypatch, capsys, tmp_path, picture):
    old = tmp_path / "spots-cam.png"
    old.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run(monkeypatch, M, picture, "--imgsz=64", "--what=cam", f"--out={tmp_path}") == 1
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == [old.name] and old.read_bytes() == b"before"


def test_click(monkeypatch, capsys, tmp_path, picture):
    """The point that is clicked is the query; without a display, or without a click, a line says so."""
    from matplotlib import pyplot as plt

    asked, switch = [], plt.switch_backend

    def headless(name: str) -> None:
        asked.append(name)
        raise ImportError("headless")

    monkeypatch.setattr(plt, "switch_backend", headless)
    words = ["rtdetr-tiny-FLA.yaml", picture, "--imgsz=64", "--what=focusing", "--click", f"--out={tmp_path / 'out'}"]
    assert run(monkeypatch, *words) == 1
    assert "error: --click needs a display" in capsys.readouterr().err
    assert asked == list(click_query.BACKENDS) and not (tmp_path / "out").exists()

    monkeypatch.setattr(plt, "switch_backend", lambda name: switch("agg"))
    monkeypatch.setattr(plt, "ginput", lambda *_, **__: [])
    assert run(monkeypatch, *words) == 1
    assert "was closed without a click" in capsys.readouterr().err

    monkeypatch.setattr(plt, "ginput", lambda *_, **__: [(19.5, 39.5)])
    queries, focus = [], focusing.focusing
    monkeypatch.setattr(focusing, "focusing", lambda m, v, query: queries.append(query) or focus(m, v, query))
    assert run(monkeypatch, *words) == 0
    assert queries == [(20.0, 40.0)] and (tmp_path / "out" / "spots-focusing.png").is_file()
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--query=1,1")
