"""Write changed rows into the text of a model YAML, of which all else stays as it is: comments, order, flow style."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ultralytics.fork.building.row_graph import SECTIONS, GraphRow, RowGraph

# A layer's index in the comment behind its row stands alone, or before "-P3/8"
INDEX = r"(?<![\w./-]){}(?![\w./]|-(?!P\d))"


class ModelText:
    """The text of a model YAML, and where its rows stand.

    Args:
        text: The text.
        graph: The rows in it, before they are changed.
    """

    def __init__(self, text: str, graph: RowGraph):
        self.text = text
        nodes = {key.value: value for key, value in yaml.compose(text, yaml.SafeLoader).value}
        places = [node for section in SECTIONS for node in nodes[section].value]
        self.places: dict[GraphRow, Any] = dict(zip(graph.rows, places, strict=True))
        self.columns = {section: self.usual_column(nodes[section].value) for section in SECTIONS}

    def usual_column(self, nodes: list) -> int:
        """Give the column in which the comments of a section are aligned, or 0."""
        columns = [column for node in nodes if (column := self.comment_column(node))]
        usual = max(columns, key=columns.count, default=0)
        return usual if columns.count(usual) > len(columns) / 2 else 0

    def comment_column(self, node: Any) -> int:
        """Give the column of the comment behind a row, 0 if there is none."""
        behind = self.text[node.end_mark.index : self.lines_of(node)[1]]
        spaces = len(behind) - len(behind.lstrip(" "))
        return node.end_mark.column + spaces if behind.lstrip(" ").startswith("#") else 0

    def rewrite(self, graph: RowGraph) -> str:
        """Give the text with the rows that the graph has now."""
        rows = graph.list_rows()
        new_rows = dict(zip(graph.rows, [*rows["backbone"], *rows["head"]], strict=True))
        edits: list[tuple[int, int, str]] = []
        for row, node in self.places.items():
            if row not in new_rows:
                edits.append((*self.lines_of(node), ""))
                continue
            edits += self.edit_row(row, node, new_rows[row])
        for i, row in enumerate(graph.rows):
            if row not in self.places:
                edits.append(self.add_row(graph, i, new_rows[row]))
        text = self.text
        for start, end, replacement in sorted(edits, key=lambda edit: edit[0], reverse=True):
            text = text[:start] + replacement + text[end:]
        is_shorter = any(row not in new_rows for row in self.places)
        return re.sub(r"\n{3,}", "\n\n", text) if is_shorter else text  # blank lines around rows that are gone

    def lines_of(self, node: Any) -> tuple[int, int]:
        """Give where the lines of a row begin and end."""
        start = self.text.rfind("\n", 0, node.start_mark.index) + 1
        end = self.text.find("\n", node.end_mark.index)
        return start, end + 1 if end >= 0 else len(self.text)

    def edit_row(self, row: GraphRow, node: Any, values: list) -> list[tuple[int, int, str]]:
        """Give the changes within the line of a row that stays, and in the comment behind it."""
        old = yaml.safe_load(self.text[node.start_mark.index : node.end_mark.index])
        spans = [(part.start_mark.index, part.end_mark.index) for part in node.value]
        edits = [(*span, format_value(new)) for span, was, new in zip(spans, old, values) if was != new]
        begin, end = node.end_mark.index, self.lines_of(node)[1]
        comment = self.text[begin:end]
        index = row.index + row.layers - 1
        if row.old != index and "#" in comment and row.layers == 1:
            edits.append((begin, end, re.sub(INDEX.format(row.old), str(index), comment, count=1)))
        column = self.columns[row.section]
        if edits and column and column == self.comment_column(node):
            grown = sum(len(text) - (stop - start) for start, stop, text in edits if start < begin)
            kept = edits.pop()[2] if edits[-1][0] == begin else comment
            edits.append((begin, end, align_comment(column, node.end_mark.column + grown, kept)))
        return edits

    def add_row(self, graph: RowGraph, i: int, values: list) -> tuple[int, int, str]:
        """Give the change that adds a row: behind the row before it in its section, or before the first one."""
        row = graph.rows[i]
        older = [other for other in graph.rows[:i] if other in self.places and other.section == row.section]
        first = next(other for other in self.places if other.section == row.section)
        neighbour = older[-1] if older else first
        start, end = self.lines_of(self.places[neighbour])
        indent = re.match(r"\s*", self.text[start:]).group()
        line = f"{indent}- {format_value(values)}"
        numbers = f"{row.index}" if row.layers == 1 else f"{row.index} to {row.index + row.layers - 1}"
        line += align_comment(self.columns[row.section], len(line), f"# {numbers}\n")
        if older:
            return end, end, line if self.text[end - 1 : end] == "\n" else "\n" + line
        return start, start, line


def align_comment(column: int, width: int, comment: str) -> str:
    """Put a comment into a column, behind a row that is so wide."""
    return " " * max(1, column - width) + comment.lstrip(" ")


class RowDumper(yaml.SafeDumper):
    """Writes True and False as the rows of model files have them."""


RowDumper.add_representer(bool, lambda dumper, x: dumper.represent_scalar("tag:yaml.org,2002:bool", str(x)))


def format_value(value: Any) -> str:
    """Write a value as rows have it, in flow style on one line."""
    text = yaml.dump(value, Dumper=RowDumper, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.strip().removesuffix("...").strip()
