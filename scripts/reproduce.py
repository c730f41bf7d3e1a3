"""Build the published models and compare each row and total of their summaries with the tutorials' tables.

    python scripts/reproduce.py             the six published models; exit status 1 on any difference
    python scripts/reproduce.py --variants  all model files of cfg_custom/models, as the table in the README

Rows (index, from, n, parameters, module, arguments), parameters and gradients are compared. Layers are shown beside
the published count but not compared: upstream's own blocks hold more modules than in the tutorials' release. Honest
GFLOPs, which count attention, stand beside the published ones, which do not.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from flops import count_gflops

from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import LOGGER

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
ROW = "{0:>3}{1!s:>20}{2:>3}{3:10.0f}  {4:<45}{5:<30}"  # as upstream prints index, from, n, params, module, arguments


class Lines(logging.Handler):
    """Collects what is logged."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def build(name: str) -> tuple[RTDETRDetectionModel, list[str]]:
    """Build a model from its file; give it, and the rows that upstream prints of it."""
    handler, handlers = Lines(), LOGGER.handlers[:]
    LOGGER.handlers[:] = [handler]
    try:
        model = RTDETRDetectionModel(f"{name}.yaml")
    finally:
        LOGGER.handlers[:] = handlers
    return model, [line.rstrip() for line in handler.lines if line[:3].strip().isdigit()]


def totals(model: RTDETRDetectionModel) -> dict[str, int | float]:
    """Count a model: modules, parameters, gradients, and GFLOPs at 640 pixels with attention in them."""
    parameters = list(model.parameters())
    return {
        "layers": len(list(model.modules())),
        "parameters": sum(p.numel() for p in parameters),
        "gradients": sum(p.numel() for p in parameters if p.requires_grad),
        "gflops": count_gflops(model),
    }


def differences(name: str, rows: list[str], counts: dict[str, int | float]) -> list[str]:
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


def main() -> None:
    """Print the table; exit with status 1 if a published row, parameter or gradient count differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", action="store_true", help="all model files, not only the published")
    variants = parser.parse_args().variants
    names = sorted(f.stem for f in (ROOT / "cfg_custom" / "models").glob("*.yaml")) if variants else list(PUBLISHED)

    print("| model | rows | parameters | layers (published) | GFLOPs published | GFLOPs honest |")
    print("|---|---|---|---|---|---|")
    found = {}
    for name in names:
        model, rows = build(name)
        counts = totals(model)
        published = PUBLISHED.get(name)
        found[name] = differences(name, rows, counts) if published else []
        verdict = "–" if not published else "differ" if found[name] else "as published"
        layers = f"{counts['layers']} ({published['layers']})" if published else f"{counts['layers']}"
        print(
            f"| `{name}` | {verdict} | {counts['parameters']:,} | {layers} | "
            f"{published['gflops'] if published else '–'} | {counts['gflops']:.1f} |",
            flush=True,
        )
    for name, lines in found.items():
        for line in lines:
            print(f"{name}: {line}", file=sys.stderr)
    wrong = [name for name in found if found[name]]
    checked = sum(name in PUBLISHED for name in found)
    verdict = f"{', '.join(wrong)} differ" if wrong else "every row, parameter and gradient is as published"
    print(f"{checked} published models: {verdict}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
