"""Lay out what models are made of, row by row, and mark what differs from the first."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import load_checkpoint

Row = dict[str, Any]


def rows(file: Path) -> list[Row]:
    """List a checkpoint's rows: index, from, repeats, parameters, module, and arguments as its YAML has them."""
    model = load_checkpoint(file)[0]
    written = model.yaml["backbone"] + model.yaml["head"]
    return [
        {
            "index": m.i,
            "from": m.f,
            "n": repeats,
            "parameters": sum(p.numel() for p in m.parameters()),
            "module": m.type.rpartition(".")[2],
            "arguments": arguments,
        }
        for m, (_, repeats, _, arguments) in zip(model.model, written)
    ]


def marked(first: list[Row], other: list[Row]) -> list[Row]:
    """Mark rows as "+" where only the other model has them so, as "−" where only the first has, as "" where both have.

    Rows are the same whose module, repeats and arguments are: what an inserted row shifts is not a change.
    """

    def content(row: Row) -> str:
        return repr([row["module"], row["n"], row["arguments"]])

    found = []
    matcher = SequenceMatcher(None, [*map(content, first)], [*map(content, other)], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found += [{"mark": "", **row} for row in other[c:d]]
        else:
            found += [{"mark": "−", **row} for row in first[a:b]] + [{"mark": "+", **row} for row in other[c:d]]
    return found
