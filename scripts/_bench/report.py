"""Format benchmark results as tables, and save them in one JSON file for each machine."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import torch

import ultralytics
from _shared.machine import describe_machine
from _shared.markdown_table import format_markdown_table


def describe_environment(device: torch.device) -> dict[str, str]:
    """Describe the machine and the versions with which results were made."""
    found = {
        "machine": describe_machine(device),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
    }
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def find_results_file(folder: Path, device: torch.device) -> Path:
    """Return the file of a machine's results."""
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", describe_machine(device).lower())).strip("-")
    return folder / f"{slug}.json"


def save_section(folder: Path, device: torch.device, section: str, results: object) -> Path:
    """Save one section of the machine's file, with its environment; the other sections stay."""
    file = find_results_file(folder, device)
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    data[section] = {"environment": describe_environment(device), "results": results}
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(round_figures(data), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)
    return file


def read_other_rows(folder: Path, device: torch.device, section: str, rows: list[dict]) -> list[dict]:
    """Return the saved rows of a section for models that are not in these rows."""
    file = find_results_file(folder, device)
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    models = {row["model"] for row in rows}
    return [row for row in data.get(section, {}).get("results", []) if row["model"] not in models]


def round_figures(data: object) -> object:
    """Round figures to four digits; a shared machine is not more precise."""
    if isinstance(data, dict):
        return {key: round_figures(value) for key, value in data.items()}
    if isinstance(data, list):
        return [round_figures(value) for value in data]
    return float(f"{data:.4g}") if isinstance(data, float) else data


def format_table(rows: list[dict], columns: list[str]) -> str:
    """Format rows as a Markdown table."""
    return format_markdown_table(columns, [[format_value(row.get(column)) for column in columns] for row in rows])


def summarise_results(data: dict) -> str:
    """Summarise a machine's saved results as the README shows them; a heading names what is not fp32 and eager mode."""
    parts = []
    for section, kept in sorted(data.items()):
        what, *variant = section.split()
        if what not in SUMMARIES:  # a profile is too long
            continue
        if variant:
            parts.append(f"{what}, {' '.join(variant)}:")
        parts += SUMMARIES[what](kept["results"])
    return "\n\n".join(parts)


MARKED = re.compile(r"(?ms)^(<!-- table: (\S+) (.+?) (\d+) -->\n).*?^(<!-- end of table -->)$")


def fill_page(page: str, folder: Path) -> str:
    """Write the recorded tables into a Markdown page, each between its marker comments.

    Args:
        page: Text with `<!-- table: FILE SECTION NUMBER -->` and `<!-- end of table -->`; NUMBER counts from 0 within a
            section.
        folder: Folder of the records, FILE.json.
    """

    def marked(found: re.Match) -> str:
        begin, file, section, number, end = found.groups()
        record = json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))[section]
        return f"{begin}\n{SUMMARIES[section.split()[0]](record['results'])[int(number)]}\n\n{end}"

    return MARKED.sub(marked, page)


def summarise_modules(results: dict) -> list[str]:
    """Format the tables of the cases and of the exponents."""
    columns = {
        "case": "case (batch x channels x size)",
        "mode": "mode",
        "ours / floor": "of the floor",
        "ours / best floor": "of the best floor",
        "ours / naive": "of naive",
        "MiB / naive": "memory, of naive",
    }
    return [
        format_renamed(results["cases"], columns),
        format_table(results["exponents"], list(results["exponents"][0])),
    ]


def summarise_models(results: dict) -> list[str]:
    """Format the tables of whole models, and of the multi-query ones against their naive form."""
    columns = {
        "model": "model, fused",
        "batch": "batch",
        "ms": "ms",
        "over_baseline": "of the baseline's time",
        "over_baseline_per_operation": "for as many operations",
    }
    parts = (results[part] for part in ("over naive", "memory", "training"))
    return [format_renamed(results["models"], columns), *(format_table(part, list(part[0])) for part in parts if part)]


def summarise_depth(results: dict) -> list[str]:
    """Format what was measured, and its table."""
    columns = {
        "decoder_layers": "decoder layers",
        "num_queries": "queries",
        "parameters": "parameters",
        "ms": "ms",
        "over_whole": "of the whole's time",
        "mAP50": "mAP50",
        "mAP50-95": "mAP50-95",
    }
    rows = [{**row, **{key: f"{row[key]:.3f}" for key in ("mAP50", "mAP50-95")}} for row in results["rows"]]
    return ["`{model}` on `{data}` at {imgsz} px, one image, fused:".format(**results), format_renamed(rows, columns)]


def summarise_train(results: list[dict]) -> list[str]:
    """Format a table of steps and one of their parts and of the epoch around them, in seconds."""
    whole = {
        "model": "model",
        "side": "side",
        "step s": "step, s",
        "of the time": "of the first's time",
        "MiB": "peak, MiB",
        "of the memory": "of the first's memory",
    }
    known = ("losses", *list(whole)[2:])
    parts = {key: key.removesuffix(" s") for key in results[0] if key not in known}
    return [format_renamed(results, whole), format_renamed(results, parts)]


def summarise_commands(results: list[dict]) -> list[str]:
    """Format the table of whole commands."""
    columns = {
        "command": "command",
        "ours cpu": "processor, s",
        "untouched cpu": "untouched, s",
        "of cpu": "of its time",
        "ours peak": "peak, MiB",
        "of peak": "of its memory",
    }
    return [format_renamed(results, columns)]


def summarise_deploy(results: list[dict]) -> list[str]:
    """Format a table of latencies and one of sizes, with a row for each model and a column for each runtime."""
    runtimes = list(dict.fromkeys(row["runtime"] for row in results))
    tables = []
    for key, title in (("ms", "{model} at {imgsz}"), ("MiB", "{model}")):
        rows = {}
        for row in results:
            found = rows.setdefault(row["model"], {f"model, {key}": title.format(**row)})
            over = f" ({row['over_pytorch']:.2f})" if key == "ms" and row["over_pytorch"] != 1 else ""
            found[row["runtime"]] = format_value(row[key]) + over
        tables.append(format_table(list(rows.values()), [f"model, {key}", *runtimes]))
    return tables


def format_renamed(rows: list[dict], columns: dict[str, str]) -> str:
    """Format some columns as a table under other names."""
    return format_table([{new: row[old] for old, new in columns.items()} for row in rows], list(columns.values()))


SUMMARIES = {
    "modules": summarise_modules,
    "models": summarise_models,
    "depth": summarise_depth,
    "deploy": summarise_deploy,
    "train": summarise_train,
    "commands": summarise_commands,
    **dict.fromkeys(
        ("memory", "peers", "backbones", "shelf"), lambda results: [format_table(results, list(results[0]))]
    ),
    "startup": lambda results: [format_table([results], list(results))],
}


def format_value(value: object) -> str:
    """Format a figure with its significant digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
