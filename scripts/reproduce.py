"""Build the published models and compare their summaries with the tutorials' tables; exit status 1 on any difference.

    python scripts/reproduce.py                   the six published models as they are here
    python scripts/reproduce.py --variants        all model files of cfg_custom/models, as the table in the README
    python scripts/reproduce.py --release 8.3.50  the six on that release, as the tutorials built them

Here, rows (index, from, n, parameters, module, arguments), parameters and gradients are compared. Layers are shown
beside the published count but not compared: upstream's own blocks hold more modules than in the tutorials' release.
Honest GFLOPs, which count attention, stand beside the published ones, which do not.

With --release every line that upstream prints of a model is compared to the character: the header, the rows, and the
summary with its layers, parameters, gradients and GFLOPs. The queue is put on that release, and uv makes an environment
with what the release requires and the profiler of the tutorials' time, ultralytics-thop 2.0.13. The published figures
are those of 8.3.50; on another release the lines that differ are listed. One thing differs from a user's run: the
first convolution of bi-level routing attention is called as in the published code, `qkv_linear.forward(x)`, which the
profiler does not see (`AsPublished` in _reproduce/layer_summaries.py). The modules themselves are not changed for it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import TYPE_CHECKING, Any

from _upstream.pin import PACKAGE, UpstreamError, parse_version
from _upstream.queue.release_trees import write_patched_release
from _upstream.queue.scratch_folder import explain_os_errors
from _upstream.verify.environment import OUR_REQUIREMENTS, find_uv, python_command, read_requirements

if TYPE_CHECKING:
    from ultralytics.nn.tasks import RTDETRDetectionModel

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = json.loads(Path(__file__).with_name("_reproduce").joinpath("published.json").read_text(encoding="utf-8"))
PROFILER, PROFILER_VERSION = "ultralytics-thop", "2.0.13"

# As upstream prints them
HEADER = f"{'':>3}{'from':>20}{'n':>3}{'params':>10}  {'module':<45}{'arguments':<30}"
ROW = "{0:>3}{1!s:>20}{2:>3}{3:10.0f}  {4:<45}{5:<30}"
SUMMARY = "{name} summary: {layers:,} layers, {parameters:,} parameters, {gradients:,} gradients, {gflops:.1f} GFLOPs"
FIGURE = re.compile(r"([\d,.]+) (layers|parameters|gradients|GFLOPs)")

Pair = tuple[str | None, str | None]  # a published line and ours


# The models here ------------------------------------------------------------------------------------------------------
def build_model(name: str) -> tuple[RTDETRDetectionModel, list[str]]:
    """Build a model from its file; return it, and the rows that upstream prints of it."""
    from _reproduce.layer_summaries import (
        summarize,  # imports ultralytics, which --release does not need in this process
    )

    model, lines = summarize(name)
    return model, [line.rstrip() for line in lines if line[:3].strip().isdigit()]


def count_totals(model: RTDETRDetectionModel) -> dict[str, int | float]:
    """Count a model's modules, parameters, gradients, and GFLOPs at 640 pixels, attention included."""
    from _shared.flops import count_gflops

    parameters = list(model.parameters())
    return {
        "layers": len(list(model.modules())),
        "parameters": sum(p.numel() for p in parameters),
        "gradients": sum(p.numel() for p in parameters if p.requires_grad),
        "gflops": count_gflops(model),
    }


def list_differences(name: str, rows: list[str], counts: dict[str, int | float]) -> list[str]:
    """List what differs from the published summary, each with both sides."""
    published = PUBLISHED[name]
    expected = [ROW.format(*row).rstrip() for row in published["rows"]]
    found = [f"row {i}\n  published {a}\n  ours      {b}" for i, (a, b) in enumerate(zip(expected, rows)) if a != b]
    if len(rows) != len(expected):
        found.append(f"{len(rows)} rows, published are {len(expected)}")
    for key in ("parameters", "gradients"):
        if counts[key] != published[key]:
            found.append(f"{key} {counts[key]:,}, published are {published[key]:,}")
    return found


def compare_here(names: list[str]) -> dict[str, list[str]]:
    """Print the table of the models; return the differences from the published summaries, by model."""
    print("| model | rows | parameters | layers (published) | GFLOPs published | GFLOPs honest |")
    print("|---|---|---|---|---|---|")
    found = {}
    for name in names:
        model, rows = build_model(name)
        counts = count_totals(model)
        published = PUBLISHED.get(name)
        found[name] = list_differences(name, rows, counts) if published else []
        verdict = "–" if not published else "differ" if found[name] else "as published"
        layers = f"{counts['layers']} ({published['layers']})" if published else f"{counts['layers']}"
        print(
            f"| `{name}` | {verdict} | {counts['parameters']:,} | {layers} | "
            f"{published['gflops'] if published else '–'} | {counts['gflops']:.1f} |",
            flush=True,
        )
    return found


# The models on a release ----------------------------------------------------------------------------------------------
def published_lines(name: str) -> list[str]:
    """Return the lines that the tutorials' release prints of a published model, trailing spaces included."""
    published = PUBLISHED[name]
    rows = [ROW.format(*row) for row in published["rows"]]
    return ["", HEADER, *rows, SUMMARY.format(name=name, **published), ""]


def pair_lines(published: list[str], ours: list[str]) -> list[Pair]:
    """Pair the lines of both sides; a line without a counterpart is paired with None."""
    pairs: list[Pair] = []
    for _, a, b, c, d in SequenceMatcher(None, published, ours, autojunk=False).get_opcodes():
        pairs += zip_longest(published[a:b], ours[c:d])
    return pairs


def read_figures(lines: list[str]) -> dict[str, str]:
    """Read the totals from a summary's lines, and count the rows."""
    found = {"rows": str(sum(line[:3].strip().isdigit() for line in lines))}
    return found | {key: figure for line in lines if " summary" in line for figure, key in FIGURE.findall(line)}


def print_sides(name: str, published: list[str], ours: list[str]) -> list[str]:
    """Print both sides of a model's summary; return the lines that differ, each with both sides.

    A line that is equal on both sides is printed once. A line that differs is quoted, so that an extra space is
    visible.
    """
    print(f"\n{name}")
    found = []
    for i, (theirs, mine) in enumerate(pair_lines(published, ours)):
        if theirs != mine:
            theirs, mine = ("no such line" if line is None else repr(line) for line in (theirs, mine))
            print(f"  published  {theirs}\n  ours       {mine}")
            found.append(f"line {i}\n  published {theirs}\n  ours      {mine}")
        elif mine:
            print(f"  both       {mine.rstrip()}")
    left, right = read_figures(published), read_figures(ours)
    print(f"  {'':<10}{'published':>14}{'ours':>14}")
    for key in left:
        print(f"  {key:<10}{left[key]:>14}{right.get(key, '–'):>14}")
    print(f"  {f'lines that differ: {len(found)}' if found else f'all {len(ours)} lines are equal'}", flush=True)
    return found


def compare_on(release: str) -> dict[str, list[str]]:
    """Print both sides of the published models on a release, one by one; return the differences by model."""
    names = [*PUBLISHED]
    found = {name: print_sides(name, published_lines(name), lines) for name, lines in summaries_on(release, names)}
    if [*found] != names:
        raise UpstreamError(f"{PACKAGE} {release} gave no summary of {', '.join(n for n in names if n not in found)}")
    return found


def summaries_on(release: str, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Build models on a release with the queue applied, and print the progress.

    Yields:
        The name of each model, and the lines that upstream has logged of it.

    Raises:
        UpstreamError: If there is no such release, no uv or no network, or if a model cannot be built.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", release):
        raise UpstreamError(f"{release!r} is not a release of {PACKAGE}; give its three numbers, as in 8.3.50")
    find_uv()  # a missing uv is reported before anything is downloaded
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch, explain_os_errors(ROOT):
        tree = Path(scratch, "tree")
        tree.mkdir()
        print(f"putting the queue on {PACKAGE} {release} …", flush=True)
        needs = add_profiler(read_requirements(write_patched_release(ROOT, release, tree)))
        print("making an environment with what it requires; the first time, uv downloads torch …", flush=True)
        settings = {
            "PYTHONPATH": os.pathsep.join([str(tree), str(ROOT / "scripts")]),
            "YOLO_CONFIG_DIR": str(Path(scratch, "settings")),
            "YOLO_OFFLINE": "true",
        }
        command = ["-m", "_reproduce.layer_summaries", *names]
        # The working directory is empty, as upstream searches it first for a model's file
        for found in stream_json([*needs, *OUR_REQUIREMENTS], *command, cwd=scratch, env={**os.environ, **settings}):
            if "lines" in found:
                yield found["name"], found["lines"]
            else:
                print(", ".join(f"{package} {number}" for package, number in found.items()))
                print("note: BiFormer's qkv_linear is called as the published code did, unseen by the profiler")


def add_profiler(needs: list[str]) -> list[str]:
    """Add the tutorials' version of the profiler to a release's requirements, if they allow it."""
    least = next((need for need in needs if need.startswith(f"{PROFILER}>=")), f"{PROFILER}>=0")
    if parse_version(least.rpartition("=")[2]) <= parse_version(PROFILER_VERSION):
        return [*needs, f"{PROFILER}=={PROFILER_VERSION}"]
    print(f"note: it asks for {least}, not the tutorials' {PROFILER_VERSION}; its GFLOPs may follow other rules")
    return needs


def stream_json(needs: list[str], *args: str, **options: Any) -> Iterator[dict]:
    """Run Python in an environment of its own and yield the JSON objects that it prints, as they come.

    Args:
        needs: What the environment has.
        args: Of Python.
        options: Of `subprocess.Popen`.

    Raises:
        UpstreamError: If uv cannot make the environment, or if Python fails.
    """
    command = [*python_command(needs), *args]
    started = False
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=errors, encoding="utf-8", **options) as process:
            for line in process.stdout:
                if line.startswith("{"):  # upstream may log to stdout when it is imported
                    started = True
                    yield json.loads(line)
        if process.returncode:
            errors.seek(0)
            raise UpstreamError(explain_failure(process.returncode, errors.read(), started))


def explain_failure(status: int, errors: str, started: bool) -> str:
    """Return one line that says why Python, or uv before it, has failed."""
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in said):
        return f"the models cannot be built there: {said[-1]}"
    if started or not said:
        return f"building the models ended with status {status}"
    first = "; ".join(re.sub(r"^\W*(error|cause|Caused by):\s*|\.$", "", line) for line in said[:2])
    return f"uv could not make the environment: {first}; connect to the network, or set UV_OFFLINE=1 to use uv's cache"


def main() -> None:
    """Print the comparison; exit with status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--variants", action="store_true", help="all model files, not only the published")
    which.add_argument("--release", metavar="X.Y.Z", help="the published models on this release, every line compared")
    args = parser.parse_args()
    if args.release is not None:
        try:
            found = compare_on(args.release)
        except UpstreamError as e:
            sys.exit(f"{Path(__file__).name}: {e}")
    elif args.variants:
        found = compare_here(sorted(f.stem for f in (ROOT / "cfg_custom" / "models").glob("*.yaml")))
    else:
        found = compare_here([*PUBLISHED])

    for name, lines in found.items():
        for line in lines:
            print(f"{name}: {line}", file=sys.stderr)
    wrong = [name for name in found if found[name]]
    checked = sum(name in PUBLISHED for name in found)
    compared = "line and figure" if args.release else "row, parameter and gradient"
    verdict = f"{', '.join(wrong)} differ" if wrong else f"every {compared} is as published"
    print(f"{checked} published models: {verdict}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
