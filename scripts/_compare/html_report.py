"""Write a study's report: one page with its pictures in it, which opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from _compare import architecture, errors, figures, pictures, tables
from _compare.study_folder import FOUND, Run, Study, collect_versions
from _compare.training_run import read_epochs
from _compare.validation import Validation
from ultralytics.data.utils import check_det_dataset
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.utils import LOGGER

TEMPLATE = Path(__file__).with_name("report.html.jinja")
IMAGES, HEATED = 6, 2  # numbers of validation images, and of those with heat maps
WORST, CONFUSIONS = 3, 5  # images with errors and confusions of classes of each model


def write_report(study: Study, rows: list[dict], effects: list[dict], command: str) -> None:
    """Write report.html.

    Args:
        study: The study.
        rows: Its results, as `summarise_study` returns them.
        effects: Those of a grid, as `summarise_effects` returns them.
        command: The command line that made it.
    """
    ready = {row["model"]: study.done(row["model"])[0] for row in rows if row["seeds"]}
    known = [row for row in rows if row["seeds"]]
    parts = {
        "costs": [
            plot(svg, f"mAP50-95 against {name}", points(known, key))
            for key, name in figures.COSTS.items()
            if (svg := figures.plot_trade_off(known, key))
        ],
        "curves": training(study, [row["model"] for row in known]),
        "class_figures": class_plots(known),
        **shown(study, ready),
        "errors": describe_errors(study, ready),
    }
    page = jinja2.Environment(autoescape=True, trim_blocks=False).from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = page.render(
        title=f"{counted(len(rows), 'model')} on {Path(study.settings['data']).name}",
        findings=[*findings(rows), *map(describe_effect, effects)],
        sections=sections(parts, known),
        titles=[column.title for column in tables.COLUMNS],
        table=[[(sort_value(column, row), column.show(row)) for column in tables.COLUMNS] for row in rows],
        rows=known,
        notes=tables.write_notes(study, rows),
        failed=[run for run in study.before["runs"] if run["state"] == "failed"],
        class_names=list(dict.fromkeys(name for row in known for name in row["classes"])),
        confidence=pictures.CONFIDENCE,
        first=rows[0]["model"],
        architectures=architectures(ready),
        command=command,
        versions=collect_versions(),
        runs=study.before["runs"],
        **parts,
    )
    write_atomically(study.folder / "report.html", html.encode())


def sections(parts: dict, known: list[dict]) -> list[tuple[str, str]]:
    """List the page's sections, by their anchors."""
    found = [
        ("results", "Results", True),
        ("cost", "Accuracy against cost", parts["costs"]),
        ("training", "Training", parts["curves"]),
        ("classes", "Classes", any(row["classes"] for row in known)),
        ("errors", "Errors", parts["errors"]["rows"]),
        ("images", "The same images", parts["images"]),
        ("heat", "Heat maps", parts["heat"]),
        ("architecture", "Architectures", True),
        ("made", "How it was made", True),
    ]
    return [(anchor, name) for anchor, name, there in found if there]


def findings(rows: list[dict]) -> list[str]:
    """Describe what the study shows of each model, in a sentence each."""
    said = []
    for row in rows[1:]:
        found = row.get("difference")
        if not found:
            said.append(f"{row['model']}: nothing to compare yet.")
            continue
        value, low, high = (tables.format_signed(found[key]) for key in ("value", "low", "high"))
        times = row.get("cost", {}).get("over_first")
        price = f" at {times:.2f} times its latency" if times else ""
        if not found["seeds"]:
            verdict = f"one seed, which does not tell the model from the luck of training; against {rows[0]['model']}"
        elif found["shown"]:
            verdict = f"{'better' if found['value'] > 0 else 'worse'} than {rows[0]['model']} by"
        else:
            verdict = f"no difference shown to {rows[0]['model']}:"
        said.append(f"{row['model']}: {verdict} {value} mAP50-95 ({low} to {high}){price}.")
    return said or [f"{rows[0]['model']} alone: nothing to compare it with."]


def describe_effect(effect: dict) -> str:
    """Describe what a level of a grid's factor does, in a sentence."""
    found = effect["difference"]
    value, low, high = (tables.format_signed(found[key]) for key in ("value", "low", "high"))
    verdict = "" if found["shown"] else ", which shows no difference"
    return f"{effect['model']}: {value} mAP50-95 ({low} to {high}) on average over {effect['pairs']} pairs{verdict}."


def counted(number: int, name: str) -> str:
    """Format a number of things."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def sort_value(column: tables.Column, row: dict) -> str:
    """Return the value by which a cell is sorted: the first of its figures, or nothing."""
    value = row["model"] if column.title == "model" else next(iter(column.figures(row).values()))
    if column.title == "seeds":
        value = len(row["seeds"])
    return "" if value is None else str(value)


def source(data: bytes, kind: str) -> str:
    """Format data as the URL of a picture."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def plot(svg: str, name: str, alt: str) -> dict[str, str]:
    """Return a figure for the page, with a text that describes it."""
    return {"source": source(svg.encode(), "image/svg+xml"), "caption": name, "alt": f"{name}. {alt}"}


def points(rows: list[dict], key: str) -> str:
    """Describe a figure of accuracy against cost."""
    scale = 1e-6 if key == "parameters" else 1
    return "; ".join(
        f"{row['model']}: {100 * row['mAP50-95']['mean']:.1f} at {row['cost'][key] * scale:.3g}"
        for row in rows
        if row["cost"].get(key) is not None
    )


def training(study: Study, labels: list[str]) -> list[dict[str, str]]:
    """Draw the training curves."""
    found = []
    for key, name in figures.CURVES.items():
        svg = figures.plot_curves(study, labels, key)
        if svg:
            found.append(plot(svg, name, ends(study, labels, key)))
    return found


def ends(study: Study, labels: list[str], key: str) -> str:
    """Describe where training curves begin and end, as the mean over seeds."""
    said = []
    for label in labels:
        curves = [curve for run in study.done(label) if (curve := read_epochs(run.trained)) and key in curve[0]]
        if curves:
            first, last = (np.mean([curve[i][key] for curve in curves]) for i in (0, -1))
            said.append(f"{label}: from {first:.3g} to {last:.3g} in {len(curves[0])} epochs")
    return "; ".join(said)


def class_plots(rows: list[dict]) -> list[dict[str, str]]:
    """Draw the AP of each class; if there are too many classes, the page has only the table."""
    svg = figures.plot_classes(rows)
    return [plot(svg, "AP50-95 of each class", "The table below has the figures.")] if svg else []


def shown(study: Study, ready: dict[str, Run]) -> dict[str, list[dict[str, Any]]]:
    """Draw images with detections, and some with heat maps, side by side."""
    found = Validation.load(next(iter(ready.values())).folder / FOUND)
    root = Path(check_det_dataset(study.settings["data"])["path"])
    images, heat = [], []
    for index in pictures.choose_images(found, IMAGES):
        name = str(found.images[index])
        try:
            image = pictures.read_image(found, index, root)
        except OSError as e:
            LOGGER.warning(f"{e}; the report is without it")
            continue
        images.append({"name": name, "pictures": list(side_by_side(found, index, image, ready))})
        if len(heat) < HEATED:
            heat.append({"name": name, "pictures": list(heat_maps(image, name, ready))})
    return {"images": images, "heat": [row for row in heat if row["pictures"]]}


def describe_errors(study: Study, ready: dict[str, Run]) -> dict[str, Any]:
    """Count the errors of each model, find the best thresholds, and draw the images with the surest wrong detections.

    Of each such image there are the pictures of the model whose errors they are, and of the first one.
    """
    validations = {label: Validation.load(run.folder / FOUND) for label, run in ready.items()}
    found = {label: errors.find_errors(validation) for label, validation in validations.items()}
    curves = {label: errors.calibrate(validation) for label, validation in validations.items()}
    drawn = {label: (scores, right) for label, (scores, right, *_) in curves.items()}
    spoken = "; ".join(f"{label}: expected calibration error {curve[3]:.3f}" for label, curve in curves.items())
    root, first = Path(check_det_dataset(study.settings["data"])["path"]), next(iter(ready))
    images = []
    for label, mine in found.items():
        validation = validations[label]
        for index in list(dict.fromkeys(validation.image[mine.detections].tolist()))[:WORST]:
            try:
                image = pictures.read_image(validation, index, root)
            except OSError:  # `shown` has said so
                continue
            shown_pictures = []
            for other in dict.fromkeys([label, first]):
                jpeg, said = pictures.draw_errors(validations[other], found[other], index, image)
                shown_pictures.append(picture(jpeg, f"{other}: {said}", f"{validation.images[index]}, {other}: {said}"))
            images.append({"name": f"{label}: {validation.images[index]}", "pictures": shown_pictures})
    return {
        "rows": [{"model": label, **mine.counts(), "calibration": curves[label][3]} for label, mine in found.items()],
        "confusions": {label: list_confusions(mine, validations[label]) for label, mine in found.items()},
        "thresholds": {label: errors.best_thresholds(validation) for label, validation in validations.items()},
        "figures": [plot(figures.plot_calibration(drawn), "Precision against score", spoken)] if drawn else [],
        "images": images,
    }


def list_confusions(found: errors.Errors, validation: Validation) -> list[str]:
    """List the most frequent confusions of classes."""
    pairs = [tuple(map(int, pair)) for pair in np.argwhere(found.confusions)]
    pairs.sort(key=lambda pair: -found.confusions[pair])
    names = validation.names
    return [f"{names[a]} taken for {names[b]}: {found.confusions[a, b]}" for a, b in pairs[:CONFUSIONS]]


def picture(jpeg: bytes, caption: str, alt: str) -> dict[str, str]:
    """Return a photograph for the page, with a text that describes it."""
    return {"source": source(jpeg, "image/jpeg"), "caption": caption, "alt": alt}


def side_by_side(found: Validation, index: int, image: np.ndarray, ready: dict[str, Run]) -> Iterator[dict[str, str]]:
    """Draw the objects of an image, and the detections of each model."""
    name, objects = found.images[index], int((found.target_image == index).sum())
    yield picture(
        pictures.draw_truth(found, index, image),
        f"truth: {counted(objects, 'object')}",
        f"{name} with {counted(objects, 'object')} drawn in",
    )
    for label, run in ready.items():
        jpeg, said = pictures.draw_detections(run, index, image)
        yield picture(jpeg, f"{label}: {said}", f"{name}, {label}: {said}")


def heat_maps(image: np.ndarray, name: str, ready: dict[str, Run]) -> Iterator[dict[str, str]]:
    """Draw where each RT-DETR has the evidence for its detections."""
    for label, run in ready.items():
        try:
            yield picture(pictures.draw_heat_map(run, image), label, f"{name}, heat map of {label}")
        except ValueError as e:
            LOGGER.warning(f"No heat map of {label}: {e}")


def architectures(ready: dict[str, Run]) -> list[dict[str, Any]]:
    """List each model's rows, with what differs from the first's."""
    found = {label: architecture.list_rows(run.best) for label, run in ready.items()}
    first = next(iter(found.values()))
    listed = []
    for label, rows in found.items():
        marked = architecture.mark_differences(first, rows)
        marks = [row["mark"] for row in marked]
        changes = max(marks.count("+"), marks.count("−"))
        parameters = sum(row["parameters"] for row in rows)
        listed.append(
            {"label": label, "rows": marked, "rows_count": len(rows), "parameters": parameters, "changes": changes}
        )
    return listed
