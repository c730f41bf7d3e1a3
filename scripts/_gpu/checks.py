"""Run the checks of a part one after the other; one that fails does not end the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

RESULT = "gpu.py: "  # before each line of standard output that is a check's result


@dataclass(frozen=True)
class Options:
    """How all parts run.

    Attributes:
        device: "cuda" or "cpu".
        small: Whether sizes and models are tiny, for a try on a CPU.
    """

    device: str
    small: bool

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return torch.device(self.device)


class NotHere(Exception):
    """A check needs what this machine has not; it is listed, and neither passes nor fails."""


def run_check(part: str, name: str, check: Callable[[], dict | None]) -> bool:
    """Run one check and print its result as a line of JSON.

    Args:
        part: The part of which it is.
        name: What is checked.
        check: Raises if it fails, `NotHere` if it cannot run; gives figures, or None.

    Returns:
        Whether it did not fail.
    """
    began, result = time.perf_counter(), {"part": part, "check": name, "state": "passed", "why": "", "figures": {}}
    try:
        result["figures"] = check() or {}
    except NotHere as e:
        result |= {"state": "not here", "why": str(e)}
    except Exception as e:
        lines = str(e).strip().splitlines() or [""]
        result |= {"state": "failed", "why": f"{type(e).__name__}: {lines[0]}"[:300]}
    result["seconds"] = time.perf_counter() - began
    print(f"\n{RESULT}{json.dumps(result)}", flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result["state"] != "failed"


def read_results(output: str) -> list[dict]:
    """Read the results in what a part has printed."""
    return [json.loads(line[len(RESULT) :]) for line in output.splitlines() if line.startswith(RESULT)]


def require(condition: bool, message: str) -> None:
    """Raise `AssertionError` with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)
