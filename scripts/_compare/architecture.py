"""List the rows of models, and mark how they differ from the first model's."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import load_checkpoint

Row = dict[str, Any]


def list_rows(file: Path) -> list[Row]:
    """List a checkpoint's rows: index, from, repeats, parameters, module, and the arguments in its YAML."""
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


def mark_differences(first: list[Row], other: list[Row]) -> list[Row]:
    """Mark rows that only the other model has as "+", rows that only the first model has as "−", and common rows as "".

    Two rows are the same if their module, repeats and arguments are the same and their inputs come from the same rows.
    A row that an inserted row only shifts is not a change.
    """

    def content(row: Row) -> str:
        return repr([row["module"], row["n"], row["arguments"]])

    matcher = SequenceMatcher(None, [*map(content, first)], [*map(content, other)], autojunk=False)
    same = {
        other[b + i]["index"]: first[a + i]["index"]
        for a, b, size in matcher.get_matching_blocks()
        for i in range(size)
    }
    found = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            found += [{"mark": "−", **row} for row in first[a:b]] + [{"mark": "+", **row} for row in other[c:d]]
            continue
        for old, new in zip(first[a:b], other[c:d]):
            rewired = any(s in same and same[s] != t for s, t in zip(input_rows(new), input_rows(old)))
            found += [{"mark": "−", **old}, {"mark": "+", **new}] if rewired else [{"mark": "", **new}]
    return found


def input_rows(row: Row) -> list[int]:
    """Return the rows whose maps a row takes; for -1, the row itself stands for the row before it."""
    given = row["from"] if isinstance(row["from"], list) else [row["from"]]
    return [row["index"] if f == -1 else f % row["index"] if f < 0 else f for f in given]
