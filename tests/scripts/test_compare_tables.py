"""Tables, findings, marked rows, figures and names of a study, from made-up results."""

import csv
import os

import pytest

from _compare import architecture, figures, html_report, local_runs, results, study_folder, tables
from ultralytics.fork.errors import Refused

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
        "base_line/100%", "2", "51.2 ± 1.2", "–", "–", "70.0 ± 1.0", "70.0 ± 1.0", "70.0 ± 1.0", "70.0 ± 1.0", "–",
        "1.47", "6.04", "16.5", "10.0 ± 0.5", "12", "101", "1.5 ± 0.1",
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
