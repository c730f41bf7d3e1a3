"""Add runs that were made with plain `yolo train`: their folders, with weights/best.pt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _compare.study_folder import IRRELEVANT_ARGUMENTS, label_models, training_arguments
from ultralytics.fork.errors import Refused
from ultralytics.fork.training.resume import read_checkpoint

SEPARATE_ARGUMENTS = {
    "seed",
    "project",
    "name",
    "save_dir",
    "exist_ok",
    "resume",
} | IRRELEVANT_ARGUMENTS  # these do not change the training


def group_runs(folders: list[Path], data: str | None) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Group runs by model: runs that differ in nothing but the seed belong to one model.

    Args:
        folders: Of the runs.
        data: The data set that validates them; by default the one that they were trained on.

    Returns:
        By label the model's `file` and its `runs` (folder by seed), and the data set.

    Raises:
        Refused: If a folder is not a run's, or two runs have the same model, arguments and seed.
    """
    groups: dict[str, dict[str, Any]] = {}
    sets = {}
    for folder in folders:
        arguments, architecture = read_run(folder)
        sets[folder] = arguments.get("data")
        model = Path(
            arguments["model"]
        )  # whatever its path; a checkpoint and a YAML of one architecture are two models
        told = sorted((k, v) for k, v in arguments.items() if k not in {*SEPARATE_ARGUMENTS, "model"})
        key = repr([model.stem, model.suffix, architecture, told])
        group = groups.setdefault(key, {"file": arguments["model"], "runs": {}, "folder": folder})
        seed = arguments.get("seed", 0)
        if seed in group["runs"]:
            raise Refused(
                f"--from {group['runs'][seed]} {folder}: both are {arguments['model']} with seed {seed} and the same "
                "arguments; one of them is enough"
            )
        group["runs"][seed] = str(folder.resolve())
    if not data and len(set(sets.values())) > 1:
        each = ", ".join(f"{folder} on {name}" for folder, name in sets.items())
        raise Refused(f"--from: the runs were trained on several data sets ({each}); --data says which validates them")
    files = [group["file"] for group in groups.values()]
    stems = label_models(files) if len({Path(file).stem for file in files}) == len(files) else None
    names = stems or label_models([str(group["folder"]) for group in groups.values()])
    found = {name: {"file": g["file"], "runs": g["runs"]} for name, g in zip(names, groups.values())}
    return found, data or next(iter(sets.values()), None)


def read_run(folder: Path) -> tuple[dict[str, Any], dict]:
    """Read a run's arguments and its model's rows from its checkpoint, as args.yaml changes when a run is resumed.

    Raises:
        Refused: If the folder is not a run's, or its training ended before the first checkpoint.
    """
    file = folder / "weights" / "best.pt"
    if not file.is_file():
        raise Refused(
            f"--from {folder}: weights/best.pt is missing there; a folder that `yolo train` has made holds it"
        )
    rows = getattr(read_checkpoint(file)["model"], "yaml", None) or {}
    return training_arguments(file), {key: rows.get(key) for key in ("backbone", "head", "nc", "scale", "scales")}
