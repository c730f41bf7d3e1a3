"""A search for arguments goes on where it was stopped, ends poor trials early, and repeats nothing."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from compare_study import data, main  # noqa: F401 - a fixture

from _compare import tuning
from ultralytics.cfg import get_cfg
from ultralytics.fork.errors import Refused
from ultralytics.utils import YAML

SPACE = "lr0=1e-4..1e-1 loss=None,official"


@pytest.fixture
def trained(monkeypatch):
    """Trainings are made up: the best learning rate is 0.01; what was trained is listed."""
    runs = []

    def perform(run, settings, watch=None):
        if run.is_done:
            return run.outcome
        arguments = settings["arguments"]
        runs.append(arguments.get("lr0"))
        lr = arguments.get("lr0") or 0.5
        value = 0.5 - abs(lr - 0.01)

        for epoch in range(4) if watch else ():
            try:
                watch(SimpleNamespace(metrics={tuning.METRIC: value}, epoch=epoch))
            except Exception as e:
                run.conclude({"state": "failed", "error": type(e).__name__, "taken": None})
                return run.outcome
        figures = {"mAP50-95": value, "mAP50": value}
        run.conclude({"state": "done", "epochs": 4, "figures": figures, "taken": None})
        return run.outcome

    monkeypatch.setattr(tuning, "perform_run", perform)
    return runs


def search(monkeypatch, data: Path, out: Path, *more: str, space: str = SPACE) -> int:
    argv = ["--models", "rtdetr-tiny.yaml", "--data", str(data), "--out", str(out), "--epochs", "4", "optimizer=AdamW"]
    return main(monkeypatch, *argv, "--space", space, *more)


def test_a_search(data, tmp_path, monkeypatch, capsys, trained):
    """The same command adds trials to those that are done, and repeats none."""
    assert search(monkeypatch, data, tmp_path / "out", "--tune", "8") == 0
    assert len(trained) == 9 and trained[0] is None  # without a search, first
    said = capsys.readouterr().out
    assert "| without a search" in said and said.count("\n| trial ") == 8
    assert "some of it is luck" in said and "--seeds 1 2 3" in said
    best = YAML.load(tmp_path / "out" / "best.yaml")
    assert best["epochs"] == 4 and best["optimizer"] == "AdamW" and 1e-4 <= best["lr0"] <= 1e-1
    finished = [value for value in trained[1:] if f"{value:.4g}" in said]
    assert abs(best["lr0"] - 0.01) == pytest.approx(min(abs(value - 0.01) for value in finished), abs=1e-9)
    assert (tmp_path / "out" / "table.md").read_text() in said
    assert search(monkeypatch, data, tmp_path / "out", "--tune", "8") == 0 and len(trained) == 9
    assert search(monkeypatch, data, tmp_path / "out", "--tune", "10") == 0 and len(trained) == 11
    assert search(monkeypatch, data, tmp_path / "out", "--tune", "10", space="lr0=1e-4..1e-2") == 2
    assert "has a search with other space" in capsys.readouterr().err


def test_poor_trials_end_early(data, tmp_path, monkeypatch, capsys, trained):
    assert search(monkeypatch, data, tmp_path / "out", "--tune", "16") == 0
    assert "ended early" in capsys.readouterr().out


def test_a_trial_that_was_killed_goes_on(data, tmp_path, monkeypatch, trained):
    """With its arguments, in its folder."""
    perform, begun = tuning.perform_run, []

    def kill(run, settings, watch=None):
        if watch:
            begun.append((settings["arguments"]["lr0"], run.folder))
            raise KeyboardInterrupt
        return perform(run, settings, watch)

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "perform_run", kill)
        assert search(monkeypatch, data, tmp_path / "out", "--tune", "2") == 130
    assert search(monkeypatch, data, tmp_path / "out", "--tune", "2") == 0
    (lr, folder), *_ = begun
    assert trained[1] == lr and json.loads((folder / "run.json").read_text())["state"] == "done" and len(trained) == 3


@pytest.mark.parametrize(
    "space, says",
    [
        ("", "--tune needs a --space"),
        ("lr=1..2", "expected KEY=LOW..HIGH"),
        ("lr0=2..1", "the smaller first"),
        ("lr0=a..b", "expected two numbers"),
        ("loss=mal", "two values or more"),
        ("seed=0..3", "expected KEY=LOW..HIGH"),
        ("imgsz=64,96", "imgsz is given twice"),
        ("lr0=1e-4..1e-2", "lr0 would do nothing in this training of an RT-DETR"),  # optimizer=auto
        ("pose=1..9", "pose would do nothing"),
    ],
)
def test_wrong_spaces(space, says):
    with pytest.raises(Refused, match=says):
        tuning.parse_space(space, {"imgsz": 64}, get_cfg())


def test_spaces_by_hand():
    space = tuning.parse_space(
        "lr0=1e-4..1e-2 warmup_epochs=0..3 loss=None,mal", {}, get_cfg(overrides={"optimizer": "SGD"})
    )
    assert space["lr0"] == tuning.Range(1e-4, 1e-2) and space["loss"] == tuning.Choice((None, "mal"))

    class Trial:
        def suggest_float(self, key, low, high, log):
            return low, high, log

        def suggest_int(self, key, low, high):
            return low, high

    assert space["lr0"].suggest(Trial(), "lr0") == (1e-4, 1e-2, True)
    assert tuning.Range(0.5, 2.0).suggest(Trial(), "box") == (0.5, 2.0, False)
    assert space["warmup_epochs"].suggest(Trial(), "warmup_epochs") == (0, 3)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--tune", "2", "--models", "a.yaml", "b.yaml"], "one model on one data set"),
        (["--tune", "2", "--grid", "loss=None,mal"], "one model on one data set"),
        (["--space", "lr0=1..2"], "--space is what --tune searches"),
    ],
)
def test_wrong_commands(data, tmp_path, monkeypatch, capsys, argv, says):
    assert (
        main(monkeypatch, "--models", "rtdetr-tiny.yaml", "--data", str(data), "--out", str(tmp_path / "o"), *argv) == 2
    )
    assert says in capsys.readouterr().err and not (tmp_path / "o").exists()
