"""A study on several data sets: one study for each, in a folder of its own, and a table over all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _compare import tables
from _compare.results import add_corrections
from _compare.statistics import Difference, combine_data_sets
from _compare.study_folder import STUDY
from _compare.tables import Column, metric_column, show_difference
from ultralytics.fork.atomic_write import write_atomically

FIELDS = "value", "low", "high", "seeds", "error", "p"  # of a difference


def combine_rows(found: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """Combine the results on several data sets.

    Args:
        found: By data set the rows that `summarise_study` returns.

    Returns:
        A row a model: `model`, `sets` that are done, `on NAME` its row on a data set, and `difference` to the first
        model over all data sets on which both are done, from two of them on.
    """
    rows = []
    for label in dict.fromkeys(row["model"] for results in found.values() for row in results):
        row: dict[str, Any] = {"model": label, "sets": []}
        for name, results in found.items():
            there = next((one for one in results if one["model"] == label and one["seeds"]), None)
            if there:
                row["sets"].append(name)
                row[f"on {name}"] = there
        differences = [row[f"on {name}"].get("difference") for name in row["sets"]]
        known = [Difference(**{key: one[key] for key in FIELDS}) for one in differences if one]
        if len(known) > 1:
            over_all = combine_data_sets(known)
            row["difference"] = {**vars(over_all), "shown": over_all.shown}
        rows.append(row)
    add_corrections([row["difference"] for row in rows if "difference" in row])
    return rows


def list_columns(names: list[str]) -> list[Column]:
    """List the columns of the table over several data sets."""
    difference, p = [column for column in tables.COLUMNS if column.title in {"difference [95 %]", "p (Holm)"}]
    columns = [
        tables.COLUMNS[0],
        Column("data sets", lambda row: str(len(row["sets"])), lambda row: {"data sets": " ".join(row["sets"])}),
        Column("difference over all [95 %]", show_difference, difference.figures),
        p,
    ]
    for name in names:
        for column in (metric_column("mAP50-95"), difference):
            columns.append(move_column(column, name))
    return columns


def move_column(column: Column, name: str) -> Column:
    """Make the column of the table over several data sets that shows a column of one of them."""
    key = f"on {name}"
    return Column(
        f"{column.title}, {name}",
        lambda row: column.show(row.get(key, {})),
        lambda row: {f"{name}: {figure}": value for figure, value in column.figures(row.get(key, {})).items()},
    )


def write_notes(rows: list[dict], names: list[str]) -> list[str]:
    """Write the notes of the table."""
    found = [
        f"Data sets: {', '.join(names)}; each has a study of its own in its folder here, with a page. mAP50-95 in %, "
        "mean ± standard deviation over seeds.",
        f"Difference over all: the mean over the data sets of the difference to {rows[0]['model']}, each data set with "
        "the same weight. Its 95 % interval takes the data set as a random effect (Hartung and Knapp, with the number "
        "of data sets less one as degrees of freedom), so that it is for other such data sets, too, and with two or "
        "three data sets it is wide.",
    ]
    lacking = [f"{row['model']} on {name}" for row in rows for name in names if name not in row["sets"]]
    return [*found, *([f"Nothing is done of {', '.join(lacking)}."] if lacking else [])]


def write_table(folder: Path, found: dict[str, list[dict]]) -> str:
    """Write the table over several data sets as .md, .csv and .tex, and its figures as study.json; return it."""
    rows, names = combine_rows(found), list(found)
    notes, columns = write_notes(rows, names), list_columns(names)
    for suffix, make in tables.FORMATS.items():
        write_atomically(folder / f"table{suffix}", make(rows, notes, columns).encode())
    figures = {"data": names, "results": rows}
    write_atomically(folder / STUDY, (json.dumps(figures, indent=1) + "\n").encode())
    return tables.format_markdown(rows, notes, columns)
