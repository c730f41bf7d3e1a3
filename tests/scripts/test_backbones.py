"""The command that tries backbones of timm: what works, and what is said of one that does not."""

import json
import sys

import pytest
import timm
import torch
from torch import nn

import backbones
from _backbones import trial
from ultralytics.nn.AddModules.Timm import Timm


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["backbones.py", *arguments])
    monkeypatch.setattr(trial, "SIZES", ((96, 96), (64, 96)))
    with pytest.raises(SystemExit) as stop:
        backbones.main()
    return stop.value.code


def test_command(monkeypatch, capsys):
    assert run(monkeypatch, "test_resnet", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["family"] == "resnet" and row["works"] == "yes" and row["images"] == "any"
    assert row["strides"] == "4, 8, 16, 32" and float(row["GFLOPs"]) > 0


def test_a_backbone_that_does_not_work(monkeypatch, capsys):
    """Each step is tried, and says what it raised; the command fails."""

    def forward(self, x):
        return [torch.full_like(m, float("nan")) if m is not None else None for m in plain(self, x)]

    plain = Timm.forward
    monkeypatch.setattr(Timm, "forward", forward)
    assert run(monkeypatch, "test_resnet", "--no-export") == 1
    assert "train at 96x96: ArithmeticError: loss nan" in capsys.readouterr().out


def test_a_parameter_without_a_gradient_is_seen(monkeypatch):
    init = Timm.__init__

    def with_idle(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.idle = nn.Parameter(torch.zeros(1))

    monkeypatch.setattr(Timm, "__init__", with_idle)
    monkeypatch.setattr(trial, "SIZES", ((64, 64),))
    found = trial.try_backbone("test_resnet", export=False)
    assert found.errors == {
        "train at 64x64": "ArithmeticError: no gradient for 1 parameters of the backbone: idle",
    }


def test_unknown_name(monkeypatch):
    assert "timm has no model resnett" in run(monkeypatch, "resnett")


def test_families(monkeypatch):
    """The smallest of each; timm's own models for tests are not among them."""
    monkeypatch.setattr(timm, "list_modules", lambda: ["starnet"])
    assert backbones.smallest_members() == {"starnet": "starnet_s050"}
    monkeypatch.setattr(timm, "list_modules", lambda: ["resnet"])
    monkeypatch.setattr(timm, "list_models", lambda module: ["test_resnet", "resnet18"])
    assert backbones.smallest_members() == {"resnet": "resnet18"}
