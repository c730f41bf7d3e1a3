"""Measure how fast the added modules are, against naive forms, upstream's plain modules and the floor.

    python scripts/bench.py modules              the published cases, and how cost grows with the map
    python scripts/bench.py models               whole models at 640 pixels, fused
    python scripts/bench.py memory               a training step at 640 pixels, with and without activation checkpoints
    python scripts/bench.py shelf                the modules of the shelf against the passes that they cannot leave out
    python scripts/bench.py depth --model FILE   a trained RT-DETR with fewer decoder layers and queries: latency, mAP
    python scripts/bench.py deploy               every model in each runtime that it is exported to: latency, file size
    python scripts/bench.py train                the parts of a training step and epoch, against the untouched release
    python scripts/bench.py commands             whole `yolo` commands against the untouched release
    python scripts/bench.py startup              import and build against the untouched release
    python scripts/bench.py peers                RT-DETR-R18 against Hugging Face's, the same weights: time, memory
    python scripts/bench.py profile --only FLA   the operations that a case's time goes to
    python scripts/bench.py kept                 print the tables of the records in benchmarks/
    python scripts/bench.py pages                write these tables into the pages of docs/

The floor of a case is the time of its own matrix products and convolutions, one read of its input and one write of its
output: in the textbook's form, and the best floor in the fastest form that torch has for each product. All sides of a
comparison run in turn in one process: on a shared machine only their ratios mean something.
`--save` keeps the results, with what they were made on, in `benchmarks/`: one file a machine, and pictures. With
`--only`, `deploy` leaves the other models' rows there as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.setdefault("YOLO_OFFLINE", "true")  # nothing here needs the network, and requests take time

import torch  # noqa: E402

from _bench import (  # noqa: E402
    cases,
    deploy,
    depth,
    measure,
    models,
    naive_formulas,
    plots,
    report,
    shelf,
    startup,
    training_memory,
    training_steps,
    transformers_peer,
    whole_commands,
)
from _shared import timing  # noqa: E402
from _shared.flops import count_flops  # noqa: E402
from _shared.progress import Progress  # noqa: E402
from _upstream.pin import UpstreamError  # noqa: E402

ROUNDS = {"train": 3, "commands": 5}  # of processes, which take minutes; 20 samples of all else
TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def bench_modules(args: argparse.Namespace) -> dict:
    """Time each published case, and fit how cost grows."""
    return {"cases": bench_cases(args), **bench_growth(args)}


def bench_cases(args: argparse.Namespace) -> list[dict]:
    """Time the published cases: all sides, in inference and training."""
    rows = []
    chosen = [case for case in cases.CASES if args.only in case.name]
    with Progress("cases", len(chosen) * len(measure.MODES)) as progress:
        for case in chosen:
            for mode in measure.MODES:
                sides = ["ours", "naive", "floor", "best floor", *case.plain_modules()]
                found = measure.time_sides(case, mode, sides, args.device, args.options, args.rounds, args.seconds)
                floors = 3 if mode == "training" else 1  # a backward has two products for each product of the forward
                row = {
                    "case": case.name,
                    "mode": mode,
                    **{f"{side} ms": 1e3 * t.median for side, t in found.items()},
                    "spread": found["ours"].spread,
                    "ours / floor": found["ours"].over(found["floor"]) / floors,
                    "ours / best floor": found["ours"].over(found["best floor"]) / floors,
                    "ours / naive": found["ours"].over(found["naive"]),
                }
                for side in ("floor", "best floor"):
                    row[f"{side} ms"] *= floors
                for side in ("ours", "naive"):
                    row[f"{side} MiB"] = measure.measure_peak_alone(case, side, mode, args.device, args.options)
                row["MiB / naive"] = row["ours MiB"] / row["naive MiB"]
                rows.append(row)
                progress.step(f"{case.name} {mode}")
    return rows


def bench_growth(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Time each family on growing maps, and fit the exponents."""
    rows, fits = [], []
    families = {name: found for name, found in cases.GROWTH.items() if any(args.only in case.name for case in found)}
    with Progress("growth", sum(map(len, families.values()))) as progress:
        for family, found in families.items():
            own = []
            for case in found:
                seconds = measure.time_sides(
                    case, "inference", ["ours"], args.device, args.options, args.rounds, args.seconds
                )
                own.append(
                    {
                        "family": family,
                        "tokens": case.shape[2] * case.shape[3],
                        "ms": 1e3 * seconds["ours"].median,
                        "MiB": measure.measure_peak_alone(case, "ours", "training", args.device, args.options),
                    }
                )
                progress.step(case.name)
            tokens = [row["tokens"] for row in own]
            fit = {
                "family": family,
                "time exponent": timing.fit_exponent(tokens, [row["ms"] for row in own]),
                "operations exponent": operations_exponent(found),
                "memory exponent": timing.fit_exponent(tokens, [row["MiB"] for row in own]),
            }
            fits.append(fit)
            rows += own
    return {"growth": rows, "exponents": fits}


def operations_exponent(found: list[cases.Case]) -> float:
    """Fit how the operations of a family's formula grow: on large maps, its time cannot grow more slowly."""
    counts = [count_flops(naive_formulas.naive_copy(case.build()), case.shape) for case in found]
    return timing.fit_exponent([case.shape[2] * case.shape[3] for case in found], counts)


def bench_models(args: argparse.Namespace) -> dict:
    """Time whole models in turn, and the multi-query ones against their naive form."""
    names = [name for name in [*cases.PUBLISHED, *cases.LARGER] if args.only in name]
    common, gpu = (args.device, args.options), args.device.type == "cuda"
    batch, training_batch = (16, 16) if gpu else (1, 4)
    measured = [cases.BASELINE, *names] if gpu else [name for name in names if "MQA" in name]
    against = [name for name in names if "MQA" in name]
    results = {"over naive": [], "memory": [], "training": []}
    with Progress("models", 1 + gpu + bool(against) + 2 * len(measured)) as progress:
        timed = batch, args.rounds, 10 * args.seconds
        results["models"] = models.time_models([cases.BASELINE, *names], "ours", *common, *timed)
        progress.step("fused models")
        if gpu:
            trained = [name for name in names if name in cases.PUBLISHED]
            results["training"] = models.time_training([cases.BASELINE, *trained], *common, *timed)
            progress.step("training")
        if against:
            found = models.time_against_naive(against, "rtdetr-ResNetLayer_MQA", *common, 3, args.seconds)
            results["over naive"] = found
            progress.step("against the naive form")
        for name in measured:
            for mode, size in zip(measure.MODES, (batch, training_batch)):
                peak = models.measure_model_memory(name, "ours", mode, *common, size)
                results["memory"].append({"model": name, "mode": mode, "batch": size, "MiB": peak})
                progress.step(f"memory of {name}, {mode}")
    return results


def bench_depth(args: argparse.Namespace) -> dict:
    """Time and validate a trained model with fewer decoder layers, and with fewer queries."""
    return depth.measure_depths(args.model, args.data, args.imgsz, args.device, args.options, args.rounds, args.seconds)


def bench_deploy(args: argparse.Namespace) -> list[dict]:
    """Export models, and time them in each runtime."""
    chosen = [name for name in deploy.NAMES if args.only in name]
    return deploy.measure_runtimes(chosen, args.data, args.rounds, args.seconds)


def bench_profile(args: argparse.Namespace) -> list[dict]:
    """Profile the published cases, inference and training."""
    chosen = [case for case in cases.CASES if args.only in case.name]
    return [
        row
        for case in chosen
        for mode in measure.MODES
        for row in measure.profile_case(case, mode, args.device, args.options, args.rounds)
    ]


def bench_memory(args: argparse.Namespace) -> list[dict]:
    """Measure the memory of training steps."""
    names = [name for name in training_memory.NAMES if args.only in name]
    batches = [4, 8, 16] if args.device.type == "cuda" else [1, 4]
    common = args.device, args.options, batches
    return training_memory.measure_training_memory(names, *common, args.rounds, args.seconds)


def bench_shelf(args: argparse.Namespace) -> list[dict]:
    """Measure the modules of the shelf."""
    names = [name for name in shelf.FLOORS if args.only in name]
    return shelf.measure_shelf(names, args.device, args.rounds, args.seconds)


def bench_train(args: argparse.Namespace) -> list[dict]:
    """Measure training steps, and the epoch around them."""
    names = [args.only] if args.only in training_steps.NAMES else [n for n in training_steps.NAMES if args.only in n]
    with Progress("models", len(names)) as progress:
        return training_steps.measure_steps(
            ROOT, names, str(args.device), args.imgsz or models.SIZE, args.batch, args.steps, args.rounds, progress.step
        )


def bench_commands(args: argparse.Namespace) -> list[dict]:
    """Measure whole commands."""
    imgsz = args.imgsz or whole_commands.IMGSZ
    with Progress("commands", len(list_names("commands"))) as progress:
        return whole_commands.measure_commands(ROOT, cases.BASELINE, args.only, args.rounds, progress.step, imgsz)


def show_modules(results: dict) -> None:
    """Print the tables of `modules`."""
    plain = ["Conv 3x3 ms", "AIFI ms", "MHA ms", "HGNet ms"]
    ratios = ["ours / floor", "ours / best floor", "ours / naive", "ours MiB", "naive MiB", "MiB / naive"]
    columns = ["case", "mode", "ours ms", "spread", "naive ms", "floor ms", "best floor ms", *plain, *ratios]
    print(report.format_table(results["cases"], columns), "\n")
    print(report.format_table(results["exponents"], list(results["exponents"][0])))


def show_models(results: dict) -> None:
    """Print the tables of `models`."""
    figures = ["ms", "spread", "over_baseline", "over_baseline_per_operation"]
    print(report.format_table(results["models"], ["model", "batch", "parameters", "gflops", *figures]))
    for part in ("over naive", "memory", "training"):
        if results[part]:
            print()
            print(report.format_table(results[part], list(results[part][0])))


def show_rows(results: list[dict]) -> None:
    """Print one table of all figures."""
    print(report.format_table(results, list(results[0])))


def show_depth(results: dict) -> None:
    """Print the table of `depth`."""
    print(*report.summarise_depth(results), sep="\n\n")


def show_deploy(results: list[dict]) -> None:
    """Print the tables of `deploy`."""
    print(report.format_table(results, list(results[0])), "\n")
    print(*report.summarise_deploy(results), sep="\n\n")


def show_train(results: list[dict]) -> None:
    """Print the tables of `train`."""
    print(*report.summarise_train(results), sep="\n\n")


def show_startup(results: dict) -> None:
    """Print the table of `startup`."""
    print(report.format_table([results], list(results)))


def print_kept_results() -> None:
    """Print a summary of each machine's results."""
    for file in sorted((ROOT / "benchmarks").glob("*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        sections = (section["environment"] for section in data.values())
        print(f"{file.stem}: {'; '.join(sorted({', '.join(found.values()) for found in sections}))}\n")
        print(report.summarise_results(data), "\n")


def write_pages() -> None:
    """Write the recorded tables into the pages of docs/."""
    for file in sorted((ROOT / "docs").glob("*.md")):
        page = file.read_text(encoding="utf-8")
        filled = report.fill_page(page, ROOT / "benchmarks")
        if filled != page:
            file.write_text(filled, encoding="utf-8")
            print(file.relative_to(ROOT))


BENCHES = {
    "modules": (bench_modules, show_modules),
    "models": (bench_models, show_models),
    "memory": (bench_memory, show_rows),
    "shelf": (bench_shelf, show_rows),
    "depth": (bench_depth, show_depth),
    "deploy": (bench_deploy, show_deploy),
    "profile": (bench_profile, show_rows),
    "peers": (lambda args: transformers_peer.measure_peers(args.rounds), show_rows),
    "train": (bench_train, show_train),
    "commands": (bench_commands, show_rows),
    "startup": (lambda args: startup.measure_startup(ROOT, args.rounds), show_startup),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    summary, _, details = __doc__.partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=style)
    parser.add_argument("what", choices=[*BENCHES, "kept", "pages"])
    parser.add_argument("--only", default="", metavar="TEXT", help="cases, or models, whose name has this in it")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--dtype", choices=TYPES, default="fp32", help="what autocast gives products; fp32: none")
    parser.add_argument("--compile", action="store_true", help="compile the modules with torch.compile")
    parser.add_argument("--rounds", type=int, help="samples of each side (20; train 3, commands 5 processes)")
    parser.add_argument("--seconds", type=float, default=20, help="for a comparison, unless it needs three rounds (20)")
    parser.add_argument("--model", metavar="FILE", help="for depth: a trained RT-DETR's checkpoint")
    parser.add_argument(
        "--data", default="shapes.yaml", help="for depth: gives mAP; for deploy: calibrates INT8 (shapes.yaml)"
    )
    parser.add_argument(
        "--imgsz",
        type=int,
        metavar="PIXELS",
        help="for depth (what it was trained with), train (640) and commands (320): image size",
    )
    parser.add_argument("--batch", type=int, default=2, help="for train: images a step (2)")
    parser.add_argument("--steps", type=int, default=3, help="for train: steps that count, in each process (3)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in benchmarks/, with pictures")
    args = parser.parse_args()
    args.rounds = args.rounds if args.rounds is not None else ROUNDS.get(args.what, 20)
    if min(args.rounds, args.seconds, args.batch, args.steps) <= 0 or (args.imgsz or 32) < 32:
        parser.error("--rounds, --seconds, --batch and --steps must be positive, --imgsz at least 32")
    if args.what == "deploy" and args.device.type != "cpu":
        parser.error("deploy: the runtimes of the `export` extra are those of the CPU")
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if args.what in ("modules", "models", "memory", "deploy", "profile", "train", "commands") and not has_matches(args):
        parser.error(f"--only {args.only!r} is in no name; there are {', '.join(list_names(args.what))}")
    if args.what == "depth" and not (args.model and Path(args.model).is_file()):
        problem = f"{args.model} does not exist" if args.model else "none is named"
        parser.error(f"depth needs --model, a trained RT-DETR's .pt, and {problem}; `{depth.HOW_TO_TRAIN}` trains one")
    args.options = {"autocast": TYPES[args.dtype], "compile": args.compile}
    return args


def list_names(what: str) -> list[str]:
    """List the cases or the models."""
    if what == "models":
        return [*cases.PUBLISHED, *cases.LARGER]
    if what == "memory":
        return training_memory.NAMES
    if what == "train":
        return training_steps.NAMES
    if what == "commands":
        return [command.name for command in whole_commands.list_commands(cases.BASELINE, whole_commands.IMGSZ)]
    if what == "deploy":
        return deploy.NAMES
    return [case.name for case in (measure.iterate_cases() if what == "modules" else cases.CASES)]


def has_matches(args: argparse.Namespace) -> bool:
    """Whether --only leaves anything to measure."""
    return any(args.only in name for name in list_names(args.what))


def save_results(args: argparse.Namespace, results: dict) -> None:
    """Save results, and draw their picture."""
    variant = "" if args.dtype == "fp32" else f" {args.dtype}"
    section = f"{args.what}{variant}{' compiled' if args.compile else ''}"
    if args.what == "deploy" and args.only:
        results = [*report.read_other_rows(ROOT / "benchmarks", args.device, section, results), *results]
        results.sort(key=lambda row: deploy.NAMES.index(row["model"]))
    file = report.save_section(ROOT / "benchmarks", args.device, section, results)
    picture = file.with_name(f"{file.stem}-{section.replace(' ', '-')}.png")
    if args.what == "modules":
        plots.plot_growth(results["growth"], picture)
    elif args.what == "models":
        plots.plot_models(results["models"], picture)
    elif args.what == "depth":
        plots.plot_depth(results, picture)
    elif args.what == "deploy":
        plots.plot_deploy(results, picture)
    elif args.what == "train":
        plots.plot_steps(results, picture)
    print(f"\nkept in {file.relative_to(ROOT)}", file=sys.stderr)


def main() -> int:
    """Measure, print and save."""
    args = parse_arguments()
    if args.what == "kept":
        print_kept_results()
        return 0
    if args.what == "pages":
        write_pages()
        return 0
    bench, show = BENCHES[args.what]
    try:
        results = bench(args)
    except (UpstreamError, RuntimeError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report.round_figures(results), indent=1))
    else:
        show(results)
    if args.save:
        save_results(args, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
