"""Average checkpoints of a run, and say whether the average is better.

    uv run scripts/average.py runs/detect/train --best 3 --out average.pt
    uv run scripts/average.py one.pt two.pt three.pt --data my-data.yaml --out average.pt

A folder is a run that was trained with `save_period=1`, whose `results.csv` says which epochs were best. Weights are
averaged in full precision, the running statistics of the batch norms are estimated anew on training images, and the
average and each checkpoint are validated on the run's data set, or on --data. These images have also chosen the
checkpoints; `yolo val split=test` says what the average finds in others.
"""

from __future__ import annotations

import argparse
import copy
import csv
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from _compare.validation import validate_checkpoint
from _shared.markdown_table import format_markdown_table
from ultralytics.data.utils import check_det_dataset
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.checkpoints.load import load_checkpoint
from ultralytics.fork.errors import Refused, is_plain
from ultralytics.fork.rtdetr import find_head
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import torch_save

FITNESS = "metrics/mAP50-95(B)"  # by which the best epochs are chosen
STATISTIC = ".running_mean"  # ends the name of a batch norm's
BATCH = 8  # images of a step in which statistics are estimated


def list_epochs(run: Path) -> dict[int, Path]:
    """List the checkpoints of a run's epochs, counted from 0 as upstream names them.

    Raises:
        Refused: If there are none.
    """
    files = {int(file.stem.removeprefix("epoch")): file for file in (run / "weights").glob("epoch*.pt")}
    if not files:
        raise Refused(f"{run / 'weights'} has no epoch*.pt: train with save_period=1, or name files")
    return dict(sorted(files.items()))


def choose_files(sources: list[Path], best: int | None, last: int | None) -> list[Path]:
    """Choose the checkpoints to average.

    Args:
        sources: Files, or one folder of a run.
        best: How many of the best epochs of the run.
        last: How many of its last epochs.

    Raises:
        Refused: If they are not there, or fewer than two.
    """
    if len(sources) == 1 and sources[0].is_dir():
        files = list_epochs(sources[0])
        if best:
            rows = list(csv.DictReader((sources[0] / "results.csv").read_text(encoding="utf-8").splitlines()))
            scores = {int(row["epoch"]) - 1: float(row[FITNESS]) for row in rows}
            known = sorted((epoch for epoch in files if epoch in scores), key=lambda epoch: -scores[epoch])
            chosen = [files[epoch] for epoch in known[:best]]
        else:
            chosen = list(files.values())[-(last or len(files)) :]
        if len(chosen) < (best or last or 2):
            raise Refused(
                f"{sources[0]} has {len(chosen)} checkpoints of epochs, and {best or last or 2} are asked for"
            )
    elif best or last:
        raise Refused("--best and --last choose among the epochs of one run: name its folder")
    else:
        chosen = sources
    if len(chosen) < 2:
        raise Refused("there is nothing to average: expected two checkpoints or more")
    return chosen


def average_models(files: list[Path]) -> tuple[nn.Module, set[str]]:
    """Average the weights of checkpoints.

    Returns:
        The model, and the names of its batch norms whose statistics are equal in all of them, as those of frozen ones.

    Raises:
        Refused: If they are not of the same RT-DETR.
    """
    average, first = None, {}
    total: dict[str, torch.Tensor] = {}
    frozen: set[str] = set()
    for file in files:
        checkpoint = load_checkpoint(file)
        model = (checkpoint.get("ema") or checkpoint["model"]).float()
        state = model.state_dict()
        if average is None:
            if find_head(model) is None:
                raise Refused(f"{file} is not an RT-DETR, on whose images statistics are estimated here")
            average = copy.deepcopy(model)
            frozen = {key.removesuffix(STATISTIC) for key in state if key.endswith(STATISTIC)}
            first = {key: state[f"{key}{STATISTIC}"] for key in frozen}
            total = {key: value.double() for key, value in state.items() if value.is_floating_point()}
            continue
        shapes, known = ({key: value.shape for key, value in one.items()} for one in (state, average.state_dict()))
        if shapes != known or getattr(model, "names", None) != getattr(average, "names", None):
            raise Refused(f"{file} is another model than {files[0]}, or of other classes")
        frozen = {key for key in frozen if torch.equal(state[f"{key}{STATISTIC}"], first[key])}
        for key, value in total.items():
            value += state[key]
    average.load_state_dict({key: value / len(files) for key, value in total.items()}, strict=False)
    return average, frozen


def estimate_statistics(model: Any, frozen: set[str], data: dict[str, Any], imgsz: int, images: int) -> int:
    """Estimate the running statistics of a model's batch norms on training images, all else in evaluation mode.

    Args:
        model: The model, which is changed.
        frozen: Names of batch norms that keep theirs, which they were trained with.
        data: The data set, as `check_det_dataset` returns it.
        imgsz: Pixels a side.
        images: How many at most.

    Returns:
        How many images there were.
    """
    norms = [m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and name not in frozen]
    dataset = RTDETRDataset(img_path=data["train"], imgsz=imgsz, data=data, augment=False, rect=False)
    places = torch.linspace(0, len(dataset) - 1, min(images, len(dataset))).long().tolist()
    model.eval()
    momenta = {m: m.momentum for m in norms}
    for m in norms:
        m.reset_running_stats()
        m.train()
        m.momentum = None  # the mean over all batches
    with torch.no_grad():
        for start in range(0, len(places), BATCH):
            batch = [dataset[place]["img"] for place in places[start : start + BATCH]]
            if len(batch) > 1:
                model(torch.stack(batch).float() / 255)
    for m in norms:
        m.momentum = momenta[m]
        m.eval()
    return len(places)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="folder of a run, or checkpoints")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--best", type=int, metavar="N", help="of the run's epochs, by mAP50-95")
    chosen.add_argument("--last", type=int, metavar="N", help="of the run's epochs; all by default")
    parser.add_argument("--data", help="data set; that of the training by default")
    parser.add_argument(
        "--images", type=int, default=512, help="for the batch norms; 0 averages their statistics (512)"
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    args = parser.parse_args()
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)  # upstream says much of each validation
    try:
        print(average(args))
    except (OSError, ValueError, TypeError) as e:
        if isinstance(e, OSError) or is_plain(e):
            sys.exit(f"average.py: {e}")
        raise
    finally:
        LOGGER.setLevel(level)


def average(args: argparse.Namespace) -> str:
    """Average, validate and write; return the table.

    Raises:
        Refused: If something cannot be averaged; nothing is written.
    """
    if args.images < 0 or args.images == 1:
        raise Refused(
            f"--images {args.images}: statistics need two images or more; 0 averages those of the checkpoints"
        )
    if args.out.exists():
        raise Refused(f"{args.out} exists; name another --out")
    files = choose_files(args.sources, args.best, args.last)
    model, frozen = average_models(files)
    checkpoint = load_checkpoint(files[-1])
    training = checkpoint["train_args"]
    name = args.data or training.get("data")
    data = check_det_dataset(name)
    used = estimate_statistics(model, frozen, data, training["imgsz"], args.images) if args.images else 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kept = {"model": model.half(), "train_args": training, "version": checkpoint.get("version"), "epoch": -1}
    scratch = args.out.with_name(f".{args.out.name}.pt")
    try:
        torch_save(kept, scratch)
        rows = []
        for file in [*files, scratch]:
            with tempfile.TemporaryDirectory() as where:
                settings = {"data": name, "imgsz": training["imgsz"], "batch": BATCH, "workers": 0}
                figures = validate_checkpoint(file, Path(where, "val"), **settings)[1]
            label = "average" if file == scratch else str(file)
            rows.append([label, f"{100 * figures['mAP50-95']:.2f}", f"{100 * figures['mAP50']:.2f}"])
        write_atomically(args.out, scratch.read_bytes())
    finally:
        scratch.unlink(missing_ok=True)
    table = format_markdown_table(["checkpoint", "mAP50-95", "mAP50"], rows, "---:")
    norms = f"; statistics of the batch norms of {used} images" if used else "; statistics of the batch norms averaged"
    norms += f", but of {len(frozen)} frozen ones" if used and frozen else ""
    return f"{table}\n\n{args.out}: the average of {len(files)} checkpoints{norms}"


if __name__ == "__main__":
    main()
