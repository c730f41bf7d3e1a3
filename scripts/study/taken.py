"""Take in runs that were made with plain `yolo train`: their folders, with weights/best.pt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.plan import labels, trained_with
from ultralytics.nn.AddModules.errors import Refused

SEPARATE = {
    "seed",
    "project",
    "name",
    "save_dir",
    "exist_ok",
    "resume",
    "device",
    "workers",
}  # say nothing of what was trained


def take(folders: list[Path], data: str | None) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Group runs: those of one model that differ in nothing but the seed are one model's.

    Args:
        folders: Of the runs.
        data: What they are validated on; what they were trained on where nothing is given.

    Returns:
        By label the model's `file` and its `runs` (folder by seed), and the data set.

    Raises:
        Refused: If a folder is no run's, or two runs have the same model, arguments and seed.
    """
    groups: dict[str, dict[str, Any]] = {}
    sets = {}
    for folder in folders:
        arguments = read(folder)
        sets[folder] = arguments.get("data")
        key = repr(sorted((k, v) for k, v in arguments.items() if k not in SEPARATE))
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
    stems = labels(files) if len({Path(file).stem for file in files}) == len(files) else None
    names = stems or labels([str(group["folder"]) for group in groups.values()])
    found = {name: {"file": g["file"], "runs": g["runs"]} for name, g in zip(names, groups.values())}
    return found, data or next(iter(sets.values()), None)


def read(folder: Path) -> dict[str, Any]:
    """Read a run's arguments, from its checkpoint: those in args.yaml are others once a run was gone on with.

    Raises:
        Refused: If the folder is no run's, or its training never got to a checkpoint.
    """
    file = folder / "weights" / "best.pt"
    if not file.is_file():
        raise Refused(
            f"--from {folder}: weights/best.pt is missing there; a folder that `yolo train` has made holds it"
        )
    return trained_with(file)
