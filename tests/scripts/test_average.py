"""The average of checkpoints is their mean, its batch norms are of the images, and what cannot be averaged is named."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from conftest import draw_shapes
from torch import nn

import average
from ultralytics import RTDETR
from ultralytics.data.utils import check_det_dataset
from ultralytics.fork.checkpoints.load import load_checkpoint
from ultralytics.fork.errors import Refused
from ultralytics.models.rtdetr.val import RTDETRDataset

NAMES = {0: "circle", 1: "square", 2: "triangle"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return draw_shapes(tmp_path_factory.mktemp("data"), train=4, val=2)


def write(file: Path, data: Path, seed: int, name: str = "rtdetr-tiny") -> dict[str, torch.Tensor]:
    """Write a checkpoint of a model with random weights; return its weights."""
    torch.manual_seed(seed)
    model = RTDETR(f"{name}.yaml").model
    model.names, model.args = NAMES, {}
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1, 0.1)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": copy.deepcopy(model).half(), "train_args": {"data": str(data), "imgsz": 64}}, file)
    return model.half().float().state_dict()


def run(monkeypatch, *argv: object) -> None:
    monkeypatch.setattr(sys, "argv", ["average.py", *map(str, argv)])
    average.main()


def test_the_average_is_the_mean(data, tmp_path, monkeypatch, capsys):
    files = [tmp_path / f"{seed}.pt" for seed in range(3)]
    states = [write(file, data, seed) for seed, file in enumerate(files)]
    run(monkeypatch, *files, "--images", 0, "--out", tmp_path / "out" / "mean.pt")
    found = load_checkpoint(tmp_path / "out" / "mean.pt")
    assert found["train_args"]["imgsz"] == 64 and found["model"].names == NAMES
    for key, value in found["model"].float().state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, torch.stack([state[key] for state in states]).mean(0), rtol=2e-3, atol=2e-4
            )
    said = capsys.readouterr().out
    assert said.count("0.pt") >= 1 and "| average" in said and "the average of 3 checkpoints" in said
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["mean.pt"]


def test_statistics_are_those_of_the_images(data):
    torch.manual_seed(0)
    model = RTDETR("rtdetr-tiny.yaml").model
    settings = check_det_dataset(str(data))
    frozen = {"model.0.stem2a.bn"}
    assert average.estimate_statistics(model, frozen, settings, 64, 100) == 4
    assert not model.model[0].stem2a.bn.running_mean.any()  # as it was made
    images = RTDETRDataset(img_path=settings["train"], imgsz=64, data=settings, augment=False, rect=False)
    batch = torch.stack([images[i]["img"] for i in range(4)]).float() / 255
    stem = model.model[0].stem1
    with torch.no_grad():
        maps = stem.conv(batch)
    torch.testing.assert_close(stem.bn.running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(stem.bn.running_var, maps.transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=1e-6)
    assert stem.bn.momentum == RTDETR("rtdetr-tiny.yaml").model.model[0].stem1.bn.momentum and not stem.bn.training


def test_frozen_norms_are_known_by_their_statistics(data, tmp_path):
    files = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for seed, file in enumerate(files):
        write(file, data, seed)
        checkpoint = torch.load(file, weights_only=False)
        for name, m in checkpoint["model"].named_modules():
            if isinstance(m, nn.BatchNorm2d) and not name.startswith("model.0."):
                m.running_mean.fill_(seed)
        torch.save(checkpoint, file)
    frozen = average.average_models(files)[1]
    assert "model.0.stem1.bn" in frozen and all(name.startswith("model.0.") for name in frozen)


def test_epochs_are_chosen_by_their_figures(tmp_path):
    for epoch in (0, 1, 2, 10):
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / f"epoch{epoch}.pt").touch()
    rows = [
        f"epoch,{average.FITNESS}",
        *(f"{epoch + 1},{score}" for epoch, score in ((0, 0.5), (1, 0.1), (2, 0.3), (10, 0.4))),
    ]
    (tmp_path / "results.csv").write_text("\n".join(rows))

    def choose(**which) -> list[str]:
        return [file.stem for file in average.choose_files([tmp_path], which.get("best"), which.get("last"))]

    assert choose(best=2) == ["epoch0", "epoch10"] and choose(last=2) == ["epoch2", "epoch10"]
    assert choose() == ["epoch0", "epoch1", "epoch2", "epoch10"]
    with pytest.raises(Refused, match="has 4 checkpoints of epochs, and 5 are asked for"):
        choose(best=5)


def test_what_cannot_be_averaged_is_named(data, tmp_path, monkeypatch, capsys):
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    write(one, data, 0)
    write(other, data, 0, "rtdetr-tiny-FLA")
    for argv, says in [
        ([one, other, "--out", tmp_path / "x.pt"], "other.pt is another model than"),
        ([one, "--out", tmp_path / "x.pt"], "expected two checkpoints or more"),
        ([one, other, "--best", 2, "--out", tmp_path / "x.pt"], "name its folder"),
        ([tmp_path, "--out", tmp_path / "x.pt"], "train with save_period=1"),
        ([one, other, "--out", one], "exists; name another --out"),
        ([one, other, "--images", 1, "--out", tmp_path / "x.pt"], "statistics need two images or more"),
    ]:
        with pytest.raises(SystemExit, match=says):
            run(monkeypatch, *argv)
    assert not (tmp_path / "x.pt").exists()
