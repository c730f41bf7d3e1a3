"""Write a study's results as tables: Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _compare.cost import SCOPE
from _compare.existing_runs import SEPARATE_ARGUMENTS
from _compare.results import METRICS
from _compare.statistics import LEVEL
from _compare.study_folder import FOUND, MADE, Run, Study, describe_file, training_arguments
from _compare.validation import Validation
from _shared.markdown_table import format_markdown_table
from ultralytics.fork.errors import Refused

Row = dict[str, Any]
MINUS, NOTHING = "−", "–"


@dataclass(frozen=True)
class Column:
    """A column: its title, the text that it shows of a row, and the figures of a row for CSV."""

    title: str
    show: Callable[[Row], str]
    figures: Callable[[Row], dict[str, Any]]


def format_mean(row: Row, key: str, scale: float, digits: int) -> str:
    """Format a mean with its deviation over seeds."""
    found = row.get(key)
    if not found:
        return NOTHING
    mean = f"{found['mean'] * scale:.{digits}f}"
    return mean if found["deviation"] is None else f"{mean} ± {found['deviation'] * scale:.{digits}f}"


def metric_column(key: str, title: str | None = None, scale: float = 100, digits: int = 1) -> Column:
    """Make a column of a figure over seeds."""

    def figures(row: Row) -> dict[str, Any]:
        found = row.get(key) or {}
        return {f"{key} mean": found.get("mean"), f"{key} deviation": found.get("deviation")}

    return Column(title or key, lambda row: format_mean(row, key, scale, digits), figures)


def cost_column(key: str, title: str, scale: float = 1) -> Column:
    """Make a column of a figure that does not depend on the seed."""

    def show(row: Row) -> str:
        value = row.get("cost", {}).get(key)
        return NOTHING if value is None else f"{value * scale:.{1 if value * scale >= 10 else 2}f}"

    return Column(title, show, lambda row: {key: row.get("cost", {}).get(key)})


def format_signed(share: float) -> str:
    """Format a difference in % with its sign, without a minus if it rounds to zero."""
    return f"{round(100 * share, 1) or 0:+.1f}".replace("-", MINUS)


def show_difference(row: Row) -> str:
    """Format a difference with its interval, and mark one that may be noise."""
    found = row.get("difference")
    if not found:
        return NOTHING
    value, low, high = (format_signed(found[key]) for key in ("value", "low", "high"))
    mark = "" if found["shown"] else " n.s." if found["seeds"] else " †"
    return f"{value} [{low}, {high}]{mark}"


def show_p(row: Row) -> str:
    """Format the probability of a difference at least as large if there were none, corrected by Holm's rule."""
    value = row.get("difference", {}).get("p Holm")
    return NOTHING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def show_latency(row: Row) -> str:
    """Format the median latency with its spread."""
    found = row.get("cost", {})
    return f"{found['ms']:.1f} ± {found['ms'] * found['spread']:.1f}" if "ms" in found else NOTHING


def training_memory(row: Row) -> float | None:
    """Return the MiB of training: the largest of the runs on a GPU, or of a step on a CPU."""
    known = [value for value in (row.get("MiB") or {}).get("values", []) if value is not None]
    return max(known) if known else row.get("cost", {}).get("MiB training")


def format_mib(value: float | None) -> str:
    """Format MiB."""
    return NOTHING if value is None else f"{value:.0f}"


def show_training(row: Row) -> str:
    """Format the memory of training."""
    return format_mib(training_memory(row))


COLUMNS = [
    Column("model", lambda row: row["model"], lambda row: {"model": row["model"]}),
    Column(
        "seeds",
        lambda row: str(len(row["seeds"])),
        lambda row: {"seeds": " ".join(map(str, row["seeds"]))},
    ),
    metric_column("mAP50-95"),
    Column(
        "difference [95 %]",
        show_difference,
        lambda row: {f"difference {key}": row.get("difference", {}).get(key) for key in ("value", "low", "high")},
    ),
    Column("p (Holm)", show_p, lambda row: {key: row.get("difference", {}).get(key) for key in ("p", "p Holm")}),
    *(metric_column(key) for key in METRICS[1:]),
    cost_column("parameters", "parameters, M", 1e-6),
    cost_column("GFLOPs published", "GFLOPs, published style"),
    cost_column("GFLOPs honest", "GFLOPs, honest"),
    Column(
        "latency, ms",
        show_latency,
        lambda row: {
            "latency ms": row.get("cost", {}).get("ms"),
            "latency relative spread": row.get("cost", {}).get("spread"),
            "latency over first": row.get("cost", {}).get("over_first"),
        },
    ),
    Column(
        "memory, inference, MiB",
        lambda row: format_mib(row.get("cost", {}).get("MiB")),
        lambda row: {"MiB inference": row.get("cost", {}).get("MiB")},
    ),
    Column("memory, training, MiB", show_training, lambda row: {"MiB training": training_memory(row)}),
    metric_column("seconds", "training, min", 1 / 60, 1),
]


def format_markdown(rows: list[Row], notes: list[str], columns: list[Column] = COLUMNS) -> str:
    """Format the table as Markdown, with its notes."""
    cells = [[column.show(row) for column in columns] for row in rows]
    table = format_markdown_table([column.title for column in columns], cells, "---:")
    return "\n".join([table, "", *(f"{note}  " for note in notes), ""])


def format_csv(rows: list[Row], _: list[str], columns: list[Column] = COLUMNS) -> str:
    """Format all figures in full as CSV."""
    found = [{key: value for column in columns for key, value in column.figures(row).items()} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def format_latex(rows: list[Row], notes: list[str], columns: list[Column] = COLUMNS) -> str:
    """Format the table as LaTeX with booktabs."""
    head = " & ".join(escape_latex(column.title) for column in columns)
    body = [" & ".join(escape_latex(column.show(row)) for column in columns) + r" \\" for row in rows]
    return "\n".join(
        [
            r"% \usepackage{booktabs}; it is wide: leave columns out, or put it into \resizebox{\textwidth}{!}{...}",
            *(f"% {note}" for note in notes),
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


FORMATS = {".md": format_markdown, ".csv": format_csv, ".tex": format_latex}


def format_effects(effects: list[Row]) -> str:
    """Format what the levels of a grid's factors do as a Markdown table."""
    if not effects:
        return ""
    shown = [[row["model"], str(row["pairs"]), show_difference(row), show_p(row)] for row in effects]
    table = format_markdown_table(["level", "pairs", "difference [95 %]", "p (Holm)"], shown, "---:")
    note = "What a level does to mAP50-95, on average over the models and levels that it was combined with."
    return f"\n{table}\n\n{note}\n"


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    MINUS: "$-$",
    "†": r"\dag{}",
    NOTHING: "--",
    **{c: rf"\{c}" for c in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Escape text for LaTeX."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], text)


def write_notes(study: Study, rows: list[Row]) -> list[str]:
    """Write the notes: what the figures mean, and what is missing."""
    done = [run for run in study.runs if run.is_done]
    failed = [run for run in study.runs if run.outcome and not run.is_done]
    images = {len(Validation.load(run.folder / FOUND).images) for run in done[:1]}
    sizes = sorted({run.outcome["imgsz"] for run in done})
    splits = ", ".join(sorted({run.outcome["split"] for run in done}))
    found = [
        f"Data: {Path(study.settings['data']).name}, {', '.join(map(str, images))} images of its {splits} split, "
        f"{', '.join(map(str, sizes))} px. AP in %, of best.pt, which the trainer chooses on its validation images; "
        "mean ± standard deviation over seeds. AP COCO and AP of sizes: COCO's rules, 100 detections an image and "
        "class.",
        f"Difference: of mAP50-95 to {rows[0]['model']}, with a 95 % interval of a paired bootstrap over the images "
        "and of the scatter over seeds; n.s.: zero is in it, so that no difference is shown.",
        f"Latency: {SCOPE}, in one run in which the models take turns; median ± half the distance of the quartiles; "
        "ratios are medians over the rounds. "
        "GFLOPs at the same size, which is each model's own. Memory: of a forward at its peak, beyond the model; of "
        "training, all that torch allocated on a GPU, on a CPU what a step takes beyond the model. "
        f"Machine: {study.before.get('costs', {}).get('machine', 'not measured')}.",
    ]
    on = {training_arguments(run.best).get("data") for run in done}
    on = sorted(str(file) for file in on if file_digest(file) != file_digest(study.settings["data"]))
    if on:
        found.append(f"Trained on {', '.join(on)}.")
    there = [file.parent.name for file in study.folder.glob(f"runs/*/{MADE}")]
    elsewhere = [label for label in there if label not in study.labels and study.has_begun(label)]
    if elsewhere:
        found.append(f"In the study's folder, and not named in its last command: {', '.join(sorted(elsewhere))}.")
    compared = sum("difference" in row for row in rows)
    if compared > 1:
        found.append(
            f"Each of the {compared} intervals is at 95 % by itself; if no model differed, at least one of them would "
            f"still exclude zero with a probability of up to {100 * (1 - LEVEL**compared):.0f} %. The column p (Holm) "
            "holds for all of them together: below 0.05, a difference is shown by that stricter rule."
        )
    single = [row["model"] for row in rows if len(row["seeds"]) == 1]
    if single:
        found.append(
            f"† One seed only ({', '.join(single)}): the interval covers only the images, not the scatter of "
            "training, which is often larger. It shows no difference between the models."
        )
    found += [f"Failed: {run.label}, seed {run.seed}: {run.outcome['error']}" for run in failed]
    waiting = [run for run in study.runs if not run.outcome]
    if waiting:
        found.append(f"Not run yet: {', '.join(f'{run.label} seed {run.seed}' for run in waiting)}.")
    found += [
        f"Not over: {run.label}, seed {run.seed}, {run.outcome['epochs']} of {run.outcome['of']} epochs."
        for run in done
        if not run.outcome["is over"]
    ]
    costs = study.before.get("costs", {})
    failures = [
        costs.get("failed"),
        *(line for found in costs.get("models", {}).values() for line in found["failures"]),
    ]
    found += [f"Not measured: {line}." for line in failures if line]
    found += describe_unequal_arguments(study)
    return found


def file_digest(file: str | None) -> str | None:
    """Identify a data set's file by its content wherever it is, or by its name if it is not here."""
    try:
        return (describe_file(file) or {}).get("digest")
    except Refused:
        return file


def describe_unequal_arguments(study: Study) -> list[str]:
    """List the training arguments in which the runs differ, as those are compared, too."""
    arguments = {run: training_arguments(run.best) for run in study.runs if run.is_done}
    said = []
    for key in sorted({key for found in arguments.values() for key in found} - {*SEPARATE_ARGUMENTS, "model"}):
        values: dict[str, list[Run]] = {}
        for run, found in arguments.items():
            values.setdefault(repr(found.get(key)), []).append(run)
        if len(values) > 1:
            said.append(
                f"Trained differently: {key} = {', '.join(f'{v} ({name_runs(r, study)})' for v, r in values.items())}."
            )
    return said


def name_runs(runs: list[Run], study: Study) -> str:
    """Name runs: the model alone if all its runs are among them."""
    labels = dict.fromkeys(run.label for run in runs)
    whole = {label for label in labels if all(run in runs for run in study.done(label))}
    single = [run.title for run in runs if run.label not in whole]
    return ", ".join([*(label for label in labels if label in whole), *single])
