"""Insert, replace, wrap and remove rows of a model YAML, with every 'from' of the other rows renumbered.

A 'from' is an index, which an inserted row shifts. Here each row knows the rows that it reads, whatever their indices;
numbers are written when all is done. A number that counts backwards stays one that does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ultralytics.fork.building.model_yaml import is_backbone
from ultralytics.fork.errors import Refused
from ultralytics.nn.AddModules.registry import BACKBONE_LAYERS, NAMES

SECTIONS = "backbone", "head"


@dataclass(eq=False)
class Source:
    """What a row reads: another row's output, or one of its maps; None is the image."""

    row: GraphRow | None
    map: int = 0
    is_relative: bool = True  # written as a number that counts backwards


@dataclass(eq=False)
class GraphRow:
    """A row, with what it reads in place of 'from'."""

    section: str
    repeats: Any
    module: str
    args: list
    sources: list[Source] = field(default_factory=list)
    reads_list: bool = False  # 'from' is a list
    old: int | None = None  # index of its (last) layer before, None for a new row
    index: int = 0  # index of its first layer

    @property
    def layers(self) -> int:
        """How many layer indices it takes."""
        return BACKBONE_LAYERS if is_backbone(NAMES.get(self.module)) else 1


class RowGraph:
    """The rows of a model YAML.

    Args:
        settings: The model YAML; it is not changed.
    """

    def __init__(self, settings: dict):
        self.settings = copy.deepcopy(settings)
        self.rows: list[GraphRow] = []
        holder: list[Source] = []  # of each layer index
        for section in SECTIONS:
            for f, repeats, module, args in self.settings[section]:
                row = GraphRow(section, repeats, module, copy.deepcopy(list(args)), reads_list=isinstance(f, list))
                for x in f if isinstance(f, list) else [f]:
                    i = x if x >= 0 else len(holder) + x
                    found = holder[i] if holder else Source(None)
                    row.sources.append(Source(found.row, found.map, x < 0))
                holder += [Source(row, number) for number in range(row.layers)]
                row.old = len(holder) - 1
                self.rows.append(row)

    def find(self, layer: int) -> GraphRow:
        """Find the row of a layer index.

        Raises:
            Refused: If there is none, or a multi-output backbone has the index.
        """
        for row in self.rows:
            if row.old == layer:
                return row
        last = max(row.old for row in self.rows if row.old is not None)
        raise Refused(f"there is no layer {layer} of a row of its own; the layers are 0 to {last}")

    def insert(self, before: int, module: str, args: Sequence = (), repeats: int = 1) -> None:
        """Put a row before a layer, which then reads it, while it reads what the layer has read.

        Raises:
            Refused: If there is no such layer, or it reads several.
        """
        row = self.find(before)
        if row.reads_list:
            raise Refused(f"layer {before}, {row.module}, reads several layers; wrap one of them instead")
        new = GraphRow(row.section, repeats, module, list(args), row.sources)
        row.sources = [Source(new, new.layers - 1)]
        self.rows.insert(self.rows.index(row), new)

    def wrap(self, layer: int, module: str, args: Sequence = (), repeats: int = 1) -> None:
        """Put a row behind a layer, and let all that read the layer read the row.

        Raises:
            Refused: If there is no such layer, or nothing reads it.
        """
        row = self.find(layer)
        readers = [source for other in self.rows for source in other.sources if source.row is row]
        if not readers:
            raise Refused(f"nothing reads layer {layer}, {row.module}, which is the last; put a row before it instead")
        new = GraphRow(row.section, repeats, module, list(args), [Source(row, row.layers - 1)])
        for source in readers:
            source.row, source.map = new, new.layers - 1
        self.rows.insert(self.rows.index(row) + 1, new)

    def replace(self, old: str, new: str, layers: Iterable[int] | None = None, args: Sequence | None = None) -> None:
        """Put another module in place of one.

        Args:
            old: The module's name in the rows.
            new: The name that takes its place.
            layers: Of which layers; all of the name by default.
            args: The arguments; those of the row by default.

        Raises:
            Refused: If one of the layers is of another module, or none is of this one.
        """
        rows = [self.find(layer) for layer in layers] if layers is not None else self.rows
        chosen = [row for row in rows if row.module == old]
        other = next((row for row in rows if row.module != old), None) if layers is not None else None
        if other:
            raise Refused(f"layer {other.old} is {other.module}, not {old}")
        if not chosen:
            raise Refused(f"no row is of {old}; there are {', '.join(sorted({row.module for row in self.rows}))}")
        for row in chosen:
            row.module = new
            row.args = row.args if args is None else list(args)

    def remove(self, layers: Iterable[int]) -> None:
        """Remove rows; what read one of them reads what it has read.

        Raises:
            Refused: If there is no such layer, it reads several, or it is the only one of its section.
        """
        for layer in layers:
            row = self.find(layer)
            if row.reads_list:
                raise Refused(f"layer {layer}, {row.module}, reads several layers, of which none can take its place")
            if sum(other.section == row.section for other in self.rows) == 1:
                raise Refused(f"layer {layer}, {row.module}, is the only row of `{row.section}:`")
            (above,) = row.sources
            for source in (source for other in self.rows for source in other.sources if source.row is row):
                source.row, source.map = above.row, above.map
            self.rows.remove(row)

    def swap_backbone(self, module: str, args: Sequence, strides: dict[int, float]) -> None:
        """Put a multi-output backbone in place of all rows of the backbone.

        Args:
            module: Its name in the rows.
            args: Its arguments.
            strides: Of the layers of the backbone that is there, by layer index.

        Raises:
            Refused: If the module is not such a backbone, or the head reads a layer whose stride it does not have.
        """
        if not is_backbone(NAMES.get(module)):
            known = ", ".join(sorted(name for name, cls in NAMES.items() if is_backbone(cls)))
            raise Refused(f"{module} is not a multi-output backbone; there are {known}")
        new = GraphRow("backbone", 1, module, list(args), [Source(None)])
        for source in (source for row in self.rows if row.section == "head" for source in row.sources):
            if source.row is None or source.row.section == "head":
                continue
            layer = source.row.old - source.row.layers + 1 + source.map
            stride = strides.get(layer, 0)
            number = round(math.log2(stride)) - 1 if stride else -1
            if not 0 <= number < BACKBONE_LAYERS or 2 ** (number + 1) != stride:
                raise Refused(f"the head reads layer {layer}, whose stride is {stride:g}; {module} has no such map")
            source.row, source.map = new, number
        self.rows = [new, *(row for row in self.rows if row.section == "head")]

    def list_rows(self) -> dict[str, list[list]]:
        """Number the layers, and list the rows of each section as a model YAML has them.

        Raises:
            Refused: If a row reads one that comes later.
        """
        index = 0
        for row in self.rows:
            row.index = index
            index += row.layers
        found: dict[str, list[list]] = {section: [] for section in SECTIONS}
        for row in self.rows:
            numbers = [self.number(source, row) for source in row.sources]
            f = numbers if row.reads_list else numbers[0]
            found[row.section].append([f, row.repeats, row.module, row.args])
        return found

    def number(self, source: Source, reader: GraphRow) -> int:
        """Give the number by which a row names what it reads."""
        if source.row is None:
            return -1
        index = source.row.index + source.map
        if source.is_relative or (index == reader.index - 1 and reader.old is None):
            return index - reader.index
        return index

    def make_settings(self) -> dict:
        """Make the model YAML of the rows."""
        return {**self.settings, **copy.deepcopy(self.list_rows())}
