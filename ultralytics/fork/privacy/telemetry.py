"""Send nothing out that the user has not turned on.

Upstream's utils/__init__.py imports this file while it is half made: its head imports Python's own modules only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Settings that send something out. Upstream has had most of them on by itself, so that on in a settings file of its
# own says nothing of what the user wants
OUTGOING_SETTINGS = frozenset({"sync", "clearml", "comet", "dvc", "hub", "mlflow", "neptune", "wandb"})
# What packages that upstream loads, if they are installed, would send or look up by themselves
OPT_OUT_VARIABLES = {
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}


def opt_out_of_telemetry() -> None:
    """Turn off the telemetry of other packages by their own variables, where the user has not set these."""
    for name, value in OPT_OUT_VARIABLES.items():
        os.environ.setdefault(name, value)


def load_settings(load: Callable, settings: Any) -> None:
    """Load the settings; of those that send something out, only what the user turned on here is on."""
    settings.defaults.update(dict.fromkeys(OUTGOING_SETTINGS & settings.defaults.keys(), False))
    load(settings)
    dict.update(settings, dict.fromkeys((OUTGOING_SETTINGS & settings.keys()) - read_turned_on(settings), False))


def update_settings(update: Callable, settings: Any, *args: Any, **kwargs: Any) -> None:
    """Update the settings, and note beside them which of those that send something out are on."""
    update(settings, *args, **kwargs)
    before = read_turned_on(settings)
    now = {key for key in OUTGOING_SETTINGS & settings.keys() if settings[key]}
    for key in sorted(now - before):
        print(f"{key} is on: it sends data out, until `yolo settings {key}=False`")
    if now != before:
        with contextlib.suppress(OSError):  # where upstream cannot write its file either, and says so
            turned_on_file(settings).write_text(json.dumps(sorted(now)), encoding="utf-8")


def turned_on_file(settings: Any) -> Path:
    """Give the file that says what the user turned on, which upstream neither reads nor writes."""
    return settings.file.with_name("turned-on.json")


def read_turned_on(settings: Any) -> set[str]:
    """Read which of the settings that send something out the user turned on."""
    try:
        return set(json.loads(turned_on_file(settings).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return set()


def disable_openvino_telemetry() -> None:
    """Keep OpenVINO and NNCF, which take no answer for consent, from reporting to their makers.

    What the user has said with OpenVINO's own `opt_in_out` holds. Call this before OpenVINO is imported: else the
    import itself is reported.
    """
    try:
        from openvino_telemetry import Telemetry
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    except ImportError:
        return
    if hasattr(OptInChecker.check, "__wrapped__"):
        return
    OptInChecker.check = decline_without_answer(OptInChecker.check, ConsentCheckResult)
    running = getattr(Telemetry, "_SingletonMetaClass__single_instance", None)  # by an import of the user's own
    if running:
        running.consent = OptInChecker().check(False) is ConsentCheckResult.ACCEPTED


def decline_without_answer(check: Callable, results: Any) -> Callable:
    """Wrap OpenVINO's check of a consent, so that no answer is a no."""

    @functools.wraps(check)
    def check_consent(*args: Any, **kwargs: Any) -> Any:
        result = check(*args, **kwargs)
        return results.DECLINED if result is results.NO_FILE else result

    return check_consent
