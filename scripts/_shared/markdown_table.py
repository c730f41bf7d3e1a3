"""Format rows as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence


def format_markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---") -> str:
    """Format cells as a Markdown table with columns of even width.

    Args:
        titles: The title of each column.
        rows: The cells of each row.
        align: The rule of all columns but the first: "---", or "---:" for figures at the right.
    """
    lines = [titles, ["---", *[align] * (len(titles) - 1)]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in lines)
