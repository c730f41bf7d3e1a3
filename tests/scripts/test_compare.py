"""A study is completed after a kill, refuses other settings, takes runs of others in, and its page opens anywhere."""

import base64
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from compare_study import (  # noqa: F401 - fixtures
    MODELS,
    arguments,
    browser,
    column,
    data,
    folder,
    main,
    priced,
    start,
    written,
)
from conftest import ROOT

import compare
from _compare import cost, existing_runs, html_report, results, statistics, study_folder, tables
from _compare.validation import Validation
from ultralytics import YOLO
from ultralytics.fork.errors import Refused
from ultralytics.utils.metrics import box_iou


# A study --------------------------------------------------------------------------------------------------------------
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
        sections = Counter(section for section, *_ in pictures)
        assert 1 <= sections.pop("errors") <= 1 + html_report.WORST * (1 + 2)  # of the first model, and beside it
        assert sections == {"cost": 2, "training": 2, "classes": 1, "images": 6 * 3, "heat": 2 * 2}
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
    html_report.write_report(made, study["results"], [], f"compare.py {evil}")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert evil not in page and "&lt;img src=x onerror=alert(1)&gt;" in page and label in page
