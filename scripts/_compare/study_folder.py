"""The folder of a study: models x seeds on one data set, and what of it is done.

FOLDER/study.json                what was asked for, the versions, and the results
FOLDER/runs/MODEL/made.json      what the model was made with
FOLDER/runs/MODEL/seed-N/        a run of upstream's trainer, as `yolo train` leaves it
FOLDER/runs/MODEL/seed-N/run.json, validation.npz        its outcome, and its detections in each image
FOLDER/table.md, .csv, .tex, report.html                 the results
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy
import torch
from yaml import YAMLError

import ultralytics
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.errors import Refused
from ultralytics.fork.training.resume import read_checkpoint
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils.checks import check_file
from ultralytics.utils.downloads import attempt_download_asset
from ultralytics.utils.torch_utils import get_cpu_info, get_gpu_info

STUDY, MADE, OUTCOME, FOUND = "study.json", "made.json", "run.json", "validation.npz"
RESERVED_ARGUMENTS = (
    "model",
    "data",
    "seed",
    "project",
    "name",
    "exist_ok",
    "resume",
    "mode",
    "task",
    "save_dir",
    "save",
)  # set by the study itself
IRRELEVANT_ARGUMENTS = {
    "device",
    "workers",
    "plots",
    "verbose",
    "cache",
    "save_period",
}  # these do not change the training


@dataclass(frozen=True)
class Run:
    """One model with one seed.

    Attributes:
        label: The model's name in the study.
        model: The file that it is built from.
        seed: Of the training.
        folder: What the study keeps of it; it is trained there, too, unless it was elsewhere before.
        taken: Where a run that is taken in was trained.
    """

    label: str
    model: str
    seed: int
    folder: Path
    taken: Path | None = None

    @property
    def title(self) -> str:
        """The run's name in messages."""
        return f"{self.label} with seed {self.seed}"

    @property
    def trained(self) -> Path:
        """The folder that the trainer writes."""
        return self.taken or self.folder

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.trained / "weights" / "last.pt"

    @property
    def best(self) -> Path:
        """The best checkpoint."""
        return self.trained / "weights" / "best.pt"

    @property
    def outcome(self) -> dict | None:
        """The result of the run, once it has ended or failed."""
        file = self.folder / OUTCOME
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @property
    def is_done(self) -> bool:
        """Whether the outcome is known and belongs to the current weights."""
        found = self.outcome
        return bool(found and found["state"] == "done" and found.get("taken") == self.source())

    def source(self) -> list | None:
        """Identify a checkpoint that was trained elsewhere by its path, size and time."""
        if not self.taken:
            return None
        stat = self.best.stat()
        return [str(self.taken), stat.st_size, stat.st_mtime_ns]

    def conclude(self, outcome: dict) -> None:
        """Write the outcome."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / OUTCOME, json.dumps(outcome, indent=1).encode())

    def arguments(self, settings: dict) -> dict[str, Any]:
        """Return the arguments of `yolo train`."""
        where = {"project": str(self.folder.parent.resolve()), "name": self.folder.name, "exist_ok": True}
        switches = settings.get("switches", {}).get(self.label, {})
        return {**settings["arguments"], **switches, "data": settings["data"], "seed": self.seed, **where}

    def command(self, settings: dict) -> str:
        """Format the run as a command."""
        return shlex.join(
            ["yolo", "train", f"model={self.model}", *(f"{k}={v}" for k, v in self.arguments(settings).items())]
        )


def training_arguments(file: Path) -> dict[str, Any]:
    """Return the arguments of a checkpoint's training; after a resume, `model` is still the file that it began with."""
    modified = file.stat().st_mtime_ns if file.is_file() else None
    return dict(read_training_arguments(file, modified))


@lru_cache
def read_training_arguments(file: Path, modified: int | None) -> dict[str, Any]:
    """Read the arguments of a checkpoint's training, once as long as the file is not modified: it is slow to open."""
    checkpoint = read_checkpoint(file)
    written = (getattr(checkpoint["model"], "yaml", None) or {}).get("yaml_file")
    arguments = checkpoint["train_args"]
    return {**arguments, "model": written} if written and arguments.get("resume") else arguments


def label_models(models: list[str], known: dict[str, str] | None = None, what: str = "--models") -> list[str]:
    """Name models by their files' stems, with as many parent folders as needed to distinguish them.

    Args:
        models: Their files.
        known: Names that files have already, and keep.
        what: The option that they are given by.

    Raises:
        Refused: If a file is named twice.
    """
    for model, count in Counter(str(Path(model).with_suffix("").absolute()) for model in models).items():
        if count > 1:
            raise Refused(f"{what} names {model} {count} times, by itself or as .yaml and .pt; name it once")
    named = dict(known or {})
    paths = {model: Path(model).with_suffix("").absolute().parts[1:] for model in models if model not in named}
    for model, parts in paths.items():
        others = {name for other in paths.values() if other != parts for name in path_suffixes(other)}
        numbered = (f"{parts[-1]}-{n}" for n in itertools.count(2))  # if no folder distinguishes it from a known one
        names = itertools.chain(path_suffixes(parts), numbered)
        named[model] = next(name for name in names if name not in {*named.values(), *others})
    return [named[model] for model in models]


def path_suffixes(parts: Sequence[str]) -> list[str]:
    """List a path's last part, its last two parts, and so on, joined by hyphens."""
    return ["-".join(parts[-depth:]) for depth in range(1, len(parts) + 1)]


def absolute_path(given: Any) -> Any:
    """Return the absolute path of an existing file; other values and bare names stay."""
    return str(Path(given).resolve()) if isinstance(given, str) and Path(given).is_file() else given


def describe_file(file: str | None) -> dict[str, str] | None:
    """Return a file's name and a digest: of the content of a YAML, else of the file's bytes.

    Raises:
        Refused: If there is no such file.
    """
    if not file:
        return None
    try:
        is_yaml = Path(file).suffix in {".yaml", ".yml"}
        content = yaml_model_load(file) if is_yaml else Path(attempt_download_asset(file)).read_bytes()
    except OSError:  # missing, or the download failed
        raise Refused(
            f"--models: {file} does not exist; name a YAML (those of cfg_custom/models by bare name) or a checkpoint"
        ) from None
    except (ValueError, YAMLError):
        content = Path(check_file(file)).read_bytes()  # the run will report its error
    if isinstance(content, dict):
        content.pop("yaml_file")
        content = json.dumps(content, sort_keys=True, default=str).encode()
    return {"file": file, "digest": hashlib.sha256(content).hexdigest()}


def collect_versions() -> dict[str, str]:
    """Return the versions and the machine of a study."""
    return {
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": get_gpu_info(0) if torch.cuda.is_available() else get_cpu_info(),
        "threads": str(torch.get_num_threads()),
    }


class Study:
    """A study's folder.

    Args:
        folder: Where it is, or will be.
        settings: What was asked for: `models` (file by label), `data`, `seeds`, `arguments` of `yolo train`; `grid`,
            the values of the factors, and `switches`, by label the values that a variant has of them; `taken`, by
            label the `file` and the `runs` (folder by seed) that were trained before.

    Raises:
        Refused: If another study is in the folder, or a model file has changed since.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder, self.settings, self.before = folder, settings, read_json(folder / STUDY) or {}
        self.made = {label: self.describe(label) for label in self.labels}
        for label in self.labels:
            if self.has_begun(label):
                self.compare(label, read_json(self.folder / "runs" / label / MADE) or {})

    def describe(self, label: str) -> dict[str, Any]:
        """Describe what a model is made with."""
        switches = self.settings.get("switches", {}).get(label, {})
        arguments = {**self.settings["arguments"], **switches}
        return {
            "model": describe_file(self.settings["models"].get(label)),
            "data": describe_file(self.settings["data"]),
            "cfg": describe_file(arguments.get("cfg")),
            "arguments": {k: v for k, v in arguments.items() if k not in {*IRRELEVANT_ARGUMENTS, "cfg"}},
            **({"switches": switches} if switches else {}),
        }

    def compare(self, label: str, before: dict[str, Any]) -> None:
        """Raise an error if a model was made with other settings; models and seeds may change."""
        now, there = self.made[label], self.folder / "runs" / label
        changes = [
            f"{key} was {old['file'] if old else None}, is now {new['file'] if new else None}"
            + (", with other content" if old and new and old["file"] == new["file"] else "")
            for key in ("model", "data", "cfg")
            if ((old := before.get(key)) and old["digest"]) != ((new := now[key]) and new["digest"])
        ]
        old, new = before.get("arguments", {}), now["arguments"]
        changes += [f"{k} was {old.get(k)}, is now {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]
        if changes:
            raise Refused(
                f"{there} was made with other settings: {'; '.join(changes) if before else f'{MADE} is missing'}. "
                f"Their figures are not comparable; start another study (--out), or delete {there} to repeat it"
            )

    def has_begun(self, label: str) -> bool:
        """Whether anything of a model has been trained or validated here, with any seed."""
        runs = [Run(label, "", 0, folder) for folder in (self.folder / "runs" / label).glob("seed-*")]
        return any(run.last.is_file() or (run.outcome or {}).get("state") == "done" for run in runs)

    @property
    def labels(self) -> list[str]:
        """The models; the others are compared with the first."""
        return [*self.settings["models"], *self.settings["taken"]]

    @property
    def runs(self) -> list[Run]:
        """The runs, ordered by seed, so that all models can be compared early."""
        there = self.folder / "runs"
        taken = [
            Run(label, group["file"], int(seed), there / label / f"seed-{seed}", Path(folder))
            for label, group in self.settings["taken"].items()
            for seed, folder in group["runs"].items()
        ]
        return taken + [
            Run(label, model, seed, there / label / f"seed-{seed}")
            for seed in self.settings["seeds"]
            for label, model in self.settings["models"].items()
        ]

    def done(self, label: str) -> list[Run]:
        """List a model's runs that are done."""
        return [run for run in self.runs if run.label == label and run.is_done]

    def save(self, **results: Any) -> None:
        """Write study.json: the settings, and the results so far."""
        runs = [
            {
                "model": run.label,
                "seed": run.seed,
                **({"taken": str(run.taken)} if run.taken else {"command": run.command(self.settings)}),
                **(run.outcome or {"state": "open"}),
            }
            for run in self.runs
        ]
        for label, made in self.made.items():
            file = self.folder / "runs" / label / MADE
            file.parent.mkdir(parents=True, exist_ok=True)
            if made != read_json(file):
                write_atomically(file, (json.dumps(made, indent=1) + "\n").encode())
        self.before = {
            **self.before,
            "settings": self.settings,
            "versions": collect_versions(),
            "runs": runs,
            **results,
        }
        write_atomically(self.folder / STUDY, (json.dumps(self.before, indent=1) + "\n").encode())


def known_labels(folder: Path) -> dict[str, str]:
    """Return the names of the models in a study's folder, without their switches, by their files."""
    made = {file.parent.name: read_json(file) or {} for file in folder.glob(f"runs/*/{MADE}")}
    return {
        found["model"]["file"]: label.split(f" {next(iter(found['switches']))}=")[0] if "switches" in found else label
        for label, found in made.items()
        if found.get("model")
    }


def read_json(file: Path) -> dict | None:
    """Read a JSON file of a study.

    Raises:
        Refused: If it cannot be read.
    """
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise Refused(f"{file} is not a study's file ({e}); delete it, the runs beside it stay") from None
