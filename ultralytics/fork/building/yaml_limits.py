"""Limits for YAML files of strangers: a few lines of aliases must not become a billion items.

An alias (`*a`) stands for all of what its anchor (`&a`) names, and that may hold aliases: twenty lines double twenty
times. `LimitedLoader` counts what a file comes to before anything of it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ultralytics.fork.errors import Refused

MAX_ITEMS = 1_000_000  # of a file, with all aliases written out
MAX_CHARACTERS = 8_000_000
LONG_NUMBER = re.compile(r"\d[\w:]{15,}")  # beyond 2 ** 53, of any base
MAX_LONG_KEYS = 1000  # numbers as keys can all have the same hash; finding one then takes as long as there are others
LONG_SEXAGESIMAL = re.compile(r"\d(:[0-5]?\d){20}")  # a number to the base of 60, whose digits take quadratic time


class LimitedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which counts items, those of each alias again, and long numbers as keys."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.items = self.long_keys = 0
        self.sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose a node, and count it with its children, or what its alias stands for."""
        is_alias, before = self.check_event(yaml.AliasEvent), self.items
        node = super().compose_node(parent, index)
        if is_alias and node not in self.sizes:
            raise Refused("an alias stands within what it names")
        self.items += self.sizes[node] if is_alias else 1
        self.sizes[node] = self.items - before
        if self.items > MAX_ITEMS:
            raise Refused(f"it comes to more than {MAX_ITEMS:,} items with its aliases written out; write them plainly")
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping, and count its keys that are long numbers."""
        node = super().compose_mapping_node(anchor)
        self.long_keys += sum(key.tag.endswith(":int") and len(key.value) > 15 for key, _ in node.value)
        if self.long_keys > MAX_LONG_KEYS:
            raise Refused(f"it has more than {MAX_LONG_KEYS} numbers of many digits as keys, which are not read")
        return node


def load_within_limits(load: Callable, file: str | Path = "data.yaml", *args: Any, **kwargs: Any) -> dict:
    """Call upstream's `YAML.load` for a file within the limits.

    Raises:
        Refused: For a file that is not YAML, or beyond a limit, in one line that names it.
    """
    try:
        check_limits(Path(file))
        return load(file, *args, **kwargs)
    except RecursionError:
        raise Refused(f"{file} has lists in lists in lists, too deep to be read") from None
    except ValueError as e:  # upstream's are of two lines
        raise Refused(" ".join(str(e).split()) if str(file) in str(e) else f"{file}: {e}") from e


def check_limits(file: Path) -> None:
    """Raise `Refused` for a file beyond a limit; what is not YAML is left to upstream, which says what is wrong."""
    text = file.read_text(encoding="utf-8", errors="ignore") if file.is_file() else ""
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"it has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    if LONG_SEXAGESIMAL.search(text):
        raise Refused("it has numbers with twenty colons and more, which are not read")
    if "&" not in text and sum(1 for _ in LONG_NUMBER.finditer(text)) <= MAX_LONG_KEYS:
        return  # nothing of it can grow
    try:
        loader = LimitedLoader(text)
        loader.get_single_node()
        loader.dispose()
    except yaml.YAMLError:  # upstream tries it with other characters
        return
