"""Run this project on a GPU, in one command of at most eight minutes: is all of it right there, and how fast?

    python scripts/gpu.py --out gpu.json                  everything, on a CUDA device
    python scripts/gpu.py --device cpu --small            the same on a CPU with tiny sizes, to try the script itself
    python scripts/gpu.py --only throughput               parts, models or checks whose name has this in it
    python scripts/gpu.py --prepare                       lay down the untouched release in .gpu, to measure it, too
    python scripts/gpu.py --wheels                        what a bare environment lacks, for `pip download`

It needs no network, and beside torch, torchvision, numpy, opencv, timm, einops, pyyaml, pillow, matplotlib, psutil and
requests only what --wheels lists. Parts run in processes of their own: one that fails, or ends a process, does not end
the others. Those that are timed run by themselves, at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products, which upstream asks for

import torch  # noqa: E402

from _gpu.checks import RESULT, Options, read_results  # noqa: E402
from _shared.markdown_table import format_markdown_table  # noqa: E402

WHEELS = "scipy==1.17.1", "ultralytics-thop==2.2.3", "onnx==1.23.2"  # 45 MB for Linux and Python 3.12
PREPARED = ROOT / ".gpu"


@dataclass(frozen=True)
class Job:
    """One process: a part, for a model or a family."""

    part: str
    item: str

    @property
    def name(self) -> str:
        """The name, as --only has it."""
        return f"{self.part} {self.item}".strip()


def list_jobs(options: Options) -> tuple[list[Job], list[Job]]:
    """List the jobs that run side by side, and those that are timed."""
    from _gpu.models import TINY, list_names
    from _gpu.modules import FAMILIES

    names = list_names(options)
    checked = [Job("commands", ""), *(Job("models", name) for name in names)]
    checked += [Job("compiled", name) for name in (TINY[:1] if options.small else TINY)]
    families = FAMILIES[:2] if options.small else FAMILIES
    return checked, [*(Job("throughput", name) for name in names), *(Job("modules", name) for name in families)]


def run_part(part: str, item: str, options: Options) -> None:
    """Run one job in this process."""
    from _gpu.commands import check_commands
    from _gpu.compiled import check_compiled
    from _gpu.models import check_model
    from _gpu.modules import check_modules
    from _gpu.throughput import check_throughput

    parts: dict[str, Callable[[str, Options], None]] = {
        "models": check_model,
        "compiled": check_compiled,
        "commands": check_commands,
        "modules": check_modules,
        "throughput": check_throughput,
    }
    parts[part](item, options)


def run_job(job: Job, options: Options, end: float) -> list[dict]:
    """Run one job in a process of its own until `end`, and give the results of its checks."""
    left = end - time.monotonic()
    if left <= 5:
        return [report_failure(job, "there was no time left for it")]
    command = [sys.executable, __file__, "--device", options.device, *(["--small"] if options.small else [])]
    process = subprocess.Popen(
        [*command, "--part", job.part, job.item], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, why = process.communicate(timeout=left)[0], ""
    except subprocess.TimeoutExpired:
        process.kill()
        output, why = process.communicate()[0], "it was still running when the time was over"
    results = read_results(output)
    if not why and process.returncode:
        lines = [line for line in output.strip().splitlines() if line and not line.startswith(RESULT)] or ["killed"]
        why = f"its process ended with {process.returncode}: {lines[-1][:200]}"
    if why:
        results.append(report_failure(job, why))
    for result in results:
        print(format_line(result), file=sys.stderr, flush=True)
    return results


def report_failure(job: Job, why: str) -> dict:
    """Give the result of a job that did not come to its end."""
    return {"part": job.part, "check": job.item or job.part, "state": "failed", "why": why, "figures": {}, "seconds": 0}


def format_line(result: dict) -> str:
    """Format a result as a line of the log."""
    why = f": {result['why']}" if result["why"] else ""
    return f"{result['state']:>8}  {result['part']:<10}  {result['check']} ({result['seconds']:.1f} s){why}"


def format_figures(figures: dict) -> str:
    """Format the figures of a check."""
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
    )


def describe_machine(device: str) -> dict[str, str]:
    """Describe the device, and the versions that ran on it."""
    import ultralytics

    found = {"python": platform.python_version(), "torch": torch.__version__, "ultralytics": ultralytics.__version__}
    if device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return found


def prepare() -> None:
    """Lay down the untouched release in .gpu, which git ignores and which is carried to the device."""
    from _upstream.pin import Pin
    from _upstream.queue.release_trees import write_untouched_tree

    shutil.rmtree(PREPARED / "untouched", ignore_errors=True)
    write_untouched_tree(ROOT / ".upstream" / "repo", Pin.read(ROOT).release, PREPARED / "untouched")
    print(f"the untouched release is in {(PREPARED / 'untouched').relative_to(ROOT)}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    summary, _, details = __doc__.partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=style)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and sizes")
    parser.add_argument("--only", default="", metavar="TEXT", help="parts and models whose name has this in it")
    parser.add_argument("--minutes", type=float, default=8, help="after which what still runs is ended (8)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--wheels", action="store_true", help="print what a bare environment lacks")
    parser.add_argument("--prepare", action="store_true", help="lay down the untouched release in .gpu")
    parser.add_argument("--part", nargs=2, metavar=("PART", "NAME"), help=argparse.SUPPRESS)  # one job, in this process
    args = parser.parse_args()
    if not (args.wheels or args.prepare) and args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --small tries the script on a CPU")
    if args.minutes <= 0:
        parser.error("--minutes must be positive")
    return args


def main() -> int:
    """Run the jobs, print a table and write the JSON; the exit status is 1 if a check failed."""
    args = parse_arguments()
    if args.wheels:
        print(*WHEELS, sep="\n")
        return 0
    if args.prepare:
        prepare()
        return 0
    options = Options(args.device, args.small)
    if args.part:
        run_part(*args.part, options)
        return 0
    checked, timed = ([job for job in jobs if args.only in job.name] for jobs in list_jobs(options))
    if not checked + timed:
        names = ", ".join(job.name for jobs in list_jobs(options) for job in jobs)
        print(f"error: --only {args.only!r} is in no name; there are {names}", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * args.minutes
    results = []
    with ThreadPoolExecutor(4 if args.device == "cuda" else 1) as pool:
        for found in pool.map(lambda job: run_job(job, options, end), checked):
            results += found
    for job in timed:
        results += run_job(job, options, end)
    return report(results, args)


def report(results: list[dict], args: argparse.Namespace) -> int:
    """Print the table and the sum, and write the JSON."""
    rows = [[r["part"], r["check"], r["state"], r["why"] or format_figures(r["figures"])] for r in results]
    print(format_markdown_table(["part", "check", "", "figures"], rows))
    counts = {state: sum(r["state"] == state for r in results) for state in ("passed", "failed", "not here")}
    environment = describe_machine(args.device)
    print(f"\n{', '.join(environment.values())}: {', '.join(f'{n} {state}' for state, n in counts.items())}")
    if args.out:
        content = {"environment": environment, "small": args.small, **counts, "results": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
