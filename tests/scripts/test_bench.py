"""The benchmark: what it counts as the floor, how it compares and fits, and its command line, small."""

import json
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

import bench
from _bench import cases, deploy, depth, lower_bound, measure, models, report, training_memory, transformers_peer
from _shared import timing
from ultralytics import RTDETR, YOLO
from ultralytics.fork import decoder_size
from ultralytics.nn.AddModules.FLA import FocusedLinearAttention
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling

CPU = torch.device("cpu")
FP32 = {"autocast": None, "compile": False}


def test_floor_of_fla_is_its_products():
    """q, k and v, the two products of attention, the depth-wise convolution and the output projection."""
    products = lower_bound.record_products(FocusedLinearAttention(64), torch.zeros(2, 64, 6, 5))
    names = [func._schema.name.partition("::")[2] for func, *_ in products]
    assert sorted(names) == ["addmm", "bmm", "bmm", "convolution", "mm", "mm"]
    shapes = [
        [o[0] for o in operands if isinstance(o, tuple) and len(o) == 2 and isinstance(o[0], tuple)]
        for _, operands, _ in products
    ]
    assert [(60, 64), (64, 64)] in shapes and [(60, 64), (64, 128)] in shapes


def test_floor_of_mqa_is_fused_attention():
    """Else it would count the scores in memory, which is what the module is faster for leaving out."""
    module = MultiQueryAttentionLayerWithDownSampling(16, 2, 8, 8, 1, 1, 1)
    products = [func for func, *_ in lower_bound.record_products(module, torch.zeros(1, 16, 8, 8))]
    assert products.count(F.scaled_dot_product_attention) == 1
    assert products.count(torch.ops.aten.convolution.default) == 4 and len(products) == 5


def test_floor_runs_every_product():
    module, x = FocusedLinearAttention(16), torch.zeros(1, 16, 4, 4)
    run = lower_bound.make_floor_call(module, x, [x])
    with torch.no_grad(), lower_bound.ProductRecorder() as recorder:
        run()
    assert [func for func, *_ in recorder.products] == [func for func, *_ in lower_bound.record_products(module, x)]


@pytest.mark.nightly
def test_checkpointed_activations_need_less_memory():
    (row,) = training_memory.measure_training_memory(["rtdetr-tiny"], CPU, FP32, [1], 3, 0.1)
    assert 0 < row["GiB checkpointed"] < 0.8 * row["GiB plain"] and row["time checkpointed"] > 0.5
    assert 0 < row["GiB recipe"] < row["GiB plain"] and row["time recipe"] > 0.3


def test_compare_alternates_and_takes_ratios_of_the_same_round(monkeypatch):
    """A machine that is three times slower in every second round does not show in the ratio."""
    now, calls = [0.0], []

    def side(name: str, seconds: float):
        def call() -> None:
            calls.append(name)
            now[0] += seconds * (3 if (len(calls) - 1) // 2 % 2 else 1)

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    found = timing.time_in_turn({"a": side("a", 2.0), "b": side("b", 1.0)}, CPU, 8, 1e9)
    assert len(found["a"].samples) == len(found["b"].samples) == 8
    assert found["a"].over(found["b"]) == pytest.approx(2)
    assert calls[4:8] in (["a", "b", "b", "a"], ["b", "a", "a", "b"])


def test_exponent():
    assert timing.fit_exponent([400, 1600, 6400], [3.0 * n**1.25 for n in (400, 1600, 6400)]) == pytest.approx(1.25)


def test_peak_is_the_case_s_and_not_the_process_s(monkeypatch):
    """Scores in full take 2 x 2 x 1,600 x 1,600 numbers; ours take none of them."""
    case = next(c for c in measure.iterate_cases() if c.family == "MQA" and c.shape == (1, 64, 40, 40))
    options, real = {"autocast": None, "compile": False}, measure.measure_in_process
    once = cache(lambda side: real("peak", case.name, side, "inference", options))  # not each of the three of a median
    monkeypatch.setattr(measure, "measure_in_process", lambda kind, name, side, *_: once(side))
    naive, ours = (measure.measure_peak_alone(case, side, "inference", CPU, options) for side in ("naive", "ours"))
    scores = 2 * 1600**2 * 4 / 2**20
    assert naive > 1.5 * scores and 0 < ours < 0.7 * naive


def run(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench.py", *argv])
    return bench.main()


def test_modules(monkeypatch, capsys, tmp_path):
    """A made-up small case from the command line to the kept file, its picture, and JSON."""
    small = cases.Case("FLA", cases.fla(32), (1, 32, 8, 8), "small")
    larger = cases.Case("FLA", cases.fla(32), (1, 32, 16, 16), "small")
    monkeypatch.setattr(cases, "CASES", [small])
    monkeypatch.setattr(cases, "GROWTH", {"FLA": [small, larger]})
    monkeypatch.setattr(measure, "measure_peak_alone", lambda case, *_: float(case.shape[2] ** 2))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert run(monkeypatch, "modules", "--rounds=2", "--seconds=0.1", "--save") == 0
    out = capsys.readouterr().out
    assert "| FLA 1x32x8x8 small | inference |" in out and "memory exponent" in out
    (file,) = (tmp_path / "benchmarks").glob("*.json")
    data = json.loads(file.read_text())["modules"]
    assert data["environment"]["torch"] == torch.__version__
    assert data["results"]["exponents"][0]["memory exponent"] == 1
    assert {row["mode"] for row in data["results"]["cases"]} == {"inference", "training"}
    assert file.with_name(f"{file.stem}-modules.png").stat().st_size > 10_000
    assert run(monkeypatch, "modules", "--rounds=2", "--seconds=0.1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cases"][0]["floor ms"] > 0


def test_models(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cases, "BASELINE", "rtdetr-tiny")
    monkeypatch.setattr(cases, "PUBLISHED", ["rtdetr-tiny-FLA"])
    monkeypatch.setattr(cases, "LARGER", [])
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert run(monkeypatch, "models", "--rounds=1", "--seconds=0.1", "--save") == 0
    assert "| rtdetr-tiny-FLA | 1     | 1,532,988 " in capsys.readouterr().out
    assert list((tmp_path / "benchmarks").glob("*-models.png"))


def test_depth(monkeypatch, capsys, tmp_path, shapes):
    """A made-up model from the command line to the kept file and its picture; then what the README would have."""
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    file = tmp_path / "mine.pt"
    YOLO("rtdetr-tiny.yaml").save(file)
    argv = ["depth", f"--model={file}", f"--data={shapes}", "--imgsz=64", "--rounds=1", "--seconds=0.1"]
    assert run(monkeypatch, *argv, "--save") == 0
    out = capsys.readouterr().out
    assert out.startswith("`rtdetr-tiny` on `small` at 64 px") and "| 3              | 30      |" in out
    (kept,) = (tmp_path / "benchmarks").glob("*.json")
    data = json.loads(kept.read_text())
    rows = data["depth"]["results"]["rows"]
    found = [(row["decoder_layers"], row["num_queries"]) for row in rows]
    assert found == [(3, 60), (2, 60), (1, 60), (3, 30), (3, 15), (3, 7)]
    whole, *_, last = rows
    assert whole["parameters"] == last["parameters"] > rows[1]["parameters"] > rows[2]["parameters"]
    assert whole["over_whole"] == 1 and all(row["ms"] > 0 and 0 <= row["mAP50-95"] <= row["mAP50"] <= 1 for row in rows)
    assert kept.with_name(f"{kept.stem}-depth.png").stat().st_size > 10_000
    assert report.summarise_results(data).startswith(
        "`rtdetr-tiny` on `small` at 64 px, one image, fused:\n\n| decoder layers |"
    )


def test_deploy(monkeypatch, capfd, tmp_path):
    """Each runtime has a file of its own, and of fp16 and fp32 two."""
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(deploy, "SIZES", {True: 64})
    forms = "TorchScript", "OpenVINO", "OpenVINO fp16"
    monkeypatch.setattr(deploy, "FORMATS", {form: deploy.FORMATS[form] for form in forms})
    assert run(monkeypatch, "deploy", "--only=tiny-FLA", "--rounds=1", "--seconds=0.1", "--save") == 0
    out = capfd.readouterr().out
    assert out.startswith("| model ") and "export" not in out  # what converters print is not in the table's way
    (kept,) = (tmp_path / "benchmarks").glob("*.json")
    data = json.loads(kept.read_text())
    rows = {row["runtime"]: row for row in data["deploy"]["results"]}
    assert list(rows) == ["PyTorch", *forms] and rows["PyTorch"]["over_pytorch"] == 1
    assert all(row["ms"] > 0 and row["over_pytorch"] > 0 for row in rows.values())
    assert rows["OpenVINO fp16"]["MiB"] < 0.75 * rows["OpenVINO"]["MiB"]
    assert kept.with_name(f"{kept.stem}-deploy.png").stat().st_size > 10_000
    latencies, sizes = report.summarise_results(data).split("\n\n")
    assert "| rtdetr-tiny-FLA at 64 | " in latencies and "| rtdetr-tiny-FLA | " in sizes

    old = [{**row, "model": model, "ms": -1.0} for row in rows.values() for model in ("rtdetr-tiny", "rtdetr-tiny-FLA")]
    data["deploy"]["results"] = old
    kept.write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(deploy, "measure_model", lambda *_: list(rows.values()))
    assert run(monkeypatch, "deploy", "--only=tiny-FLA", "--rounds=1", "--seconds=0.1", "--save") == 0
    found = json.loads(kept.read_text())["deploy"]["results"]
    assert [(row["model"], row["ms"] < 0) for row in found] == [
        *[("rtdetr-tiny", True)] * 4,
        *[("rtdetr-tiny-FLA", False)] * 4,
    ]


def test_depth_validates_what_it_times(monkeypatch, tmp_path):
    """Each choice is passed on, and its figures are its own row's."""
    seen = []

    def val(self, **options):
        seen.append((options["decoder_layers"], options["num_queries"]))
        return SimpleNamespace(box=SimpleNamespace(map50=len(seen) / 10, map=len(seen) / 20))

    monkeypatch.setattr(RTDETR, "val", val)
    file = tmp_path / "mine.pt"
    YOLO("rtdetr-tiny.yaml").save(file)
    rows = depth.measure_depths(str(file), "shapes.yaml", 64, CPU, {"autocast": None, "compile": False}, 1, 0.1)["rows"]
    assert [(row["decoder_layers"], row["num_queries"]) for row in rows] == seen
    assert [row["mAP50"] for row in rows] == [(i + 1) / 10 for i in range(len(rows))]


def test_depth_of_another_model(monkeypatch, capsys, tmp_path):
    YOLO("yolo26n.yaml").save(tmp_path / "yolo.pt")
    assert run(monkeypatch, "depth", f"--model={tmp_path / 'yolo.pt'}") == 1
    assert "yolo.pt is not an RT-DETR" in capsys.readouterr().err


def test_profile(monkeypatch, capsys):
    monkeypatch.setattr(cases, "CASES", [cases.Case("FLA", cases.fla(32), (1, 32, 8, 8), "small")])
    assert run(monkeypatch, "profile", "--rounds=2", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["mode"] for row in rows} == {"inference", "training"}
    for mode in ("inference", "training"):
        own = [row for row in rows if row["mode"] == mode]
        assert len(own) == 8 and 0.3 < sum(row["share"] for row in own) <= 1
        assert any("conv" in row["operation"] for row in own) and all(row["ms"] > 0 for row in own)


def test_training_throughput(monkeypatch):
    """What a GPU's machine adds; on a CPU here."""
    monkeypatch.setattr(models, "SIZE", 64)
    options = {"autocast": torch.bfloat16, "compile": False}
    first, second = models.time_training(["rtdetr-tiny", "rtdetr-tiny-EMO"], CPU, options, 2, 3, 0.1)
    assert first["over_baseline"] == 1 and first["images per second"] > 0
    ratio = second["images per second"] / first["images per second"]
    assert second["over_baseline"] == pytest.approx(ratio, rel=0.5)


def test_a_section_that_is_kept_leaves_the_others(tmp_path):
    report.save_section(tmp_path, CPU, "startup", {"a": 1.23456})
    file = report.save_section(tmp_path, CPU, "models", [])
    assert json.loads(file.read_text())["startup"]["results"] == {"a": 1.235}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["modules", "--only=nothing"], "--only 'nothing' is in no name; there are FLA 2x1024x20x20, "),
        (["modules", "--rounds=0"], "must be positive"),
        (
            ["depth"],
            "needs --model, a trained RT-DETR's .pt, and none is named; `yolo train cfg=scratch.yaml",
        ),
        (["depth", "--model=nothing.pt"], "nothing.pt does not exist"),
        (["deploy", "--device=cuda"], "are those of the CPU"),
        (["deploy", "--only=nothing"], "is in no name; there are rtdetr-tiny, rtdetr-tiny-FLA, "),
        (["models", "--device=cuda"], "torch finds no CUDA device here"),
    ],
)
def test_wrong_arguments(monkeypatch, capsys, argv, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, *argv)
    assert message in capsys.readouterr().err


def test_kept_results_are_of_this_benchmark():
    """Every case and every model is in each file of benchmarks/ that has their section."""
    files = list((ROOT / "benchmarks").glob("*.json"))
    assert files
    for file in files:
        data = json.loads(file.read_text())
        if "modules" in data:
            assert {row["case"] for row in data["modules"]["results"]["cases"]} == {case.name for case in cases.CASES}
        if "models" in data:
            names = [row["model"] for row in data["models"]["results"]["models"]]
            assert names == [cases.BASELINE, *cases.PUBLISHED, *cases.LARGER]
        if "deploy" in data:
            rows = data["deploy"]["results"]
            assert list(dict.fromkeys(row["model"] for row in rows)) == deploy.NAMES
            runtimes = {deploy.PYTORCH, *deploy.FORMATS}
            assert all(
                {row["runtime"] for row in rows if row["model"] == name}
                == (runtimes if name in deploy.TINY else runtimes - {deploy.INT8})
                for name in deploy.NAMES
            )
        if "depth" in data:
            rows = data["depth"]["results"]["rows"]
            first = (rows[0][key] for key in decoder_size.ARGUMENTS)
            assert [{key: row[key] for key in decoder_size.ARGUMENTS} for row in rows] == depth.list_choices(*first)


@pytest.mark.nightly
def test_peers(monkeypatch):
    """Both sides open the same weights and find the same; each mode has a row of figures."""
    monkeypatch.setattr(transformers_peer, "SIZE", 160)  # 525 positions, more than queries
    monkeypatch.setattr(
        transformers_peer, "run_module", lambda _, side, *__: {"ours": "30", "transformers": "40"}[side]
    )
    found, make = {}, transformers_peer.make_step

    def make_and_run(side, mode, folder):
        step = make(side, mode, folder)
        if mode == "inference":
            found[side] = step()
        return step

    monkeypatch.setattr(transformers_peer, "make_step", make_and_run)
    rows = transformers_peer.measure_peers(rounds=1)
    assert [(row["mode"], row["batch"], row["of the memory"]) for row in rows] == [
        ("inference", 1, 0.75),
        ("training", 2, 0.75),
    ]
    assert all(row["ours s"] > 0 and row["of the time"] > 0 for row in rows)
    ours = found["ours"][1][1][-1].sigmoid().amax(-1).sort().values
    theirs = found["transformers"].logits.sigmoid().amax(-1).sort().values
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
