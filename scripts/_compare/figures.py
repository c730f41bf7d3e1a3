"""Draw a study's figures as SVG: accuracy against cost, training curves, AP of each class."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from _compare.statistics import pareto_front
from _compare.study_folder import Study
from _compare.training_run import read_epochs
from _shared.pyplot import pyplot

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31"]  # Okabe and Ito's
MARKERS = "os^Dv*PX"
LINES = ["-", "--", "-.", ":"]
CURVES = {"metrics/mAP50-95(B)": "mAP50-95, validation", "train/giou_loss": "box loss (GIoU), training"}
COSTS = {"ms": "latency, ms", "parameters": "parameters, million"}
MANY = 30  # most classes to draw as bars


def model_style(index: int) -> dict[str, Any]:
    """Return a model's colour, marker and line style; no two models have all three in common."""
    n = len(COLOURS)
    return {
        "color": COLOURS[index % n],
        "marker": MARKERS[(index + index // n) % len(MARKERS)],
        "ls": LINES[index // n % len(LINES)],
    }


def escape_name(text: str) -> str:
    """Escape a name for matplotlib: dollars mean formulas, and legends skip names that begin with _."""
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def plot_trade_off(rows: list[dict], key: str) -> str | None:
    """Draw mAP50-95 with its deviation over seeds against a cost, and a line through the Pareto front."""
    scale = 1e-6 if key == "parameters" else 1
    known = [row for row in rows if row.get("cost", {}).get(key) is not None]
    if not known:
        return None
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    points = [(row["cost"][key] * scale, 100 * row["mAP50-95"]["mean"]) for row in known]
    front = [points[i] for i in pareto_front(points)]
    if len(front) > 1:
        axis.step(*zip(*front), where="post", color="0.6", lw=1.2, zorder=1, label="Pareto front")
    for i, row in enumerate(rows):
        if row not in known:
            continue
        x, y = points[known.index(row)]
        style = model_style(i)
        deviation = row["mAP50-95"]["deviation"]
        error = 100 * deviation if deviation else None
        axis.errorbar(
            x,
            y,
            error,
            color=style["color"],
            marker=style["marker"],
            ms=8,
            capsize=3,
            ls="",
            label=escape_name(row["model"]),
        )
    axis.set(xlabel=COSTS[key], ylabel="mAP50-95, %")
    axis.grid(True, alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save_svg(figure)


def plot_curves(study: Study, labels: Sequence[str], key: str) -> str | None:
    """Draw a figure of each epoch: the mean over seeds, and a band from the lowest to the highest."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    drawn = False
    for i, label in enumerate(labels):
        runs = [read_epochs(run.trained) for run in study.runs if run.label == label]
        values = [[epoch[key] for epoch in run] for run in runs if run and key in run[0]]
        if not values:
            continue
        drawn, length, style = True, max(map(len, values)), model_style(i)
        grid = np.full((len(values), length), np.nan)
        for line, found in zip(grid, values):
            line[: len(found)] = found
        x = np.arange(1, length + 1)
        dot = style["marker"] if length == 1 else None
        axis.plot(
            x, np.nanmean(grid, 0), color=style["color"], ls=style["ls"], lw=1.8, marker=dot, label=escape_name(label)
        )
        axis.fill_between(x, np.nanmin(grid, 0), np.nanmax(grid, 0), color=style["color"], alpha=0.15, lw=0)
    axis.set(xlabel="epoch", ylabel=CURVES[key])
    axis.grid(True, alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save_svg(figure) if drawn else close_figure(figure)


def plot_classes(rows: list[dict]) -> str | None:
    """Draw the AP of each class, one bar a model; return None for more classes than can be read."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("classes", {})))
    known = [(i, row) for i, row in enumerate(rows) if row.get("classes")]
    if not known or len(names) > MANY:
        return None
    plt = pyplot()
    height = 1.2 + len(names) * (0.18 * len(known) + 0.15)
    figure, axis = plt.subplots(figsize=(6.4, max(height, 2.6)), layout="constrained")
    bar = 0.8 / len(known)
    for place, (i, row) in enumerate(known):
        y = np.arange(len(names)) + (place - (len(known) - 1) / 2) * bar
        widths = [100 * row["classes"].get(name, 0) for name in names]
        hatch = ["", "//", "..", "xx"][i // len(COLOURS) % 4]
        axis.barh(y, widths, bar * 0.92, color=model_style(i)["color"], hatch=hatch, label=escape_name(row["model"]))
    axis.set(xlabel="AP50-95, %", yticks=range(len(names)), yticklabels=[*map(escape_name, names)])
    axis.invert_yaxis()
    axis.grid(True, axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save_svg(figure)


def plot_calibration(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Draw how often detections are right against their scores, one line a model."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", lw=1.2, label="a score that is its precision")
    for i, (label, (scores, right)) in enumerate(curves.items()):
        axis.plot(scores, right, **model_style(i), ms=5, lw=1.6, label=escape_name(label))
    axis.set(xlabel="score", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1))
    axis.grid(True, alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save_svg(figure)


def save_svg(figure: Any) -> str:
    """Return a figure as SVG, with its text as text, as the reader's fonts have more letters."""
    plt = pyplot()
    text = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "study", "font.family": "sans-serif"}
    with plt.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def close_figure(figure: Any) -> None:
    """Close a figure on which nothing was drawn."""
    pyplot().close(figure)
