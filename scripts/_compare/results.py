"""Summarise a study: one row a model, with means over seeds and the difference to the first model."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from _compare.grid import pair_levels
from _compare.local_runs import print_progress
from _compare.statistics import (
    Scores,
    average_precision,
    compare_means,
    correct_by_holm,
    draw_resamples,
    mean_and_deviation,
)
from _compare.study_folder import FOUND, Study
from _compare.validation import SIZES, Validation
from ultralytics.fork.atomic_write import write_atomically

SAMPLES = 1000  # of the images
METRICS = ("mAP50-95", "mAP50", "AP COCO", *(f"AP {size}" for size in SIZES))


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
                row[metric] = mean_over_seeds([outcome["figures"].get(metric) for outcome in outcomes])
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
        if row["seeds"] and first["seeds"]:
            found = compare_means([(scores_of(row, samples), scores_of(first, samples))])
            row["difference"] = {**vars(found), "shown": found.shown}
    add_corrections([row["difference"] for row in rows if "difference" in row])


def scores_of(row: dict, samples: dict[str, np.ndarray]) -> Scores:
    """Return the scores of a row's model."""
    return Scores(row["mAP50-95"]["values"], samples[row["model"]])


def add_corrections(differences: list[dict]) -> None:
    """Add `p Holm` to differences of which the scatter over seeds is known."""
    known = [found for found in differences if found["seeds"]]
    for found, value in zip(known, correct_by_holm([found["p"] for found in known])):
        found["p Holm"] = value


def summarise_effects(study: Study, rows: list[dict]) -> list[dict[str, Any]]:
    """Summarise what each level of a grid's factors does on average over what it was combined with.

    Returns:
        Of each level its name as `model`, the number of `pairs` that are done, and the `difference`.
    """
    by_label = {row["model"]: row for row in rows if row["seeds"]}
    effects = []
    for level, pairs in pair_levels(study.settings).items():
        done = [pair for pair in pairs if all(label in by_label for label in pair)]
        if done:
            scores = {
                label: Scores(by_label[label]["mAP50-95"]["values"], resample_scores(study, label))
                for pair in done
                for label in pair
            }
            found = compare_means([(scores[a], scores[b]) for a, b in done])
            effects.append({"model": level, "pairs": len(done), "difference": {**vars(found), "shown": found.shown}})
    add_corrections([effect["difference"] for effect in effects])
    return effects


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
