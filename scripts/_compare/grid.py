"""The grid of a study: arguments of `yolo train` that vary, as factors beside the models."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from _compare.study_folder import RESERVED_ARGUMENTS, absolute_path, label_models
from ultralytics.cfg import smart_value
from ultralytics.fork.errors import Refused
from ultralytics.utils import DEFAULT_CFG_DICT

OUTSIDE_BRACKETS = re.compile(r",(?![^\[(]*[\])])")
VALIDATION_FACTORS = {"split", "classes", "single_cls", "max_det", "conf", "iou"}
Switches = dict[str, Any]


def parse_grid(texts: list[str], arguments: dict[str, Any]) -> dict[str, list[Any]]:
    """Read factors such as "loss=None,official,mal backbone_lr=0.1,1".

    Args:
        texts: As they stand on the command line.
        arguments: Of `yolo train`, which all runs have in common.

    Returns:
        By argument its values, that of the baseline first.

    Raises:
        Refused: For a factor that is no argument, is set elsewhere, or has fewer than two values.
    """
    factors: dict[str, list[Any]] = {}
    for factor in " ".join(texts).split():
        key, _, values = factor.partition("=")
        if key in RESERVED_ARGUMENTS:
            raise Refused(f"--grid {factor}: the study sets {key}; --models, --data and --seeds are factors already")
        if key not in DEFAULT_CFG_DICT or not values:
            raise Refused(f"--grid {factor}: expected KEY=VALUE,VALUE with an argument of yolo train")
        if key in factors or key in arguments:
            raise Refused(f"--grid {factor}: {key} is given twice; its values stand in one place")
        if key in VALIDATION_FACTORS:
            raise Refused(f"--grid {factor}: {key} changes what is validated, and such figures are not comparable")
        found = [absolute_path(smart_value(value)) for value in OUTSIDE_BRACKETS.split(values) if value]
        if len(found) < 2 or len({repr(value) for value in found}) < len(found):
            raise Refused(
                f"--grid {factor}: expected two values or more, each once; a single one stands as {key}=VALUE"
            )
        factors[key] = json.loads(json.dumps(found))  # in the form of study.json
    return factors


def name_values(factors: dict[str, list[Any]]) -> dict[str, dict[str, str]]:
    """Name the values of factors: files by their stems, with as many folders as tell them apart, others as they are."""
    names: dict[str, dict[str, str]] = {}
    for key, values in factors.items():
        files = [value for value in values if isinstance(value, str) and Path(value).suffix]
        known = dict(zip(files, label_models(files, what=f"--grid {key}")))
        names[key] = {repr(value): known.get(value, str(value)) if value in files else str(value) for value in values}
    return names


def list_switches(factors: dict[str, list[Any]]) -> list[Switches]:
    """List the combinations of the factors' values, the baseline's first."""
    return [dict(zip(factors, values)) for values in itertools.product(*factors.values())]


def name_variant(label: str, switches: Switches, names: dict[str, dict[str, str]]) -> str:
    """Name a model with its switches.

    Args:
        label: Of the model.
        switches: Its values of the factors.
        names: Of all values, as `name_values` returns them.
    """
    return " ".join([label, *(f"{key}={names[key][repr(value)]}" for key, value in switches.items())])


def pair_levels(settings: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Pair the variants that differ in one factor only, of which one has the factor's first value.

    Args:
        settings: Of the study.

    Returns:
        By level, such as "loss=official over loss=None", the labels of each pair. Empty for a level with one pair,
        which the difference to the baseline shows.
    """
    factors, models, switches = settings.get("grid", {}), settings["models"], settings.get("switches", {})
    by_place = {(models[label], json.dumps(switches.get(label, {}))): label for label in models}
    names = name_values(factors)
    found: dict[str, list[tuple[str, str]]] = {}
    for key, (first, *others) in factors.items():
        for value in others:
            pairs = [
                (label, by_place[models[label], json.dumps({**switches[label], key: first})])
                for label in models
                if switches[label][key] == value
            ]
            if len(pairs) > 1:
                found[f"{key}={names[key][repr(value)]} over {key}={names[key][repr(first)]}"] = pairs
    return found
