"""Factors beside the models, and several data sets: names, folders, tables, effects, and what is refused."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
from compare_study import data, main, priced  # noqa: F401 - fixtures
from conftest import draw_shapes

from _compare import data_sets, grid, html_report, results, statistics, study_folder, tables
from ultralytics import YOLO
from ultralytics.fork.errors import Refused

GRID = "loss=None,official,mal backbone_lr=0.1,1"


def settings_of(*models: str, text: str = GRID) -> dict:
    """Return the settings of a study with a grid, as compare.py makes them."""
    factors = grid.parse_grid([text], {})
    chosen = {
        grid.name_variant(m, switches, grid.name_values(factors)): (m, switches)
        for m in models
        for switches in grid.list_switches(factors)
    }
    return {
        "models": {label: f"{model}.yaml" for label, (model, _) in chosen.items()},
        "switches": {label: switches for label, (_, switches) in chosen.items()},
        "grid": factors,
        "taken": {},
        "data": "shapes.yaml",
        "seeds": [0],
        "arguments": {"epochs": 2, "lr0": 0.01},
    }


def test_variants_and_their_commands(tmp_path):
    settings = settings_of("rtdetr-tiny")
    assert list(settings["models"]) == [
        f"rtdetr-tiny loss={loss} backbone_lr={lr}" for loss in ("None", "official", "mal") for lr in (0.1, 1)
    ]
    study = study_folder.Study(tmp_path, settings)
    command = study.runs[3].command(settings)
    assert "loss=official" in command and "backbone_lr=1" in command and "lr0=0.01" in command
    assert study.made[study.labels[2]]["arguments"] == {
        "epochs": 2,
        "lr0": 0.01,
        "loss": "official",
        "backbone_lr": 0.1,
    }
    study.save()
    assert study_folder.known_labels(tmp_path) == {"rtdetr-tiny.yaml": "rtdetr-tiny"}


def test_files_of_one_stem_are_told_apart(tmp_path):
    """As the checkpoints of two runs are, all of which are best.pt."""
    files = [tmp_path / run / "weights" / "best.pt" for run in "ab"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    factors = grid.parse_grid([f"distill_model=None,{files[0]},{files[1]} freeze=[0],[1,2]"], {})
    assert factors == {"distill_model": [None, *map(str, files)], "freeze": [[0], [1, 2]]}
    names = grid.name_values(factors)
    variants = [grid.name_variant("x", switches, names) for switches in grid.list_switches(factors)]
    assert len(set(variants)) == 6 and "x distill_model=a-weights-best freeze=[1, 2]" in variants


def test_effects_are_of_one_factor_each():
    pairs = grid.pair_levels(settings_of("a", "b"))
    assert list(pairs) == [
        "loss=official over loss=None",
        "loss=mal over loss=None",
        "backbone_lr=1 over backbone_lr=0.1",
    ]
    assert pairs["loss=mal over loss=None"] == [
        (f"{model} loss=mal backbone_lr={lr}", f"{model} loss=None backbone_lr={lr}")
        for model in "ab"
        for lr in (0.1, 1)
    ]
    assert len(pairs["backbone_lr=1 over backbone_lr=0.1"]) == 6
    assert grid.pair_levels(settings_of("a", text="loss=None,mal")) == {}  # the table has this difference


@pytest.mark.parametrize(
    "text, says",
    [
        ("loss=official", "two values or more"),
        ("loss=mal,mal", "each once"),
        ("los=official,mal", "--grid los=official,mal: expected KEY=VALUE,VALUE"),
        ("loss", "expected KEY=VALUE,VALUE"),
        ("seed=0,1", "the study sets seed"),
        ("loss=None,mal loss=None,official", "given twice"),
        ("imgsz=64,96", "imgsz is given twice"),
        ("split=val,test", "changes what is validated"),
    ],
)
def test_wrong_grids(text, says):
    with pytest.raises(Refused, match=says):
        grid.parse_grid([text], {"imgsz": 64})


@pytest.mark.parametrize(
    "change, says",
    [
        (["--grid", "imgsz=64,abc"], "imgsz"),
        (["--grid", "lr0=0.001,0.002"], "optimizer=auto chooses lr0 itself"),
        (["--data", "DATA", "DATA"], "--data names"),
        (["--data", "DATA", "nothing.yaml"], "--data nothing.yaml"),
        (["--data", "DATA", "OTHER", "--from", "run"], "--from: these runs are of one data set"),
    ],
)
def test_wrong_input_is_one_line(change, says, data, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.yaml"
    shutil.copy(data, other)
    change = [{"DATA": str(data), "OTHER": str(other)}.get(word, word) for word in change]
    argv = ["--models", "rtdetr-tiny.yaml", "--data", str(data), "--out", str(tmp_path / "out"), *change]
    assert main(monkeypatch, *argv) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("compare.py: ") and says in err and not (tmp_path / "out").exists()


def test_a_table_over_data_sets():
    """Of two models on three sets, of which one is not done on the last."""

    def rows(value: float, done: bool = True) -> list[dict]:
        found = statistics.make_difference(value, 1e-6, 9, True)
        scores = {"mAP50-95": {"mean": 0.5 + value, "deviation": 0.01, "values": []}}
        first = {"model": "a", "seeds": [0, 1], "mAP50-95": {"mean": 0.5, "deviation": 0.02, "values": []}}
        second = {"model": "b", "seeds": [0, 1], **scores, "difference": {**vars(found), "shown": found.shown}}
        return [first, second if done else {"model": "b", "seeds": []}]

    found = data_sets.combine_rows({"one": rows(0.1), "two": rows(0.2), "three": rows(0.0, done=False)})
    assert found[0]["sets"] == ["one", "two", "three"] and "difference" not in found[0]
    assert found[1]["sets"] == ["one", "two"]
    reach = 12.7062 * np.std([0.1, 0.2], ddof=1) / np.sqrt(2)
    assert (
        found[1]["difference"]["high"] == pytest.approx(0.15 + reach, rel=1e-4) and not found[1]["difference"]["shown"]
    )
    columns = data_sets.list_columns(["one", "two", "three"])
    lines = tables.format_markdown(found, data_sets.write_notes(found, ["one", "two", "three"]), columns).splitlines()
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells[:2] == ["b", "2"] and cells[2].startswith("+15.0 [−48.5, +78.5] n.s.")
    assert cells[4] == "60.0 ± 1.0" and cells[5].startswith("+10.0 [") and cells[-2:] == ["–", "–"]
    assert "Nothing is done of b on three." in "\n".join(lines)
    first = next(csv.DictReader(tables.format_csv(found[1:], [], columns).splitlines()))
    assert first["two: mAP50-95 mean"] == "0.7" and first["three: mAP50-95 mean"] == ""


def test_effects_are_described():
    found = statistics.make_difference(0.02, 1e-6, 9, True)
    effect = {"model": "loss=mal over loss=None", "pairs": 2, "difference": {**vars(found), "shown": found.shown}}
    assert html_report.describe_effect(effect) == (
        "loss=mal over loss=None: +2.0 mAP50-95 (+1.8 to +2.2) on average over 2 pairs."
    )
    effect["difference"]["p Holm"] = 0.0001
    assert "| loss=mal over loss=None | 2     | +2.0 [+1.8, +2.2] | <0.001" in tables.format_effects([effect])
    assert tables.format_effects([]) == ""


def test_effects_by_hand(tmp_path, monkeypatch):
    """Official is 0.1 and 0.3 above none at the two rates; a variant that is not done is left out with its pair."""
    study = study_folder.Study(tmp_path, settings_of("rtdetr-tiny", text="loss=None,official backbone_lr=0.1,1"))
    monkeypatch.setattr(results, "resample_scores", lambda study, label: np.zeros((2, 50)))

    def rows(*means: float | None) -> list[dict]:
        return [
            {"model": label, "seeds": [0, 1] * (mean is not None), "mAP50-95": {"values": [mean, mean]}}
            for label, mean in zip(study.labels, means, strict=True)
        ]

    first, second = results.summarise_effects(study, rows(0.3, 0.5, 0.4, 0.8))
    assert (first["model"], first["pairs"]) == ("loss=official over loss=None", 2)
    assert first["difference"]["value"] == pytest.approx(0.2) and first["difference"]["p Holm"] == 0
    assert second["difference"]["value"] == pytest.approx(0.3)  # 0.2 with none, 0.4 with official
    first, second = results.summarise_effects(study, rows(0.3, 0.5, 0.4, None))
    assert first["pairs"] == 1 and first["difference"]["value"] == pytest.approx(0.1)
    assert results.summarise_effects(study, rows(0.3, 0.5, None, None))[0]["model"].startswith("backbone_lr")


def test_a_grid_on_two_data_sets(data, tmp_path, monkeypatch, capsys, priced):
    """Trained runs are put where the study looks for them, so that it validates only."""
    other = draw_shapes(tmp_path / "other", train=4, val=4)
    other = other.rename(other.with_name("other.yaml"))
    folder, out = tmp_path / "trained", tmp_path / "study"
    training = {"epochs": 1, "imgsz": 64, "batch": 4, "plots": False, "workers": 0}
    YOLO("rtdetr-tiny.yaml").train(data=str(other), **training, project=str(folder), name="run")
    variants = [f"rtdetr-tiny loss={loss}" for loss in ("None", "official")]
    argv = ["--models", "rtdetr-tiny.yaml", "--data", str(data), str(other), "--grid", "loss=None,official"]
    argv += ["--out", str(out), "--seeds", "0", *(f"{key}={value}" for key, value in training.items())]
    with monkeypatch.context() as patched:
        fail = {"state": "failed", "error": "not yet"}
        patched.setattr("_compare.local_runs.perform_run", lambda run, *_: run.conclude(fail))
        assert main(monkeypatch, *argv) == 1  # which writes what each variant is made with
    assert "rtdetr-tiny loss=official with seed 0 failed: not yet" in capsys.readouterr().out
    for name, variant in itertools.product((data.stem, "other"), variants):
        shutil.copytree(folder / "run", out / name / "runs" / variant / "seed-0", dirs_exist_ok=True)
    assert main(monkeypatch, *argv) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "other" / "study.json").read_text())
    assert [run["state"] for run in found["runs"]] == ["done"] * 2 and found["effects"] == []
    table = (out / "table.md").read_text(encoding="utf-8")
    assert table in said and "difference over all" in table and all(f"| {variant} " in table for variant in variants)
    assert [row["model"] for row in json.loads((out / "study.json").read_text())["results"]] == variants
