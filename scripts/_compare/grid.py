"""The grid of a study: arguments of `yolo train` that vary, as factors beside the models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from _compare.study_folder import RESERVED_ARGUMENTS, absolute_path
from ultralytics.cfg import smart_value
from ultralytics.fork.errors import Refused
from ultralytics.utils import DEFAULT_CFG_DICT

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
        found = [absolute_path(smart_value(value)) for value in values.split(",") if value]
        if len(found) < 2 or len({repr(value) for value in found}) < len(found):
            raise Refused(
                f"--grid {factor}: expected two values or more, each once; a single one stands as {key}=VALUE"
            )
        factors[key] = json.loads(json.dumps(found))  # in the form of study.json
    return factors


def list_switches(factors: dict[str, list[Any]]) -> list[Switches]:
    """List the combinations of the factors' values, the baseline's first."""
    return [dict(zip(factors, values)) for values in itertools.product(*factors.values())]


def name_variant(label: str, switches: Switches) -> str:
    """Name a model with its switches."""
    return " ".join([label, *(f"{key}={name_value(value)}" for key, value in switches.items())])


def name_value(value: Any) -> str:
    """Name a value of a switch; that of a file is its stem."""
    return Path(value).stem if isinstance(value, str) and ("/" in value or "\\" in value) else str(value)


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
    found: dict[str, list[tuple[str, str]]] = {}
    for key, (first, *others) in factors.items():
        for value in others:
            pairs = [
                (label, by_place[models[label], json.dumps({**switches[label], key: first})])
                for label in models
                if switches[label][key] == value
            ]
            if len(pairs) > 1:
                found[f"{key}={name_value(value)} over {key}={name_value(first)}"] = pairs
    return found
