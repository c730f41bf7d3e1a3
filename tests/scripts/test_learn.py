"""Each family learns: alone, from a teacher; in a tiny RT-DETR, from pictures. The long version is scripts/learn.py."""

import copy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, load_file, mark_nightly

from ultralytics.nn.AddModules.registry import NAMES
from ultralytics.nn.tasks import RTDETRDetectionModel

learn = load_file(ROOT / "scripts" / "learn.py")

FAMILIES = {
    "FocusedLinearAttention": ((32,), 32),
    "BiLevelRoutingAttention_nchw": ((32,), 32),
    "MultiQueryAttentionLayerWithDownSampling": ((32, 2, 16, 16, 1, 1, 1), 32),
    "HGBlock_FLA": ((32, 16, 32, 3, 2, True, True), 32),
    "HGBlock_Biformer": ((32, 16, 32, 3, 2, True, True), 32),
    "ResNetLayer_MQA": ((32, 16, 1, False, 1, 2), 32),
    "EMO": ((3, 0, 224, [1, 1, 1, 1], 8, [8, 16, 16, 24], [2.0] * 4), 3),
}


def outputs(module, x):
    out = module(x)
    return out if isinstance(out, (list, tuple)) else [out]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_learns_what_another_of_its_kind_does(name):
    """The distance to a teacher's output falls by half at least, and every parameter that the output hangs on moves."""
    args, channels = FAMILIES[name]
    teacher, module = NAMES[name](*args).train(), NAMES[name](*args).train()
    start = copy.deepcopy(dict(module.named_parameters()))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0)
    x = torch.randn(4, channels, 64, 64) if name == "EMO" else torch.randn(4, channels, 14, 10)
    with torch.no_grad():
        goal = outputs(teacher, x)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = sum((y - g).square().mean() for y, g in zip(outputs(module, x), goal))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], f"{losses[0]:.4f} to {losses[-1]:.4f}"
    still = [key for key, p in module.named_parameters() if p.grad is not None and torch.equal(p, start[key])]
    assert not still


def batch():
    """Eight drawn images and their boxes."""
    shapes = load_file(ROOT / "cfg_custom" / "datasets" / "shapes.py")
    images, classes, boxes, index = [], [], [], []
    for i in range(8):
        image, labels = shapes.draw(np.random.default_rng(i), 96)
        images.append(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        for kind, left, top, right, bottom in labels:
            classes.append(float(kind))
            boxes.append([(left + right) / 192, (top + bottom) / 192, (right - left) / 96, (bottom - top) / 96])
            index.append(i)
    return {
        "img": torch.stack(images),
        "cls": torch.tensor(classes)[:, None],
        "bboxes": torch.tensor(boxes),
        "batch_idx": torch.tensor(index),
    }


def build(name):
    """Build a tiny model for training, with its number of classes where a trainer puts it."""
    model = RTDETRDetectionModel(f"{name}.yaml", nc=3, verbose=False).train()
    model.nc = 3
    return model


@pytest.mark.nightly
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_learns_eight_pictures(name):
    model = build(name)
    start = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    pictures, losses = batch(), []
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = model(pictures)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
    early, late = sum(losses[2:7]) / 5, sum(losses[-5:]) / 5
    assert late < 0.7 * early, f"{early:.2f} to {late:.2f}"
    moved = {key: (p - start[key]).abs().max() for key, p in model.named_parameters() if p.grad is not None}
    ours = [key for key in moved if "AddModules" in type(model.model[int(key.split(".")[1])]).__module__]
    assert (name == "rtdetr-tiny") == (not ours)
    still = [key for key in ours if moved[key] <= 1e-3]  # softmax takes no notice of what is added to all keys
    assert all("_key_" in key and key.endswith("bias") for key in still), still


HALF = [(name, dtype) for name in TINY for dtype in (torch.float16, torch.bfloat16)]
FAST = {(name, torch.bfloat16) for name in TINY}  # a CPU has no fast convolutions in float16


@pytest.mark.parametrize("name, dtype", mark_nightly(HALF, {*FAST, ("rtdetr-tiny-FLA", torch.float16)}), ids=str)
def test_a_tiny_model_stays_finite_in_half_precision(name, dtype):
    model = build(name)
    pictures = batch()
    with torch.autocast("cpu", dtype=dtype):
        loss, _ = model(pictures)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        out = model.eval().to(dtype)(50 * torch.randn(1, 3, 64, 96).to(dtype))
    assert torch.isfinite(out[0] if isinstance(out, tuple) else out).all()


def fake_run(folder, name, epochs, best=0.6):
    (folder / name / "weights").mkdir(parents=True)
    torch.save({"epoch": -1}, folder / name / "weights" / "last.pt")
    lines = [f"{e},{60 * e},{best * e / epochs},{best * e / epochs}" for e in range(1, epochs + 1)]
    (folder / name / "results.csv").write_text("\n".join([f"epoch,time,{learn.MAP50},{learn.MAP}", *lines]) + "\n")


def test_the_script_takes_finished_runs_and_fails_below_the_target(tmp_path, monkeypatch, capsys):
    """No run is made again that is done, and what is kept of other models stays."""
    monkeypatch.setattr(learn, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    fake_run(tmp_path / "runs", "rtdetr-tiny", 5)
    fake_run(tmp_path / "runs", "rtdetr-tiny-FLA", 5, best=0.5)
    arguments = ["learn.py", "--save", "--runs", str(tmp_path / "runs"), "--only"]
    monkeypatch.setattr(sys, "argv", [*arguments, "rtdetr-tiny-FLA"])
    assert learn.main() == 1 and "below 0.55: rtdetr-tiny-FLA" in capsys.readouterr().out
    monkeypatch.setattr(learn, "MODELS", ["rtdetr-tiny"])
    monkeypatch.setattr(sys, "argv", [*arguments, "rtdetr-tiny"])
    assert learn.main() == 0
    page = (tmp_path / "benchmarks" / "learning.md").read_text()
    assert "| `rtdetr-tiny` | 1,466,396 | 0 | 5 | 0.600 | 0.600 | 0.600 | 5 |" in page
    assert "| `rtdetr-tiny-FLA` | 1,532,988 | 0 | 5 | 0.500 | 0.500 | 0.500 | – |" in page
    assert (tmp_path / "benchmarks" / "learning.png").exists()
