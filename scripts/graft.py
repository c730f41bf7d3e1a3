"""Insert, wrap, replace and remove rows of a model YAML, or change its backbone; all indices follow.

    uv run scripts/graft.py rtdetr-l.yaml --before 9 FocusedLinearAttention 1024 --out my.yaml
    uv run scripts/graft.py rtdetr-l.yaml --replace HGBlock=HGBlock_FLA --rows 5-7 --out my.yaml
    uv run scripts/graft.py rtdetr-l.yaml --wrap 7 CBAM --out my.yaml
    uv run scripts/graft.py rtdetr-l.yaml --remove 6 --out my.yaml
    uv run scripts/graft.py rtdetr-l.yaml --backbone Timm convnextv2_nano --out my.yaml

Layers are named by their indices, as the comments behind the rows have them. `--before N` puts a row before layer N,
which reads it; all others read what they have read. `--wrap N` puts a row behind layer N, and all that read N read the
row. Several changes are made in the order given, each with the indices of the file. Before the file is written, the
model is built, and the share of the tensors of the old one is told that a checkpoint of it carries into the new one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from _graft.model_text import ModelText
from _graft.preview import build_model, describe_changes, share_of_tensors
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.building.change_rows import list_layer_strides
from ultralytics.fork.building.model_yaml import check_sections
from ultralytics.fork.building.row_graph import RowGraph
from ultralytics.fork.errors import Refused, is_plain
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils.checks import check_yaml

CHANGES = "before", "wrap", "replace", "remove", "backbone"


class Change(argparse.Action):
    """Collects the changes in the order in which they are given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Add a change with its values."""
        namespace.changes = [*(namespace.changes or []), (self.const, values)]


def read_layers(text: str) -> list[int]:
    """Read layer indices such as 5-7 or 3,5-7.

    Raises:
        Refused: For what is not such a list.
    """
    try:
        ranges = [[int(x) for x in part.split("-")] for part in text.split(",")]
        return [layer for first, *last in ranges for layer in range(first, (last or [first])[0] + 1)]
    except ValueError:
        raise Refused(f"{text!r}: expected layer indices such as 5-7 or 3,5-7") from None


def apply(graph: RowGraph, kind: str, values: list[str], args: argparse.Namespace, source: Path) -> None:
    """Make one change of the rows.

    Raises:
        Refused: If it cannot be made.
    """
    if kind in ("before", "wrap"):
        if len(values) < 2:
            raise Refused(f"--{kind} {' '.join(values)}: expected a layer and a module: --{kind} 9 CBAM")
        layer, module, *others = values
        change = graph.insert if kind == "before" else graph.wrap
        change(read_layers(layer)[0], module, read_arguments(others), args.repeats)
    elif kind == "replace":
        old, equals, new = values[0].partition("=")
        if not (old and equals and new):
            raise Refused(f"--replace {values[0]}: expected --replace OLD=NEW")
        layers = read_layers(args.rows) if args.rows else None
        graph.replace(old, new, layers, read_arguments(args.args) if args.args is not None else None)
    elif kind == "remove":
        graph.remove(read_layers(values[0]))
    else:
        strides = list_layer_strides(build_model(source))
        graph.swap_backbone(values[0], read_arguments(values[1:]), strides)


def read_arguments(texts: list[str]) -> list:
    """Read arguments of a row as YAML does."""
    return [yaml.safe_load(text) for text in texts]


def graft(args: argparse.Namespace) -> str:
    """Change a model file; return what to print.

    Raises:
        Refused: For a change that cannot be made; nothing is written.
    """
    source = Path(check_yaml(args.model))
    if args.out.exists():
        raise Refused(f"{args.out} exists; name another --out")
    if args.out.suffix not in (".yaml", ".yml"):
        raise Refused(f"--out {args.out}: expected a file that ends in .yaml")
    settings = yaml_model_load(source)
    check_sections(settings)
    before, after = RowGraph(settings), RowGraph(settings)
    writer = ModelText(source.read_text(encoding="utf-8"), after)
    for kind, values in args.changes:
        apply(after, kind, values, args, source)
    model = build_model(source)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, args.out.name)
        file.write_text(writer.rewrite(after), encoding="utf-8")
        changed = build_model(file)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, file.read_bytes())
    arrived, wanted = share_of_tensors(model, changed)
    parameters = [sum(p.numel() for p in each.parameters()) for each in (model, changed)]
    return (
        f"{describe_changes(before, after)}\n\n{args.out}: {parameters[1]:,} parameters (before: {parameters[0]:,}). "
        f"{arrived} of its {wanted} tensors ({arrived / wanted:.0%}) come from a checkpoint of {source.name}"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file, by path or by bare name")
    change = {"action": Change, "dest": "changes"}
    parser.add_argument("--before", **change, const="before", nargs="+", metavar=("LAYER", "MODULE"), help="put a row")
    parser.add_argument(
        "--wrap", **change, const="wrap", nargs="+", metavar=("LAYER", "MODULE"), help="put a row behind"
    )
    parser.add_argument("--replace", **change, const="replace", nargs=1, metavar="OLD=NEW", help="change the module")
    parser.add_argument("--remove", **change, const="remove", nargs=1, metavar="LAYERS", help="remove rows")
    parser.add_argument(
        "--backbone", **change, const="backbone", nargs="+", metavar="MODULE", help="change the backbone"
    )
    parser.add_argument("--rows", metavar="LAYERS", help="of --replace; all rows of the module by default")
    parser.add_argument("--args", nargs="*", metavar="ARG", help="of --replace; those of the row by default")
    parser.add_argument("--repeats", type=int, default=1, help="of --before and --wrap")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    args = parser.parse_args()
    if not args.changes:
        parser.error(f"expected one of {', '.join(f'--{kind}' for kind in CHANGES)}")
    try:
        print(graft(args))
    except (OSError, ValueError) as e:
        if isinstance(e, OSError) or is_plain(e):
            sys.exit(f"graft.py: {e}")
        raise


if __name__ == "__main__":
    main()
