r"""Train models on a data set, each with several seeds, and say which is better, by how much, and at what cost.

    python scripts/compare.py --models rtdetr-tiny.yaml rtdetr-tiny-FLA.yaml --data shapes.yaml --seeds 0 1 2 \\
        --epochs 30 cfg=scratch.yaml

The first model is what the others are compared with. Any argument of `yolo train` may follow, as `imgsz=320` or as
`--imgsz 320`. Arguments may be factors beside the models: --grid "loss=None,official,mal" trains each model with each
value. --data may name several data sets, each of which gets a study in a folder of its own below, with a table over all
of them. All runs go through upstream's own trainer and validator, one after the other, in one folder:

    OUT/table.md, .csv, .tex    the results
    OUT/report.html             the same as a page with pictures, in one file
    OUT/study.json              everything, with versions and commands
    OUT/runs/MODEL/seed-N       the runs, as `yolo train` leaves them

The same command continues where it was stopped or killed: it does not repeat finished runs, and retries failed ones.
More models and seeds may be added. `--from` takes in runs that were made with plain `yolo train`.

The interval of a difference is at 95 %: a paired bootstrap over the validation images, and the scatter over seeds with
Student's t. If it contains zero ("n.s.", not significant), the study does not show that the models differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from filelock import FileLock, Timeout  # noqa: E402

from _compare import data_sets, existing_runs, local_runs, ray_cluster, tables, tuning, watch  # noqa: E402
from _compare.cost import measure_costs  # noqa: E402
from _compare.grid import list_switches, name_values, name_variant, parse_grid  # noqa: E402
from _compare.html_report import write_report  # noqa: E402
from _compare.results import check_images, summarise_effects, summarise_study  # noqa: E402
from _compare.study_folder import (  # noqa: E402
    RESERVED_ARGUMENTS,
    Run,
    Study,
    absolute_path,
    known_labels,
    label_models,
    training_arguments,
)
from _compare.training_run import STRIDE, choose_device, summarise_error  # noqa: E402
from _shared.machine import describe_machine  # noqa: E402
from ultralytics.cfg import TASK2DATA, get_cfg, smart_value  # noqa: E402
from ultralytics.data.utils import check_det_dataset  # noqa: E402
from ultralytics.fork.atomic_write import write_atomically  # noqa: E402
from ultralytics.fork.errors import Refused  # noqa: E402
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER, YAML  # noqa: E402
from ultralytics.utils.checks import check_imgsz, check_yaml  # noqa: E402
from ultralytics.utils.torch_utils import select_device  # noqa: E402

PAIR = re.compile(r"[a-z]\w*=")  # a path begins like this only if its first folder does


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    summary, _, details = __doc__.partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=style, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=[], metavar="FILE", help="YAML or .pt, the baseline first")
    parser.add_argument("--data", nargs="+", default=[], metavar="YAML", help="the data set, or several")
    parser.add_argument(
        "--grid", action="append", default=[], metavar='"KEY=VALUE,VALUE …"', help="arguments of yolo train that vary"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/studies/DATA")
    parser.add_argument(
        "--from", dest="taken", nargs="+", default=[], type=Path, metavar="RUN", help=existing_runs.__doc__
    )
    parser.add_argument(
        "--watch", type=Path, metavar="FOLDER", help="show a running study in a browser, and do nothing"
    )
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="of --watch (8765)")
    search = parser.add_argument_group("search for arguments, in place of a comparison")
    search.add_argument("--tune", type=int, metavar="N", help="trials of one model, by Optuna")
    search.add_argument("--space", default="", metavar='"KEY=LOW..HIGH KEY=VALUE,VALUE …"', help="what is searched")
    nodes = parser.add_argument_group("on a Ray cluster")
    nodes.add_argument("--on", choices=["here", "ray"], default="here", help="where runs are done (here)")
    nodes.add_argument("--address", default="auto", metavar="HOST:PORT", help="the cluster (this machine's)")
    nodes.add_argument("--cpus", type=float, default=1, metavar="N", help="that a run takes (1)")
    nodes.add_argument("--gpus", type=float, default=0, metavar="N", help="that a run takes (0)")
    nodes.add_argument("--retries", type=int, default=3, metavar="N", help="of a run whose node was lost (3)")
    trainer = parser.add_argument_group("of yolo train")
    for key in sorted(DEFAULT_CFG_DICT.keys() - {*RESERVED_ARGUMENTS, "models"}):
        trainer.add_argument(f"--{key}", dest=f"train {key}", metavar="VALUE", help=argparse.SUPPRESS)
    parser.add_argument("pairs", nargs="*", metavar="KEY=VALUE", help="any argument of yolo train")
    given = {}
    factors = {place + 1 for place, token in enumerate(argv) if token in {"--grid", "--space"}}
    for token in [t for i, t in enumerate(argv) if PAIR.match(t) and i not in factors]:  # at any place in the command
        argv.remove(token)
        key, value = token.split("=", 1)
        if not value:
            raise Refused(f"{token}: expected KEY=VALUE, an argument of yolo train")
        given[key] = smart_value(value)
    args = parser.parse_args(argv)
    if args.pairs:
        parser.error(f"{args.pairs[0]}: expected KEY=VALUE, an argument of yolo train")
    for key, value in vars(args).items():
        if key.startswith("train ") and value is not None:
            given[key.removeprefix("train ")] = smart_value(value)
    args.arguments = json.loads(json.dumps(given))  # in the form of study.json
    return args


def check_settings(args: argparse.Namespace, data: str | None, folder: Path | None) -> tuple[Path, dict]:
    """Check the command line for one data set, and return the study's folder and settings.

    Args:
        args: The command line.
        data: The data set; None for that of the recipe, or of the runs that are taken in.
        folder: Of the study; None for one that is named after the data set.

    Raises:
        Refused: If something is missing, unknown or wrong.
    """
    for key in args.arguments.keys() & set(RESERVED_ARGUMENTS):
        raise Refused(f"{key}=…: the study sets it; --models, --data, --seeds and --out say what and where")
    if len(set(args.seeds)) < len(args.seeds):
        raise Refused(f"--seeds {' '.join(map(str, args.seeds))}: a seed is repeated")
    factors = parse_grid(args.grid, args.arguments)
    asked = [check_arguments(args, {**args.arguments, **switches}) for switches in list_switches(factors)]
    for key in factors.keys() & {"lr0", "momentum"}:
        if any(arguments.optimizer == "auto" for arguments in asked):
            raise Refused(f"--grid {key}=…: optimizer=auto chooses {key} itself; name one, such as optimizer=AdamW")
    found, data = existing_runs.group_runs(args.taken, data) if args.taken else ({}, data)
    recipe = args.arguments.get("cfg")
    data = data or (YAML.load(check_yaml(recipe)).get("data") if recipe else None)
    if not data:
        raise Refused(f"--data is missing: the YAML of a data set, such as shapes.yaml or {TASK2DATA['detect']}")
    try:
        splits = check_det_dataset(data)
    except Exception as e:
        raise Refused(f"--data {data}: {' '.join(str(e).split())}") from e
    for split in {arguments.split for arguments in asked}:
        if not splits.get(split or "val"):
            raise Refused(f"split={split}: {data} names no images for it")
    folder = folder or Path("runs", "studies", Path(data).stem)
    files = [absolute_path(model) for model in args.models]
    models, chosen, names = {}, {}, name_values(factors)
    for label, file in zip(label_models(files, known_labels(folder)), files):
        for switches in list_switches(factors):
            variant = name_variant(label, switches, names)
            models[variant], chosen[variant] = file, switches
    for label in models.keys() & found:
        raise Refused(f"--models and --from both have a {label}; one of them is enough")
    settings = {
        "models": models,
        "taken": found,
        "data": absolute_path(data),
        "seeds": args.seeds if models else [],
        "arguments": {key: absolute_path(value) for key, value in args.arguments.items()},
        **({"grid": factors, "switches": chosen} if factors else {}),
    }
    return folder, settings


def check_arguments(args: argparse.Namespace, arguments: dict) -> Any:
    """Check arguments of `yolo train`, and return all of them.

    Raises:
        Refused: If one is unknown or wrong.
    """
    recipe = arguments.get("cfg")
    try:
        LOGGER.setLevel(logging.ERROR)  # else upstream prints its whole help for an unknown name
        asked = get_cfg(DEFAULT_CFG, {**(YAML.load(check_yaml(recipe)) if recipe else {}), **arguments})
        check_imgsz(asked.imgsz, stride=STRIDE, max_dim=1)
        if args.on == "here" and asked.device is not None:
            select_device(asked.device, verbose=False)
        return asked
    except FileNotFoundError:
        raise Refused(f"cfg={recipe} does not exist; recipes are found by bare name or path") from None
    except (SyntaxError, TypeError, ValueError) as e:
        raise Refused(" ".join(str(e).split())) from None
    finally:
        LOGGER.setLevel(logging.INFO)


def write_results(study: Study, args: argparse.Namespace) -> list[dict]:
    """Measure the costs of the models, and write study.json, the tables and the page."""
    check_images(study)
    ready = {label: study.done(label)[0] for label in study.labels if study.done(label)}
    if not ready:
        study.save()
        return []
    found = measure_models(study, ready, args)
    rows = summarise_study(study, found.get("models", {}))
    effects = summarise_effects(study, rows)
    study.save(costs=found, results=rows, effects=effects)
    notes = tables.write_notes(study, rows)
    for suffix, make in tables.FORMATS.items():
        text = make(rows, notes) + (tables.format_effects(effects) if suffix == ".md" else "")
        write_atomically(study.folder / f"table{suffix}", text.encode())
    write_report(study, rows, effects, shlex.join(["python", "scripts/compare.py", *sys.argv[1:]]))
    return rows


def measure_models(study: Study, ready: dict[str, Run], args: argparse.Namespace) -> dict[str, Any]:
    """Measure the costs of models in one run; earlier measurements of the same weights on this machine stay."""
    first = next(iter(ready.values()))
    arguments = training_arguments(first.best)
    files = {label: run.best for label, run in ready.items()}
    sizes = {label: run.outcome["imgsz"] for label, run in ready.items()}
    batch = max(1, int(arguments["batch"]))
    if args.on == "here":
        device = select_device(choose_device(arguments, study.settings), verbose=False)
        where = describe_machine(device)
    else:
        where = [args.address, resources(args)]
    of = {
        "weights": [[label, hashlib.sha256(file.read_bytes()).hexdigest()] for label, file in files.items()],
        "sizes": sizes,
        "batch": batch,
        "where": where,
    }
    before = study.before.get("costs", {})
    if before.get("of") == of:
        return before
    local_runs.print_progress(f"timing {len(ready)} models")
    try:
        if args.on == "ray":
            return {
                "of": of,
                **ray_cluster.measure_costs_on_cluster(files, sizes, batch, args.address, resources(args)),
            }
        return {"of": of, **measure_costs(files, sizes, device, batch)}
    except Exception as e:  # the other results are shown
        local_runs.print_progress(f"the costs could not be measured ({summarise_error(e)})")
        return {"failed": summarise_error(e)}


def resources(args: argparse.Namespace) -> dict[str, float]:
    """Return the resources of a run on a cluster's node."""
    return {"num_cpus": args.cpus, "num_gpus": args.gpus}


def perform_study(folder: Path, settings: dict, args: argparse.Namespace) -> tuple[list[dict], bool]:
    """Do the runs of a study that are not done, and show the results; return them, and whether a run has failed.

    Raises:
        Refused: If the folder cannot be made, or something is wrong with the study in it.
        Timeout: If another process is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Refused(f"--out {folder}: no folder can be made there ({e.strerror}); name another") from None
    with FileLock(folder / ".lock", timeout=0):
        study = Study(folder, settings)
        study.save(results=[])  # results of other models or seeds are dropped
        if args.on == "ray":
            ray_cluster.run_on_cluster(study, args.address, resources(args), args.retries)
        else:
            local_runs.run_study(study)
        rows = write_results(study, args)
        failed = [run for run in study.runs if not run.is_done]
        if rows:
            print((folder / "table.md").read_text(encoding="utf-8"))
            print(f"{folder / 'report.html'}, table.md, .csv, .tex and study.json are beside each other")
        for run in failed:
            print(f"{run.title} failed: {run.outcome['error']}; the same command tries again")
        return rows, bool(failed)


def list_studies(args: argparse.Namespace) -> dict[str, tuple[Path, dict]]:
    """Check the command line, and list the studies by data set, with folder and settings.

    Raises:
        Refused: If something is missing, unknown or wrong.
    """
    if not args.models and not args.taken:
        raise Refused("nothing to compare: --models names YAML files or checkpoints, --from folders of runs")
    if len(args.data) < 2:
        return {"": check_settings(args, next(iter(args.data), None), args.out)}
    if args.taken:
        raise Refused("--from: these runs are of one data set; --data names it alone")
    names = label_models([absolute_path(data) for data in args.data], what="--data")
    args.out = args.out or Path("runs", "studies", "-".join(names))
    return {name: check_settings(args, data, args.out / name) for name, data in zip(names, args.data)}


def search_arguments(args: argparse.Namespace) -> str:
    """Do the trials that are not done, and return their table.

    Raises:
        Refused: If something is missing, unknown or wrong.
        Timeout: If another process is at work in the folder.
    """
    if len(args.models) != 1 or len(args.data) > 1 or args.taken or args.grid or args.on != "here" or args.tune < 1:
        raise Refused("--tune N searches for one model on one data set, here: --models FILE --data YAML --space …")
    data = next(iter(args.data), None)
    folder, settings = check_settings(args, data, args.out or Path("runs", "tuning", Path(data or "search").stem))
    settings["seeds"] = settings["seeds"][:1]
    asked = check_arguments(args, args.arguments)
    space = tuning.parse_space(args.space, args.arguments, asked)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=0):
        return tuning.tune(folder, settings, space, args.tune, asked.epochs)


def main() -> int:
    """Do the runs that are not done, and show the results; return 1 if a run has failed."""
    folder = None
    try:
        args = parse_arguments(sys.argv[1:])
        if args.watch:
            watch.watch(args.watch, args.port)
            return 0
        if args.tune is not None:
            folder = args.out
            print(search_arguments(args))
            return 0
        if args.space:
            raise Refused("--space is what --tune searches; --grid varies arguments as factors")
        studies = list_studies(args)
        for folder, settings in studies.values():
            Study(folder, settings)  # checks before a folder is made
        found, failed = {}, False
        for name, (folder, settings) in studies.items():
            found[name], failures = perform_study(folder, settings, args)
            failed |= failures
        if len(studies) > 1 and any(found.values()):
            print(data_sets.write_table(args.out, found))
            print(f"{args.out / 'table.md'}, .csv, .tex and study.json are over all data sets")
        return int(failed)
    except Timeout:
        print(f"{folder} is being worked on by another compare.py; wait for it or stop it", file=sys.stderr)
    except (Refused, OSError) as e:
        print(f"compare.py: {e}", file=sys.stderr)
    except KeyboardInterrupt:
        print("study: stopped; the same command continues", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
