"""Time the import of ultralytics and the build of a vanilla model, relative to the untouched release."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _upstream.pin import Pin, UpstreamError
from _upstream.queue.release_trees import write_untouched_tree

CODE = """
import json, time
start = time.perf_counter()
from ultralytics import RTDETR
imported = time.perf_counter()
RTDETR("rtdetr-l.yaml")
print(json.dumps([imported - start, time.perf_counter() - imported]))
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
        Median ratios of import and build, and the milliseconds that `EMO_1M()` takes, and
        that the first takes.
    """
    repo = root / ".upstream" / "repo"
    if not repo.is_dir():
        raise UpstreamError("the untouched release is not in .upstream: run `python scripts/upstream.py apply`")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        untouched = Path(folder)
        write_untouched_tree(repo, Pin.read(root).release, untouched)
        samples: dict[str, list[list[float]]] = {"ours": [], "untouched": []}
        for i in range(rounds + 1):
            sides = [("ours", root), ("untouched", untouched)]
            for side, tree in sides[:: 1 if i % 2 else -1]:
                seconds = run_timed(CODE, tree)
                if i:  # the first ones write byte code and warm the disk's cache
                    samples[side].append(seconds)
    ratios = [[a / b for a, b in zip(*pair)] for pair in zip(samples["ours"], samples["untouched"])]
    imports, builds = zip(*ratios)
    first, median = run_timed(BACKBONE, root)
    return {
        "import_over_untouched": statistics.median(imports),
        "build_over_untouched": statistics.median(builds),
        "import_ms": 1e3 * statistics.median(s[0] for s in samples["ours"]),
        "build_ms": 1e3 * statistics.median(s[1] for s in samples["ours"]),
        "EMO_1M_ms": 1e3 * median,
        "EMO_1M_first_ms": 1e3 * first,
    }


def run_timed(code: str, tree: Path) -> list[float]:
    """Run code in a process that imports ultralytics from `tree`; return the figures in its last line."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UpstreamError(f"ultralytics in {tree.name} does not start: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
