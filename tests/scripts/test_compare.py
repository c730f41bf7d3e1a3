"""A study says which model is better, and no more than it knows; it loses nothing, and its page opens anywhere."""

import base64
import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_shapes

import compare
from _compare import (
    architecture,
    cost,
    existing_runs,
    figures,
    html_report,
    local_runs,
    results,
    statistics,
    study_folder,
    tables,
    validation,
)
from _compare.training_run import choose_device, perform_run, train_run
from _compare.validation import Validation
from _shared.flops import count_published_gflops
from ultralytics import YOLO
from ultralytics.fork.errors import Refused
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils.metrics import ap_per_class, box_iou

MODELS = ["rtdetr-tiny.yaml", "rtdetr-tiny-FLA.yaml"]
PUBLISHED = json.loads((ROOT / "scripts" / "_reproduce" / "published.json").read_text())


# The figures ----------------------------------------------------------------------------------------------------------
def made_up(images=12, objects=40, detections=300, seed=0) -> Validation:
    """Make a validation up: scores that tell something of what is right, three classes, some images empty."""
    rng = np.random.default_rng(seed)
    cls, conf = rng.integers(0, 3, detections), rng.random(detections).astype(np.float32)
    tp = (rng.random((detections, 1)) * 1.2 < conf[:, None]) & (np.arange(10) < rng.integers(1, 11, (detections, 1)))
    return Validation(
        images=np.array([f"{i}.jpg" for i in range(images)]),
        shapes=np.full((images, 2), 64),
        names=np.array(["a", "b", "c"]),
        image=rng.integers(0, images, detections),
        tp=tp & (rng.random((detections, 1)) < 0.3),
        conf=conf,
        cls=cls,
        box=np.zeros((detections, 4), np.float32),
        target_image=rng.integers(0, images - 2, objects),
        target_cls=rng.integers(0, 3, objects),
        target_box=np.zeros((objects, 4), np.float32),
    )


def upstream_ap(found: Validation, sample: np.ndarray) -> float:
    """Compute mAP50-95 with upstream's function, of images repeated as a sample says."""
    detections = np.repeat(np.arange(len(found.conf)), sample[found.image])
    objects = np.repeat(np.arange(len(found.target_cls)), sample[found.target_image])
    values = found.tp[detections], found.conf[detections], found.cls[detections], found.target_cls[objects]
    return ap_per_class(*values)[5].mean()


def test_average_precision_of_a_sample_is_upstreams():
    found = made_up()
    once = np.ones((1, len(found.images)), int)
    assert statistics.average_precision(found) == pytest.approx(upstream_ap(found, once[0]), abs=1e-9)
    samples = statistics.draw_resamples(len(found.images), 20)
    assert samples.shape == (20, 12) and (samples.sum(1) == 12).all() and len(np.unique(samples, axis=0)) > 10
    expected = [upstream_ap(found, sample) for sample in samples]
    assert statistics.average_precision(found, samples) == pytest.approx(expected, abs=1e-9)


def test_what_a_sample_may_lack():
    """A class without objects in the sample does not count, nor does a sample without any."""
    found = made_up(detections=30)
    found.target_image[:] = 0
    found.target_cls[:] = 1
    empty, full = np.eye(12, dtype=int)[[5, 0]] * 12
    value = statistics.average_precision(found, np.stack([empty, full]))
    assert math.isnan(value[0]) and value[1] == pytest.approx(upstream_ap(found, full), abs=1e-9)
    nothing = Validation(**{**vars(found), **{k: vars(found)[k][:0] for k in ("image", "tp", "conf", "cls", "box")}})
    assert statistics.average_precision(nothing) == 0


def test_difference_by_hand():
    """Two seeds a model, images that say nothing: variance 0.005 / 2 with one degree of freedom, t = 12.706."""
    still = np.zeros((2, 50))
    found = statistics.compare_means([0.5, 0.6], [0.4, 0.4], still + 0.55, still + 0.4)
    reach = 12.7062 * math.sqrt(0.005 / 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.15, 0.15 - reach, 0.15 + reach), abs=1e-4)
    assert found.seeds and not found.shown
    # One seed: the normal interval of the images alone, and no verdict
    ours, theirs = np.array([[0.5, 0.7, 0.6, 0.6]]), np.array([[0.1, 0.1, 0.1, 0.1]])
    found = statistics.compare_means([0.6], [0.1], ours, theirs)
    reach = 1.95996 * math.sqrt(0.02 / 3)
    assert (found.low, found.high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-4)
    assert found.low > 0 and not found.seeds and not found.shown
    # Images that are harder for both at once make no difference
    found = statistics.compare_means([0.6, 0.6], [0.5, 0.5], np.tile(ours, (2, 1)), np.tile(ours - 0.1, (2, 1)))
    assert (found.low, found.high) == pytest.approx((0.1, 0.1)) and found.shown


def test_intervals_hold_the_truth_as_often_as_they_say():
    """3 seeds, of which each scatters as much as the images do: 95 % of the intervals hold the true difference."""
    rng = np.random.default_rng(1)
    held = seen = 0
    for _ in range(1500):
        shift = rng.normal(0, 0.02)  # what the images at hand do to the difference
        ours, theirs = 0.53 + shift + rng.normal(0, 0.02, 3), 0.5 + rng.normal(0, 0.02, 3)
        noise = rng.normal(0, 0.02, 200)
        found = statistics.compare_means(ours, theirs, np.tile(noise, (3, 1)), np.zeros((3, 200)))
        held += found.low <= 0.03 <= found.high
        seen += found.shown
    assert 0.93 < held / 1500 < 0.985
    assert 0.05 < seen / 1500 < 0.5  # of a difference as large as the noise, some


def test_means_and_fronts_by_hand():
    assert statistics.mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert statistics.mean_and_deviation([0.5]) == (0.5, None)
    assert statistics.pareto_front([(3, 9), (1, 5), (2, 4), (2, 7), (4, 9), (1, 4)]) == [1, 3, 0]
    assert results.mean_over_seeds([None, 2.0, 4.0]) == {
        "mean": 3.0,
        "deviation": math.sqrt(2),
        "values": [None, 2.0, 4.0],
    }
    assert results.mean_over_seeds([None]) is None


@pytest.mark.parametrize("name", ["rtdetr-l-FLA", "rtdetr-l-Biformer"])
def test_published_gflops(name):
    """The figures of the tutorials' tables come out on this release; the model is as before."""
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
    keys = list(model.state_dict())
    assert f"{count_published_gflops(model):.1f}" == str(PUBLISHED[name]["gflops"])
    assert list(model.state_dict()) == keys and not any("total_ops" in vars(m) for m in model.modules())


ROWS = [
    {
        "model": "base_line|100%",
        "seeds": [0, 1],
        "mAP50-95": {"mean": 0.512345, "deviation": 0.0123, "values": [0.5, 0.52]},
        **{key: {"mean": 0.7, "deviation": 0.01, "values": []} for key in results.METRICS[1:-1]},
        "AP large": None,
        "MiB": {"mean": 100.4, "deviation": 1.0, "values": [99.8, 101.0]},
        "seconds": {"mean": 90.0, "deviation": 6.0, "values": []},
        "cost": {"parameters": 1_466_396, "GFLOPs published": 6.04, "GFLOPs honest": 16.49, "ms": 10.0, "spread": 0.05,
                 "over_first": 1.0, "MiB": 12.4},
    },
    {"model": "worse", "seeds": [], "difference": {"value": -0.01, "low": -0.04, "high": 0.02, "shown": False,
                                                   "seeds": True}},
]  # fmt: skip


def test_tables_by_hand():
    lines = tables.format_markdown(ROWS, ["A note."]).splitlines()
    cells = [cell.strip() for cell in lines[2].replace("\\|", "/").split("|")[1:-1]]
    assert cells == [
        "base_line/100%", "2", "51.2 ± 1.2", "–", "70.0 ± 1.0", "70.0 ± 1.0", "70.0 ± 1.0", "–", "1.47", "6.04", "16.5",
        "10.0 ± 0.5", "12", "101", "1.5 ± 0.1",
    ]  # fmt: skip
    assert "−1.0 [−4.0, +2.0] n.s." in lines[3] and lines[5] == "A note.  "
    assert [tables.format_signed(x) for x in (-0.0004, 0.0, 0.0006)] == ["+0.0", "+0.0", "+0.1"]
    text = tables.format_latex(ROWS, ["A note."])
    assert r"base\_line|100\% & 2 & 51.2 $\pm$ 1.2 & -- &" in text and r"$-$1.0 [$-$4.0, +2.0] n.s." in text
    assert all(word in text for word in (r"\toprule", r"\midrule", r"\bottomrule", "% A note."))
    rows = list(csv.DictReader(tables.format_csv(ROWS, []).splitlines()))
    assert (
        rows[0]["mAP50-95 mean"] == "0.512345" and rows[0]["AP large mean"] == "" and rows[0]["parameters"] == "1466396"
    )
    assert rows[1]["difference low"] == "-0.04" and rows[1]["model"] == "worse"


def test_findings_by_hand():
    """No model is called better where chance may have made it so."""
    base = {"model": "base", "seeds": [0, 1]}

    def finding(low: float, high: float, seeds: bool = True) -> str:
        value, shown = (low + high) / 2, seeds and not low <= 0 <= high
        difference = {"value": value, "low": low, "high": high, "seeds": seeds, "shown": shown}
        return html_report.findings([base, {"model": "new", "difference": difference, "cost": {"over_first": 1.2}}])[0]

    assert finding(0.01, 0.03) == "new: better than base by +2.0 mAP50-95 (+1.0 to +3.0) at 1.20 times its latency."
    assert finding(-0.03, -0.01).startswith("new: worse than base by −2.0 mAP50-95")
    assert finding(-0.01, 0.03).startswith("new: no difference shown to base: +1.0 mAP50-95")
    assert finding(0.01, 0.03, seeds=False).startswith("new: one seed, which does not tell")
    assert html_report.findings([base, {"model": "new"}]) == ["new: nothing to compare yet."]
    assert html_report.findings([base]) == ["base alone: nothing to compare it with."]


def test_changed_rows():
    def rows(*modules: str, head: list[int]) -> list[dict]:
        common = {"n": 1, "arguments": []}
        return [{"module": m, "index": i, "from": head if m == "Head" else -1, **common} for i, m in enumerate(modules)]

    first = rows("Stem", "Block", "AIFI", "Head", head=[-1, 1])
    other = rows("Stem", "New", "Block", "Head", head=[-1, 2])  # the same row, which is now the third
    assert [(row["mark"], row["module"]) for row in architecture.mark_differences(first, other)] == [
        ("", "Stem"), ("+", "New"), ("", "Block"), ("−", "AIFI"), ("", "Head"),
    ]  # fmt: skip
    rewired = rows("Stem", "Block", "AIFI", "Head", head=[-1, 0])
    marks = [(row["mark"], row["module"]) for row in architecture.mark_differences(first, rewired)]
    assert marks == [("", "Stem"), ("", "Block"), ("", "AIFI"), ("−", "Head"), ("+", "Head")]


def test_sizes_by_hand():
    """COCO's sizes, in pixels of the original image; of 101 points of recall."""
    found = made_up(images=3)
    objects = np.array([[0, 0, 20, 20], [40, 40, 90, 90], [10, 10, 50, 50]], np.float32)  # one small, two medium
    found = replace(
        found,
        **{"target_image": np.array([0, 0, 1]), "target_cls": np.array([0, 0, 0]), "target_box": objects},
        **{"image": np.array([0, 1, 2]), "conf": np.array([0.9, 0.8, 0.7], np.float32), "cls": np.array([0, 0, 1])},
        box=np.array([[0, 0, 20, 20], [10, 10, 50, 50], [0, 0, 9, 9]], np.float32),
    )
    sizes = validation.size_ap(found)
    assert sizes == {"AP small": 1.0, "AP medium": pytest.approx(51 / 101), "AP large": None}
    nothing = replace(found, **{k: vars(found)[k][:0] for k in ("image", "tp", "conf", "cls", "box")})
    assert validation.size_ap(nothing) == {"AP small": 0.0, "AP medium": 0.0, "AP large": None}


def test_boxes_that_were_scaled_are_the_same_objects():
    found = made_up()
    moved = replace(found, target_box=found.target_box + np.float32(0.01))
    assert found.same_objects(moved) and not found.same_objects(replace(found, target_box=found.target_box + 1))
    assert not found.same_objects(replace(found, target_cls=found.target_cls + 1))


def test_names_that_matplotlib_reads_otherwise():
    rows = [
        {
            "model": name,
            "mAP50-95": {"mean": 0.5, "deviation": None},
            "cost": {"ms": 2.0 + i},
            "classes": {"a$b$c": 0.4},
        }
        for i, name in enumerate(["_hidden", "x$y$z", "模型"])
    ]
    for svg in (figures.plot_trade_off(rows, "ms"), figures.plot_classes(rows)):
        assert all(name in svg for name in ("_hidden", "x$y$z", "模型"))
    assert "a$b" in svg


def test_names_and_times(tmp_path):
    assert study_folder.label_models(["a/x.yaml", "b/x.yaml"]) == ["a-x", "b-x"]
    assert study_folder.label_models(["a/x.yaml", "b/x.yaml", "y.yaml"], {"a/x.yaml": "x"}) == [
        "x",
        "b-x",
        "y",
    ]  # it keeps its name
    assert study_folder.label_models(["/x.yaml"], {"elsewhere/x.yaml": "x"}) == [
        "x-2"
    ]  # at the root no folder tells it apart
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert (
        study_folder.absolute_path(os.path.relpath(mine)) == str(mine)
        and study_folder.absolute_path("rtdetr-l.yaml") == "rtdetr-l.yaml"
    )
    assert study_folder.absolute_path(0.5) == 0.5
    assert study_folder.label_models(["x.yaml", "y.pt"]) == ["x", "y"]
    with pytest.raises(Refused, match="x 2 times"):
        study_folder.label_models(["x.yaml", "x.pt"])
    assert [local_runs.format_duration(s) for s in (10, 100, 7300)] == ["less than a minute", "2 min", "2 h 02 min"]


# A study --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """16 images to learn from, 8 to validate on."""
    return draw_shapes(tmp_path_factory.mktemp("shapes 16"), train=16, val=8)  # a folder with a space


def arguments(data: Path, out: Path, *models: str, seeds: str = "0 1") -> list[str]:
    chosen = ["--models", *(models or MODELS), "--data", str(data), "--seeds", *seeds.split(), "--out", str(out)]
    return [*chosen, "--epochs", "1", "imgsz=64", "batch=8", "plots=False", "--workers=0"]


def start(*argv: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})


@pytest.fixture
def priced(monkeypatch):
    """Costs are made up, which takes no time; that they are measured, the study below shows."""

    def costs(models, *_):
        one = {
            "parameters": 1e6,
            "GFLOPs published": 1.0,
            "GFLOPs honest": 2.0,
            "spread": 0.0,
            "MiB": 3.0,
            "failures": [],
        }
        found = {model: {**one, "ms": 4.0 + i, "over_first": 1 + i / 4} for i, model in enumerate(models)}
        return {"machine": "none", "models": found}

    monkeypatch.setattr(compare, "measure_costs", costs)


def main(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, argv)])
    return compare.main()


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    """A study of two models and two seeds that was killed in its second run, and gone on with."""
    out = tmp_path_factory.mktemp("study")
    first, second = (out / "runs" / Path(model).stem / "seed-0" for model in MODELS)
    with start(*arguments(data, out)) as process:
        while not (second / "weights" / "last.pt").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (second / "run.json").exists()
    before = written(first)
    with start(*arguments(data, out)) as process:
        (out / "log").write_text(process.communicate(timeout=400)[0], encoding="utf-8")
    assert process.returncode == 0, (out / "log").read_text()
    assert written(first) == before
    return out


def written(folder: Path) -> dict[Path, int]:
    """When each file of a run was written, but for what is worked out from it."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "resamples.npy")
    return {file: file.stat().st_mtime_ns for file in files}


def test_a_study_goes_on_after_a_kill(folder, data):
    log = (folder / "log").read_text()
    assert "run 2 of 4, rtdetr-tiny-FLA with seed 0, continues from its checkpoint" in log
    assert "run 1 of 4" not in log and "run 4 of 4, rtdetr-tiny-FLA with seed 1: epoch 1 of 1" in log
    study = json.loads((folder / "study.json").read_text())
    assert [(run["model"], run["seed"], run["state"]) for run in study["runs"]] == [
        (Path(model).stem, seed, "done") for seed in (0, 1) for model in MODELS
    ]
    assert (
        study["versions"]["torch"] == torch.__version__
        and "yolo train model=rtdetr-tiny.yaml" in study["runs"][0]["command"]
    )
    for run in study["runs"]:
        file = folder / "runs" / run["model"] / f"seed-{run['seed']}"
        found, again = Validation.load(file / "validation.npz"), YOLO(file / "weights" / "best.pt")
        box = again.val(
            data=str(data), imgsz=64, batch=8, plots=False, verbose=False, project=str(folder / "again")
        ).box
        assert run["figures"]["mAP50-95"] == pytest.approx(box.map, abs=1e-9)
        assert statistics.average_precision(found)[0] == pytest.approx(box.map, abs=1e-6)
        reached = box_iou(torch.from_numpy(found.box), torch.from_numpy(found.target_box)).numpy()
        reached[found.image[:, None] != found.target_image] = 0
        reached[found.cls[:, None] != found.target_cls] = 0
        assert (reached.max(1, initial=0)[:, None] > np.linspace(0.5, 0.95, 10) - 1e-3)[found.tp].all()
        assert len(found.images) == 8 and len(found.target_cls) == sum(
            len(label.read_text().splitlines()) for label in (data.parent / "data" / "labels" / "val").glob("*.txt")
        )
    first = study["results"][0]
    values = [run["figures"]["mAP50"] for run in study["runs"] if run["model"] == "rtdetr-tiny"]
    assert first["mAP50"]["mean"] == pytest.approx(np.mean(values))
    assert first["mAP50"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert first["cost"]["parameters"] == 1_466_396 and first["cost"]["over_first"] == 1 and first["cost"]["ms"] > 0
    assert "difference" not in first and study["results"][1]["difference"]["seeds"]


def test_a_run_is_what_yolo_train_makes(folder, data, tmp_path):
    """The same weights to the bit."""
    YOLO(MODELS[0]).train(
        data=str(data), seed=1, epochs=1, imgsz=64, batch=8, plots=False, workers=0, project=str(tmp_path), name="run"
    )
    ours = torch.load(folder / "runs" / "rtdetr-tiny" / "seed-1" / "weights" / "best.pt", weights_only=False)["model"]
    theirs = torch.load(tmp_path / "run" / "weights" / "best.pt", weights_only=False)["model"]
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))


def test_nothing_is_done_again(folder, data, monkeypatch, capsys):
    before = written(folder / "runs")
    costs = json.loads((folder / "study.json").read_text())["costs"]
    assert main(monkeypatch, *arguments(data, folder), "plots=True") == 0  # which trains nothing else
    assert written(folder / "runs") == before
    assert json.loads((folder / "study.json").read_text())["costs"] == costs
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out and "Trained on" not in table


def test_a_failing_model_is_reported_and_the_rest_goes_on(folder, data, tmp_path, monkeypatch, capsys, priced):
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    broken = tmp_path / "broken.yaml"
    text = (ROOT / "cfg_custom" / "models" / "rtdetr-tiny.yaml").read_text()
    broken.write_text(text.replace("RepC3", "RepC4", 1), encoding="utf-8")
    argv = arguments(data, out, MODELS[0], str(broken), MODELS[1], seeds="0 1")
    assert main(monkeypatch, *argv) == 1
    said = capsys.readouterr()
    assert "broken with seed 0 failed" in said.out and "RepC4" in said.out and "FAILED" in said.err
    study = json.loads((out / "study.json").read_text())
    states = {(run["model"], run["seed"]): run["state"] for run in study["runs"]}
    assert states == {
        (m, s): "failed" if m == "broken" else "done"
        for m in ("rtdetr-tiny", "broken", "rtdetr-tiny-FLA")
        for s in (0, 1)
    }
    assert "| broken " in (out / "table.md").read_text() and "Failed: broken, seed 1" in (out / "table.md").read_text()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Failed: broken, seed 0" in page and "Traceback" in page
    # As the first, it leaves nothing to compare with
    first_failed = study_folder.Study(
        out, {**study["settings"], "models": {"broken": str(broken), "rtdetr-tiny": MODELS[0]}}
    )
    rows = results.summarise_study(first_failed, study["costs"]["models"])
    assert "ms" in rows[1]["cost"] and "over_first" not in rows[1]["cost"] and "difference" not in rows[1]
    # Mended, it is tried again, and nothing else
    broken.write_text(text, encoding="utf-8")
    assert main(monkeypatch, *argv) == 0
    err = capsys.readouterr().err
    assert "run 2 of 6, broken with seed 0" in err and "run 1 of 6" not in err and "run 3 of 6" not in err
    # What has been trained is another matter
    broken.write_text(text.replace("RepC3", "C3", 1), encoding="utf-8")
    assert main(monkeypatch, *argv) == 2
    assert f"was made with other settings: model was {broken}, is now {broken}, with other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, says",
    [
        (["--models", "rtdetr-nano.yaml"], "rtdetr-nano.yaml does not exist"),
        (["--data", "nothing.yaml"], "--data nothing.yaml: "),
        (["--seeds", "1", "1"], "a seed is repeated"),
        (["epoch=3"], "epoch"),
        (["lr0=fast"], "lr0"),
        (["cfg=nothing.yaml"], "cfg=nothing.yaml does not exist"),
        (["seed=3"], "the study sets it"),
        (["--from", "nowhere"], "weights/best.pt is missing there"),
        (["imgsz=abc"], "imgsz"),
        (["device=7"], "device=7"),
        (["split=test"], "names no images for it"),
        (["imgsz=32"], "rtdetr-tiny was made with other settings: imgsz was 64, is now 32"),
    ],
)
def test_wrong_input_is_one_line(folder, data, monkeypatch, capsys, change, says):
    argv = arguments(data, folder)
    before = (folder / "study.json").read_bytes()
    assert main(monkeypatch, *argv, *change) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("compare.py: ") and says in err and "\n" not in err
    assert (folder / "study.json").read_bytes() == before


def test_data_that_cannot_be_read(data, tmp_path, monkeypatch, capsys):
    for text in ("{", "train: images\n", f"path: {tmp_path}\ntrain: no\nval: no\nnames: [a]\n"):
        file = tmp_path / "bad.yaml"
        file.write_text(text, encoding="utf-8")
        assert main(monkeypatch, *arguments(file, tmp_path / "out")) == 2
        err = capsys.readouterr().err.strip().splitlines()[-1]
        assert err.startswith(f"compare.py: --data {file}: ")
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_with_what_the_machine_has_now(tmp_path, monkeypatch):
    """Its device and workers may be others than when it began; nothing that is trained changes."""
    given = {}

    class Model:
        def __init__(self, file):
            given["file"] = file
            self.trainer = None

        def train(self, **arguments):
            given.update(arguments)

    begun = study_folder.Run("x", "x.yaml", 0, tmp_path / "x" / "seed-0")
    begun.last.parent.mkdir(parents=True)
    torch.save({"optimizer": {}}, begun.last)
    monkeypatch.setattr("_compare.training_run.YOLO", Model)
    settings = {"arguments": {"workers": 1, "device": "cpu", "imgsz": 96, "verbose": False}}
    assert train_run(begun, settings)
    assert given == {"file": begun.last, "resume": True, "workers": 1, "device": "cpu"}


def test_digests_of_model_files(tmp_path):
    """Upstream's scaled names are no files; a comment is no other model; what cannot be parsed has a digest, too."""
    small, large = study_folder.describe_file("yolo11n.yaml"), study_folder.describe_file("yolo11x.yaml")
    assert small["file"] == "yolo11n.yaml" and small["digest"] != large["digest"]
    mine = tmp_path / "mine.yaml"
    digests = []
    for text in ("a: 1", "a: 1  # one", "a: 2", "{"):
        mine.write_text(text, encoding="utf-8")
        digests.append(study_folder.describe_file(str(mine))["digest"])
    assert digests[0] == digests[1] and len(set(digests)) == 3
    with pytest.raises(Refused, match="nothing.pt does not exist"):
        study_folder.describe_file("nothing.pt")


def test_devices(monkeypatch):
    """What a run was trained on may not be here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device({"device": "0"}, {"arguments": {}}) == ""
    assert choose_device({"device": "cpu"}, {"arguments": {}}) == "cpu"
    assert choose_device({"device": "cpu"}, {"arguments": {"device": "0"}}) == "0"


def test_a_damaged_study_file(folder, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "study.json").write_text("{", encoding="utf-8")
    assert main(monkeypatch, *arguments(data, out)) == 2
    assert "study.json is not a study's file" in capsys.readouterr().err
    assert (out / "study.json").read_text() == "{"


def test_one_at_a_time(folder, data, monkeypatch, capsys):
    with compare.FileLock(folder / ".lock"), start(*arguments(data, folder)) as process:
        said = process.communicate(timeout=200)[0]
    assert process.returncode == 2 and "is being worked on by another compare.py" in said


def test_a_changed_data_set_is_no_comparison(folder, data, tmp_path, monkeypatch, capsys, priced):
    """What was validated before is so again, and till then it counts as failed."""
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    file = out / "runs" / "rtdetr-tiny" / "seed-1" / "validation.npz"
    found = Validation.load(file)
    found.target_cls[0] = (found.target_cls[0] + 1) % 3
    found.save(file)
    assert main(monkeypatch, *arguments(data, out)) == 1
    assert "rtdetr-tiny with seed 1 failed: validated on other images or labels than" in capsys.readouterr().out
    assert json.loads((out / "study.json").read_text())["results"][0]["seeds"] == [0]
    weights = file.with_name("weights") / "best.pt"
    before = weights.stat().st_mtime_ns
    assert main(monkeypatch, *arguments(data, out)) == 0 and weights.stat().st_mtime_ns == before
    assert json.loads((out / "study.json").read_text())["results"][0]["seeds"] == [0, 1]


def test_what_the_models_were_made_with_is_known_without_the_study(folder, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    (out / "study.json").unlink()
    assert main(monkeypatch, *arguments(data, out), "imgsz=96") == 2
    assert "rtdetr-tiny was made with other settings: imgsz was 64, is now 96." in capsys.readouterr().err
    assert study_folder.known_labels(out) == {model: Path(model).stem for model in MODELS}
    (out / "runs" / "rtdetr-tiny" / "made.json").unlink()
    assert main(monkeypatch, *arguments(data, out)) == 2
    assert "made with other settings: made.json is missing" in capsys.readouterr().err


def test_costs_that_cannot_be_measured(folder, data, tmp_path, monkeypatch, capsys):
    """The rest is shown, and why they lack."""
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    monkeypatch.setattr(compare, "measure_costs", lambda *_: 1 / 0)
    (out / "runs" / "rtdetr-tiny" / "seed-0" / "weights" / "best.pt").touch()
    assert main(monkeypatch, *arguments(data, out)) == 0  # they are known
    assert main(monkeypatch, *arguments(data, out, *reversed(MODELS))) == 0
    assert "Not measured: ZeroDivisionError: division by zero." in capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Not measured: ZeroDivisionError" in page and "Accuracy against cost" not in page and "Training" in page


def test_a_figure_that_cannot_be_measured(folder, monkeypatch):
    """The others are."""
    files = {Path(m).stem: folder / "runs" / Path(m).stem / "seed-0" / "weights" / "best.pt" for m in MODELS}

    def counts(model, imgsz):
        assert imgsz == 64 or model.yaml["yaml_file"] == MODELS[1], "no profiler\nknows it"
        return 1.5

    monkeypatch.setattr(cost, "count_published_gflops", counts)
    monkeypatch.setattr(cost, "run_module", lambda *_: "noise\n7\n30\n")
    sizes = {"rtdetr-tiny": 96, "rtdetr-tiny-FLA": 64}
    found = cost.measure_costs(files, sizes, torch.device("cpu"), 2)["models"]
    tiny, fla = found.values()
    assert tiny["failures"] == ["GFLOPs in the published style of rtdetr-tiny: AssertionError: no profiler"]
    assert "GFLOPs published" not in tiny and fla["GFLOPs published"] == 1.5 and not fla["failures"]
    assert tiny["over_first"] == 1 and (tiny["MiB"], tiny["MiB training"]) == (7, 30)
    alike = cost.measure_costs(files, {**sizes, "rtdetr-tiny": 64}, torch.device("cpu"), 2)["models"]
    assert tiny["GFLOPs honest"] > 1.5 * alike["rtdetr-tiny"]["GFLOPs honest"]  # each at a size of its own


def test_another_baseline_is_measured_anew(folder, data, tmp_path, monkeypatch, priced):
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    assert main(monkeypatch, *arguments(data, out, *reversed(MODELS))) == 0
    rows = json.loads((out / "study.json").read_text())["results"]
    assert "not named in its last command" not in (out / "table.md").read_text()
    assert [(row["model"], row["cost"]["over_first"]) for row in rows] == [
        ("rtdetr-tiny-FLA", 1), ("rtdetr-tiny", 1.25)
    ]  # fmt: skip


def test_models_that_are_not_named_again(folder, data, tmp_path, monkeypatch, priced):
    """Their runs stay, and the table says that they are there."""
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    assert main(monkeypatch, *arguments(data, out, MODELS[1])) == 0
    assert "In the study's folder, and not named in its last command: rtdetr-tiny." in (out / "table.md").read_text()


def test_what_the_trainer_rounds_and_renames(data, tmp_path):
    """A side that is no multiple of the stride, a batch that is chosen, one class."""
    trained = study_folder.Run("one", MODELS[0], 0, tmp_path / "one" / "seed-0")
    arguments = {"epochs": 1, "imgsz": 50, "batch": -1, "single_cls": True, "plots": False, "workers": 0}
    outcome = perform_run(trained, {"data": str(data), "arguments": arguments})
    assert outcome["state"] == "done", outcome["traceback"]
    assert outcome["imgsz"] == 64 and list(outcome["figures"]["classes"]) == ["item"]
    assert list(Validation.load(trained.folder / study_folder.FOUND).names) == ["item"]


@pytest.mark.nightly
def test_runs_of_others_are_taken_in(folder, data, tmp_path, monkeypatch, capsys, priced):
    """Grouped by what they differ in; figures are those of the study that made them."""
    runs = [folder / "runs" / Path(model).stem / f"seed-{seed}" for model in MODELS for seed in (0, 1)]
    ours = shutil.ignore_patterns("*.npz", "run.json", "*.npy")
    there = [shutil.copytree(run, tmp_path / "theirs" / f"{i}", ignore=ours) for i, run in enumerate(runs)]
    out = tmp_path / "taken"
    assert main(monkeypatch, "--from", *there, "--out", out) == 0
    ours, theirs = (json.loads((f / "study.json").read_text()) for f in (folder, out))
    assert [row["model"] for row in theirs["results"]] == ["rtdetr-tiny", "rtdetr-tiny-FLA"]
    for a, b in zip(ours["results"], theirs["results"]):
        assert a["mAP50-95"] == b["mAP50-95"] and a["seeds"] == b["seeds"] and a["classes"] == b["classes"]
    assert theirs["results"][1]["difference"] == pytest.approx(ours["results"][1]["difference"])
    with pytest.raises(Refused, match="with seed 0 and the same arguments"):
        existing_runs.group_runs([there[0], runs[0]], None)
    changed = there[1] / "weights" / "best.pt"
    checkpoint = torch.load(changed, weights_only=False)
    checkpoint["train_args"] |= {"lr0": 0.02, "seed": 0}
    checkpoint["optimizer"] = {}  # as before the training is over
    torch.save(checkpoint, changed)
    found, _ = existing_runs.group_runs(there[:2], None)
    assert (
        theirs["settings"]["seeds"] == []
        and list(found) == ["0", "1"]
        and [group["runs"].keys() for group in found.values()] == [{0}, {0}]
    )
    capsys.readouterr()
    assert main(monkeypatch, "--from", *there[:2], "--out", tmp_path / "lr") == 0
    said = capsys.readouterr().out
    assert re.search(r"Trained differently: lr0 = 0\.00\d+ \(0\), 0\.02 \(1\)\.", said)
    assert "Not over: 1, seed 0, 1 of 1 epochs." in said and "Not over: 0" not in said
    # The same runs on other data are another study
    other = tmp_path / "other.yaml"
    other.write_text(data.read_text().replace("images/val", "images/train"), encoding="utf-8")
    assert main(monkeypatch, "--from", there[0], "--data", other, "--out", tmp_path / "other") == 0
    assert f"Trained on {data}." in capsys.readouterr().out
    assert main(monkeypatch, "--from", *there[:2], "--data", other, "--out", tmp_path / "lr") == 2
    assert "0 was made with other settings: data was " in capsys.readouterr().err


# The page -------------------------------------------------------------------------------------------------------------
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def browser(tmp_path):
    """A Chromium with an empty profile that notes what it asks for."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium and chromedriver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"
    for flag in (*flags, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def column(driver, index: int) -> list[str]:
    rows = driver.find_elements("css selector", ".results tbody tr")
    return [row.find_elements("css selector", "th, td")[index].text for row in rows]


def test_the_page_in_chromium(folder, browser, tmp_path):
    page = tmp_path / "elsewhere" / "report.html"  # nothing beside it
    page.parent.mkdir()
    shutil.copy(folder / "report.html", page)
    browser.get("about:blank")
    browser.get_log("performance")  # what Chromium asks of itself as it starts
    for width, height, mobile in ((1280, 900, False), (390, 844, True)):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )
        browser.get(page.as_uri())
        assert browser.get_log("browser") == []
        wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner  # the page does not scroll sideways
        pictures = browser.execute_script(
            """return [...document.images].map(i =>
                [i.closest("section").id, i.complete && i.naturalWidth > 50, i.alt.length > 10])"""
        )
        assert all(loaded and described for _, loaded, described in pictures)
        assert Counter(section for section, *_ in pictures) == {
            "cost": 2, "training": 2, "classes": 1, "images": 6 * 3, "heat": 2 * 2
        }  # fmt: skip
        shot = base64.b64decode(
            browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
        )
        assert len(shot) > 50_000
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"}
    assert {url.partition(":")[0] for url in urls} <= {"file", "data"}
    assert {url for url in urls if url.startswith("file:")} == {page.as_uri()}

    heads = browser.find_elements("css selector", ".results th button")
    assert [head.text for head in heads] == [c.title for c in tables.COLUMNS]
    latency = [c.title for c in tables.COLUMNS].index("latency, ms")
    before = column(browser, 0)
    orders = []
    for _ in range(2):
        browser.execute_script("arguments[0].focus()", heads[latency])
        browser.switch_to.active_element.send_keys("\ue007")  # the Enter key
        values = [float(text.split()[0]) for text in column(browser, latency)]
        state = heads[latency].find_element("xpath", "..").get_attribute("aria-sort")
        assert values == sorted(values, reverse=state == "descending")
        orders.append((state, column(browser, 0)))
    assert [state for state, _ in orders] == ["descending", "ascending"] and sorted(orders[0][1]) == sorted(before)
    assert "Sorted by latency, ms, ascending." in browser.find_element("id", "sorted").text
    # What has the focus is not under the column that stays, wherever the table was scrolled to
    left = browser.execute_script(
        """const [head] = arguments;
        document.querySelector(".scroll").scrollLeft = head.parentElement.offsetLeft;
        head.focus();
        return head.getBoundingClientRect().left""",
        heads[1],
    )
    assert left >= browser.execute_script("return arguments[0].parentElement.getBoundingClientRect().right", heads[0])
    for head in heads:
        browser.execute_script("arguments[0].scrollIntoView({inline: 'center'})", head)
        head.click()  # also the columns in which nothing is known
    assert sorted(column(browser, 0)) == sorted(before)


def test_the_page_says_what_it_is_to_a_screen_reader(folder, browser):
    browser.get((folder / "report.html").as_uri())
    script = """
        const names = [...document.querySelectorAll("section")].map(s => s.getAttribute("aria-labelledby"));
        return {
            lang: document.documentElement.lang,
            labelled: names.every(n => document.getElementById(n)),
            anchors: [...document.querySelectorAll("nav a")].every(a => document.querySelector(a.getAttribute("href"))),
            headings: [...document.querySelectorAll("h1, h2, h3")].map(h => Number(h.tagName[1])),
            scopes: [...document.querySelectorAll("th")].every(th => ["row", "col"].includes(th.scope)),
            ids: [...document.querySelectorAll("[id]")].map(e => e.id),
            scroll: [...document.querySelectorAll(".scroll")].every(s => s.tabIndex === 0 && s.ariaLabel),
        }"""
    found = browser.execute_script(script)
    assert found["lang"] == "en" and found["labelled"] and found["anchors"] and found["scopes"] and found["scroll"]
    levels = found["headings"]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert len(set(found["ids"])) == len(found["ids"])


def test_hostile_names_stay_text(folder, tmp_path):
    """A class or a model that is called like markup is shown, not run."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    out = tmp_path / "study"
    shutil.copytree(folder, out)
    study = json.loads((out / "study.json").read_text())
    label, evil = "rtdetr-tiny", "<img src=x onerror=alert(1)>"
    study["results"][0]["classes"] = {evil: 0.5}
    settings = {**study["settings"]}
    made = study_folder.Study(out, settings)
    html_report.write_report(made, study["results"], f"compare.py {evil}")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert evil not in page and "&lt;img src=x onerror=alert(1)&gt;" in page and label in page
