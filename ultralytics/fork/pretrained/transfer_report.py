"""Report which pretrained weights arrived in a model: in the log, and in a run's folder as transfer.csv."""

from __future__ import annotations

import csv
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from ultralytics.utils import LOGGER, RANK

if TYPE_CHECKING:
    from ultralytics.fork.pretrained.alignment import AlignedTensors

MIN_SHARE = 0.5  # of the source's tensors; a smaller share is warned of
COLUMNS = "source", "from", "to", "tensors", "of", "share"

# The rows of `list_rows` for the models in memory, for `write_transfer_report`; checkpoints must not hold them
REPORTS: weakref.WeakKeyDictionary[nn.Module, list[tuple]] = weakref.WeakKeyDictionary()


def write_transfer_report(trainer: Any) -> None:
    """Write the report of the weights that a run starts from into its folder."""
    rows = REPORTS.get(trainer.model, []) if isinstance(trainer.model, nn.Module) else []
    trainer.fork.has_pretrained_weights = any(row[3] for row in rows)
    if rows and RANK in {-1, 0} and not trainer.resume:
        with open(trainer.save_dir / "transfer.csv", "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows([COLUMNS, *rows])


def source_name(source: Any) -> str:
    """Name the file that a source is from."""
    return getattr(source, "pt_path", None) or source.yaml.get("yaml_file") or "a model in memory"


def list_rows(found: AlignedTensors, loaded: set[str]) -> Iterator[tuple]:
    """Yield a row for each layer of the target, and for each of the source of which nothing arrived; see COLUMNS.

    Args:
        found: The alignment of source and target.
        loaded: The target's keys of the tensors that arrived.
    """
    source, arrived = source_name(found.source), set()
    for t in found.ours:
        n = sum(f"model.{t.position}.{key}" in loaded for key in t.shapes)
        s = found.partner.get(t)
        arrived |= {s} if n else set()
        yield source, str(s) if n else "-", str(t), n, len(t.shapes), f"{n / len(t.shapes):.3f}"
    for s in found.theirs:
        if s not in arrived:
            yield source, str(s), "-", 0, len(s.shapes), "0.000"


def log_report(rows: list[tuple], loaded: int, held: int, wanted: int) -> None:
    """Log the table, unless all tensors arrived and filled the model; warn if few arrived.

    Args:
        rows: Of `list_rows`.
        loaded: How many tensors arrived.
        held: How many the source has.
        wanted: How many the target has.
    """
    source, share = rows[0][0], loaded / held
    if loaded < max(held, wanted):
        widths = [max(len(str(row[i])) for row in rows) for i in range(1, 4)]
        lines = [f"{'from':<{widths[0]}}  {'to':<{widths[1]}}  tensors    share"]
        lines += [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {n:>4} of {of:<4} {float(part):>4.0%}"
            for _, a, b, n, of, part in rows
        ]
        LOGGER.info("\n".join(lines))
        LOGGER.info(
            f"{loaded} of {held} tensors of {source} arrived ({share:.1%}); they are {loaded} of the model's {wanted}"
        )
    if share < MIN_SHARE:
        LOGGER.warning(
            f"Only {share:.1%} of the tensors of {source} have a place in this model, {1 - loaded / wanted:.1%} of "
            "whose own start from scratch. The table says which; weights of a model of the same family carry more."
        )
