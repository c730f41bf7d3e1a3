"""Print the peak memory of one case or model, which only a process of its own can measure on a CPU.

    python -m _bench.peak_process REQUEST

`measure.measure_in_process` writes the request, a JSON list, and runs this file.
"""

from __future__ import annotations

import json
import sys

import torch

from _bench.measure import iterate_cases, measure_peak
from _bench.models import measure_model_peak


def main() -> None:
    """Print one figure."""
    kind, name, side, mode, options, *batch = json.loads(sys.argv[1])
    options["autocast"] = getattr(torch, options["autocast"]) if options["autocast"] else None
    how = torch.device("cpu"), options
    if kind == "peak":
        print(measure_peak(next(c for c in iterate_cases() if c.name == name), side, mode, *how))
    elif kind == "model":
        print(measure_model_peak(name, side, mode, *how, *batch))
    else:
        raise ValueError(f"unknown request {kind!r}")


if __name__ == "__main__":
    main()
