"""Summarise a study: one row a model, with means over seeds and the difference to the first model."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from _compare.local_runs import print_progress
from _compare.statistics import average_precision, compare_means, draw_resamples, mean_and_deviation
from _compare.study_folder import FOUND, Study
from _compare.validation import SIZES, Validation
from ultralytics.fork.atomic_write import write_atomically

SAMPLES = 1000  # of the images
METRICS = ("mAP50-95", "mAP50", *(f"AP {size}" for size in SIZES))


def summarise_study(study: Study, costs: dict[str, dict]) -> list[dict[str, Any]]:
    """Summarise the runs that are done.

    Args:
        study: The study.
        costs: What each model costs, by label.

    Returns:
        A row a model in the order of the study: `model`, `seeds` that are done; of each figure over them the `mean`,
        `deviation` (None for one seed) and `values`; `classes`, the mean AP of each; `difference` of mAP50-95 to the
        first model with its interval `low` to `high`, whether it is `shown`, and whether scatter of `seeds` is in it;
        `cost`. A model of which nothing is done has only `model` and `seeds`.
    """
    rows, samples = [], {}
    for label in study.labels:
        runs = study.done(label)
        outcomes = [run.outcome for run in runs]
        row: dict[str, Any] = {"model": label, "seeds": [run.seed for run in runs]}
        if runs:
            for metric in METRICS:
                row[metric] = mean_over_seeds([outcome["figures"][metric] for outcome in outcomes])
            for key in ("seconds", "MiB", "epochs"):
                row[key] = mean_over_seeds([outcome[key] for outcome in outcomes])
            row["classes"] = mean_of_classes(outcomes)
            row["cost"] = dict(costs.get(label, {}))
            if study.labels[0] not in costs:  # without the first model, the ratio is to another one
                row["cost"].pop("over_first", None)
            samples[label] = resample_scores(study, label)
        rows.append(row)
    add_differences(rows, samples)
    return rows


def mean_over_seeds(values: list[float | None]) -> dict[str, Any] | None:
    """Return mean and deviation of the known values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, deviation = mean_and_deviation(known)
    return {"mean": mean, "deviation": deviation, "values": values}


def mean_of_classes(outcomes: list[dict]) -> dict[str, float]:
    """Return the mean AP of each class over seeds."""
    per_class: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, ap in outcome["figures"]["classes"].items():
            per_class.setdefault(name, []).append(ap)
    return {name: mean_and_deviation(values)[0] for name, values in per_class.items()}


def resample_scores(study: Study, label: str) -> np.ndarray:
    """Compute mAP50-95 of a model's runs on resamples of the images, (seeds, samples); each run's are saved."""
    found = []
    for run in study.done(label):
        file = run.folder / "resamples.npy"
        if file.is_file() and file.stat().st_mtime >= (run.folder / FOUND).stat().st_mtime:
            found.append(np.load(file))
            continue
        print_progress(f"resampling the images of {run.title}")  # takes minutes for thousands of images
        validation = Validation.load(run.folder / FOUND)
        found.append(average_precision(validation, draw_resamples(len(validation.images), SAMPLES)))
        np.save(buffer := io.BytesIO(), found[-1])
        write_atomically(file, buffer.getbuffer())
    return np.stack(found)


def add_differences(rows: list[dict], samples: dict[str, np.ndarray]) -> None:
    """Add the difference to the first model to each other row, if both have runs that are done."""
    first = rows[0]
    for row in rows[1:]:
        if not row["seeds"] or not first["seeds"]:
            continue
        found = compare_means(
            row["mAP50-95"]["values"],
            first["mAP50-95"]["values"],
            samples[row["model"]],
            samples[first["model"]],
        )
        row["difference"] = {**vars(found), "shown": found.shown}


def check_images(study: Study) -> None:
    """Check that all runs were validated on the same images with the same objects.

    A run with other images becomes a failed run, as its figures are not comparable; the next command validates it
    again. The run that was validated last is right, as it has the current data set.
    """
    done = sorted((run for run in study.runs if run.is_done), key=lambda run: run.outcome["finished"])
    if not done:
        return
    last = Validation.load(done[-1].folder / FOUND)
    for run in done[:-1]:
        if not Validation.load(run.folder / FOUND).same_objects(last):
            error = f"validated on other images or labels than {done[-1].folder}: the data set has changed in between"
            run.conclude({"state": "failed", "error": error, "traceback": "None: its training is kept."})
