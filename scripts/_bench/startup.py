"""Time the import of ultralytics and the build of a vanilla model, relative to the untouched release."""

from __future__ import annotations

import statistics
from pathlib import Path

from _bench.release_trees import OURS, UNTOUCHED, lay_down_trees, run_python

CODE = """
import json, time
start = time.process_time()
from ultralytics import RTDETR
imported = time.process_time()
RTDETR("rtdetr-l.yaml")
print(json.dumps([imported - start, time.process_time() - imported]))
"""
BACKBONE = """
import json, statistics, time
from ultralytics.nn.AddModules.EMO import EMO_1M
samples = []
for _ in range(9):
    start = time.perf_counter()
    EMO_1M()
    samples.append(time.perf_counter() - start)
print(json.dumps([samples[0], statistics.median(samples)]))
"""


def measure_startup(root: Path, rounds: int) -> dict[str, float]:
    """Compare start-up times.

    Args:
        root: The checkout, whose set-up has left the untouched release in `.upstream`.
        rounds: Processes of each side, in turn.

    Returns:
        Median ratios of import and build (processor time), and the milliseconds that `EMO_1M()` takes, and
        that the first takes.
    """
    samples: dict[str, list[list[float]]] = {OURS: [], UNTOUCHED: []}
    with lay_down_trees(root) as trees:
        for i in range(rounds + 1):
            for side, tree in list(trees.items())[:: 1 if i % 2 else -1]:
                seconds = run_python(tree, ["-c", CODE]).read_result()
                if i:  # the first ones write byte code and warm the disk's cache
                    samples[side].append(seconds)
        first, median = run_python(root, ["-c", BACKBONE]).read_result()
    ratios = [[a / b for a, b in zip(*pair)] for pair in zip(samples[OURS], samples[UNTOUCHED])]
    imports, builds = zip(*ratios)
    return {
        "import_over_untouched": statistics.median(imports),
        "build_over_untouched": statistics.median(builds),
        "import_ms": 1e3 * statistics.median(seconds[0] for seconds in samples[OURS]),
        "build_ms": 1e3 * statistics.median(seconds[1] for seconds in samples[OURS]),
        "EMO_1M_ms": 1e3 * median,
        "EMO_1M_first_ms": 1e3 * first,
    }
