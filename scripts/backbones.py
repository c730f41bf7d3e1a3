"""Try backbones of timm in a small RT-DETR: build, train, save, fuse, export to ONNX.

    uv run scripts/backbones.py convnextv2_nano vit_small_patch14_dinov2.lvd142m   # will they work?
    uv run scripts/backbones.py --save                                             # the smallest of each family

The weights are random, and nothing is fetched. A backbone works if a training step at 640 x 640 and one at 480 x 640
give each of its parameters a finite gradient, if its checkpoint opens again, and if its maps are the same when it is
fused and exported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import timm
import torch

from _backbones.trial import Trial, try_backbone
from _bench.report import describe_environment, format_table
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.pretrained.timm_rows import create_bare_model

RECORD = Path(__file__).resolve().parents[1] / "benchmarks" / "timm.json"
FOR_TESTS = "test_"  # begins the names of timm's models for tests


def smallest_members() -> dict[str, str]:
    """Give the smallest model of each family, by the family's Python module in timm."""
    found = {}
    for family in timm.list_modules():
        sizes = {name: size for name in timm.list_models(module=family) if (size := count_parameters(name))}
        if sizes:
            found[family] = min(sizes, key=sizes.__getitem__)
    return found


def count_parameters(name: str) -> int:
    """Count the parameters of a model; 0 for one of timm's models for tests."""
    if name.startswith(FOR_TESTS):
        return 0
    return sum(p.numel() for p in create_bare_model(name).parameters())


def try_apart(name: str, export: bool) -> Trial:
    """Try a model in a process of its own, whose memory is free for the next one, and which may be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["_backbones.trial"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(try_backbone, name, export).result()
        except BrokenProcessPool:
            return Trial(name, errors={"trial": "the process was killed; is there enough memory?"})


def read_rows() -> list[dict[str, str]]:
    """Read the rows of the record."""
    return json.loads(RECORD.read_text(encoding="utf-8"))["backbones"]["results"] if RECORD.is_file() else []


def find_family(name: str) -> str:
    """Find the Python module in timm that a model is defined in."""
    return timm.models.model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2]


def describe_trial(family: str, trial: Trial) -> dict[str, str]:
    """Describe a trial as a row of the table."""
    return {
        "family": family,
        "model": trial.name,
        "parameters": f"{trial.parameters / 1e6:.1f} M",
        "GFLOPs": f"{trial.gflops:.1f}",
        "strides": ", ".join(map(str, trial.strides)),
        "images": trial.size,
        "works": "yes" if trial.works else "; ".join(f"{step}: {error[:90]}" for step, error in trial.errors.items()),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models of timm; the smallest of each family by default")
    parser.add_argument("--no-export", action="store_true", help="leave the export out, which takes most of the time")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--save", action="store_true", help=f"write them to {RECORD.name} of benchmarks/")
    args = parser.parse_args()
    unknown = [name for name in args.names if not timm.is_model(name.partition(".")[0])]
    if unknown:
        sys.exit(f"backbones.py: timm has no model {', '.join(unknown)}; see timm.list_models()")
    chosen = [(find_family(name), name) for name in args.names] or list(smallest_members().items())
    rows = []
    for family, name in chosen:
        trial = (try_backbone if args.names else try_apart)(name, not args.no_export)
        rows.append(describe_trial(family, trial))
        print(f"{name}: {'works' if trial.works else trial.errors}", file=sys.stderr, flush=True)
        if args.save:
            environment = {**describe_environment(torch.device("cpu")), "timm": timm.__version__}
            others = {row["family"]: row for row in read_rows() if args.names}  # which this run does not try
            merged = [*{**others, **{row["family"]: row for row in rows}}.values()]
            merged.sort(key=lambda row: row["family"])
            record = {"backbones": {"environment": environment, "results": merged}}
            write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())
    print(json.dumps(rows, indent=1) if args.json else format_table(rows, list(rows[0])))
    sys.exit(any(row["works"] != "yes" for row in rows) if args.names else 0)


if __name__ == "__main__":
    main()
