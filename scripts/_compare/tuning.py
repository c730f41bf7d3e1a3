"""Search for the arguments with which a model learns best, by Optuna, in a folder that the same command continues.

Optuna (https://optuna.org) keeps its trials in one file that is only appended to, needs no server, and asks for one
trial after the other; Ray Tune, which upstream uses, keeps actors in memory and a checkpoint of its own.

FOLDER/trials.log               Optuna's journal
FOLDER/trials/NAME/             a run of upstream's trainer, named by a digest of its arguments
FOLDER/table.md, best.yaml      the trials, the best first, and a recipe of the best
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _compare.local_runs import print_progress
from _compare.study_folder import IRRELEVANT_ARGUMENTS, RESERVED_ARGUMENTS, Run, describe_file, read_json
from _compare.training_run import perform_run
from _shared.markdown_table import format_markdown_table
from ultralytics.cfg import smart_value
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.errors import Refused
from ultralytics.fork.training.search_space import list_dead_arguments
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml

MADE, JOURNAL = "made.json", "trials.log"
METRIC = "metrics/mAP50-95(B)"  # of each epoch
FACTOR = 10  # between the ends of a range from which it is searched by orders of magnitude
FIRST_TRIALS, FIRST_EPOCHS = 5, 0.25  # that are not ended early; and what share of the epochs
BASELINE = "baseline"


@dataclass(frozen=True)
class Range:
    """A range of numbers."""

    low: float
    high: float

    def suggest(self, trial: Any, key: str) -> float:
        """Let Optuna choose a number."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high)
        return trial.suggest_float(key, self.low, self.high, log=self.low > 0 and self.high / self.low >= FACTOR)


@dataclass(frozen=True)
class Choice:
    """Some values."""

    values: tuple

    def suggest(self, trial: Any, key: str) -> Any:
        """Let Optuna choose one."""
        return trial.suggest_categorical(key, self.values)


def parse_space(text: str, arguments: dict[str, Any], asked: Any) -> dict[str, Range | Choice]:
    """Read a space such as "lr0=1e-4..1e-2 loss=None,official".

    Args:
        text: As it stands on the command line.
        arguments: Of `yolo train`, which all trials have in common.
        asked: All arguments of a trial without the space's.

    Raises:
        Refused: For what is no argument of an RT-DETR's training, is set elsewhere, or has one value.
    """
    space: dict[str, Range | Choice] = {}
    for part in text.split():
        key, _, values = part.partition("=")
        if key in RESERVED_ARGUMENTS or key not in DEFAULT_CFG_DICT or not values:
            raise Refused(f"--space {part}: expected KEY=LOW..HIGH or KEY=VALUE,VALUE with an argument of yolo train")
        if key in space or key in arguments:
            raise Refused(f"--space {part}: {key} is given twice; its values stand in one place")
        low, dots, high = values.partition("..")
        if dots:
            ends = smart_value(low), smart_value(high)
            if (
                not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
                or ends[0] >= ends[1]
            ):
                raise Refused(f"--space {part}: expected two numbers, the smaller first, as in lr0=1e-4..1e-2")
            space[key] = Range(*ends)
        else:
            found = tuple(smart_value(value) for value in values.split(",") if value)
            if len(set(map(repr, found))) < 2:
                raise Refused(f"--space {part}: expected two values or more; a single one stands as {key}=VALUE")
            space[key] = Choice(found)
    if not space:
        raise Refused('--tune needs a --space, such as --space "lr0=1e-4..1e-2 backbone_lr=0.01..1 loss=None,official"')
    dead = sorted(space.keys() & list_dead_arguments(asked))
    if dead:
        raise Refused(f"--space: {', '.join(dead)} would do nothing in this training of an RT-DETR; leave it out")
    return space


def tune(folder: Path, settings: dict, space: dict[str, Range | Choice], trials: int, epochs: int) -> str:
    """Do trials until there are as many as asked for, and write the results; return the table.

    Args:
        folder: Of the search.
        settings: Of a study of one model with one seed.
        space: What is searched.
        trials: How many.
        epochs: Of a trial.

    Raises:
        Refused: If another search is in the folder, or Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise Refused("--tune needs optuna: uv run --extra compare --extra tune python scripts/compare.py …") from None
    note_settings(folder, settings, space)
    optuna.logging.set_verbosity(logging.WARNING)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
    pruner = optuna.pruners.MedianPruner(FIRST_TRIALS, int(epochs * FIRST_EPOCHS))
    search = optuna.create_study(
        study_name="search",
        storage=storage,
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )
    search.sampler = optuna.samplers.TPESampler(seed=len(search.get_trials(deepcopy=False)))  # or it begins again
    running = optuna.trial.TrialState.RUNNING
    for trial in search.get_trials(deepcopy=False, states=[running]):  # of a command that was stopped
        search.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        search.enqueue_trial(trial.params)  # whose run goes on from its checkpoint
    baseline = perform_run(make_run(folder, settings, {}), settings)
    if baseline["state"] != "done":
        raise Refused(f"the training without a search failed: {baseline['error']}")
    over = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    while (done := len(search.get_trials(deepcopy=False, states=over))) < trials:
        print_progress(f"trial {done + 1} of {trials}")
        try_once(search, folder, settings, space)
    return write_results(folder, settings, search, baseline)


def try_once(search: Any, folder: Path, settings: dict, space: dict[str, Range | Choice]) -> None:
    """Do one trial.

    Raises:
        Refused: If its training fails.
    """
    import optuna

    trial = search.ask()
    chosen = {key: values.suggest(trial, key) for key, values in space.items()}
    run = make_run(folder, settings, chosen)
    print_progress(", ".join(f"{key}={value}" for key, value in chosen.items()))
    pruned = []

    def watch(trainer: Any) -> None:
        value = (trainer.metrics or {}).get(METRIC)
        if trainer.epoch and value is not None:  # of the epoch before this one
            trial.report(value, trainer.epoch)
            if trial.should_prune():
                pruned.append(trainer.epoch)
                raise optuna.TrialPruned

    arguments = {**settings["arguments"], **chosen}
    outcome = perform_run(run, {**settings, "arguments": arguments}, watch)
    if pruned:
        trial.set_user_attr("epochs", pruned[0])
        search.tell(trial, state=optuna.trial.TrialState.PRUNED)
        shutil.rmtree(run.folder / "weights", ignore_errors=True)
    elif outcome["state"] == "done":
        trial.set_user_attr("epochs", outcome["epochs"])
        search.tell(trial, outcome["figures"]["mAP50-95"])
    else:
        search.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise Refused(f"a trial with {chosen} failed: {outcome['error']}; the same command goes on with others")


def make_run(folder: Path, settings: dict, chosen: dict[str, Any]) -> Run:
    """Make the run of a trial, in a folder that is named by its arguments."""
    (label, model), *_ = settings["models"].items()
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
    return Run(label, model, settings["seeds"][0], folder / "trials" / (digest if chosen else BASELINE))


def note_settings(folder: Path, settings: dict, space: dict[str, Range | Choice]) -> None:
    """Note what is searched; raise `Refused` if the folder has another search."""
    arguments = {k: v for k, v in settings["arguments"].items() if k not in IRRELEVANT_ARGUMENTS}
    files = [settings["data"], next(iter(settings["models"].values())), arguments.pop("cfg", None)]
    made = {"files": [describe_file(file) for file in files], "seed": settings["seeds"][0], "arguments": arguments}
    made = json.loads(json.dumps({**made, "space": {key: vars(values) for key, values in space.items()}}))
    before = read_json(folder / MADE)
    if before not in (None, made):
        changed = [key for key in made if before.get(key) != made[key]]
        raise Refused(f"{folder} has a search with other {', '.join(changed)}; name another folder (--out)")
    write_atomically(folder / MADE, (json.dumps(made, indent=1) + "\n").encode())


def write_results(folder: Path, settings: dict, search: Any, baseline: dict) -> str:
    """Write the table and the recipe of the best trial; return the table."""
    import optuna

    trials = [t for t in search.get_trials() if t.state.name in {"COMPLETE", "PRUNED"}]
    trials.sort(key=lambda t: (t.state.name == "PRUNED", -(t.value or 0)))
    keys = list(dict.fromkeys(key for t in trials for key in t.params))
    rows = [
        [
            "without a search",
            *("" for _ in keys),
            str(baseline["epochs"]),
            f"{100 * baseline['figures']['mAP50-95']:.2f}",
        ]
    ]
    for t in trials:
        ended = t.state == optuna.trial.TrialState.PRUNED
        figure = "ended early" if ended else f"{100 * t.value:.2f}"
        values = [format_value(t.params.get(key)) for key in keys]
        rows.append([f"trial {t.number}", *values, str(t.user_attrs.get("epochs", "")), figure])
    best = search.best_trial
    recipe = settings["arguments"].get("cfg")
    chosen = {**(YAML.load(check_yaml(recipe)) if recipe else {}), **settings["arguments"], **best.params}
    chosen = {key: value for key, value in chosen.items() if key not in {"cfg", *IRRELEVANT_ARGUMENTS}}
    YAML.save(folder / "best.yaml", chosen)
    (_, model), *_ = settings["models"].items()
    table = format_markdown_table(["trial", *keys, "epochs", "mAP50-95"], rows, "---:")
    switches = " ".join(f"{key}={value}" for key, value in best.params.items())
    text = (
        f"{table}\n\nBest: {switches}, as {folder / 'best.yaml'}. Its figure is the highest of {len(trials)} on the "
        "images that chose it, with one seed, so that some of it is luck. Whether it is better, several seeds tell:\n\n"
        f"    python scripts/compare.py --models {model} --data {settings['data']} --seeds 1 2 3 "
        f'--grid "cfg={recipe or "default.yaml"},{folder / "best.yaml"}"\n'
    )
    write_atomically(folder / "table.md", text.encode())
    return text


def format_value(value: Any) -> str:
    """Format a value of an argument."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
