"""YAML files of strangers: a few lines of aliases must not become a billion items.

An alias (`*a`) stands for all of what its anchor (`&a`) names, and that may hold aliases: twenty lines double twenty
times. What a file comes to is counted before it is made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ultralytics.nn.AddModules.errors import Refused

__all__ = ()

ITEMS = 1_000_000  # of a file, with all aliases written out
CHARACTERS = 8_000_000
LONG = re.compile(r"\d[\w:]{15,}")  # a number beyond 2 ** 53, of any base
NUMBERS = 1000  # of such as keys: they can all have the same hash, and finding one takes as long as there are others
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def counted(load: Callable) -> Callable:
    """Wrap upstream's `YAML.load`: what is no YAML, or too much, is one line that names the file."""

    @functools.wraps(load)
    def read(file: str | Path = "data.yaml", *args: Any, **kwargs: Any) -> dict:
        try:
            check(Path(file))
            return load(file, *args, **kwargs)
        except RecursionError:
            raise Refused(f"{file} has lists in lists in lists, too deep to be read") from None
        except ValueError as e:  # upstream's are of two lines
            raise Refused(" ".join(str(e).split()) if str(file) in str(e) else f"{file}: {e}") from e

    return read


def check(file: Path) -> None:
    """Refuse a file whose aliases come to more than a file can hold, or to themselves.

    Raises:
        Refused: With the file and what it comes to.
    """
    text = file.read_text(encoding="utf-8", errors="ignore") if file.is_file() else ""
    if len(text) > CHARACTERS:
        raise Refused(f"{file} has {len(text)} characters; at most {CHARACTERS} are read")
    if re.search(r"\d(:[0-5]?\d){20}", text):  # a number to the base of 60, whose digits take quadratic time
        raise Refused(f"{file} has numbers with twenty colons and more, which are not read")
    if "&" not in text and sum(1 for _ in LONG.finditer(text)) <= NUMBERS:
        return
    try:
        node = yaml.compose(text, Loader=LOADER)
    except yaml.YAMLError:  # upstream tries it with other characters, and says what is wrong
        return
    sizes: dict[int, int | None] = {}
    parts: dict[int, yaml.Node] = {}
    total = count(node, sizes, parts) if node is not None else 0
    if total > ITEMS:
        raise Refused(
            f"{file} comes to {min(total, 10**18):.0e} items with its aliases written out; write them plainly"
        )
    if sum(map(long_keys, parts.values())) > NUMBERS:
        raise Refused(f"{file} has more than {NUMBERS} numbers of many digits as keys, which are not read")


def count(node: yaml.Node, sizes: dict[int, int | None], parts: dict[int, yaml.Node]) -> int:
    """Count the items of a node, those of each alias again, and note its parts."""
    if id(node) in sizes:
        if sizes[id(node)] is None:
            raise Refused("an alias stands within what it names")
        return sizes[id(node)]
    sizes[id(node)], parts[id(node)] = None, node
    children = node.value if isinstance(node.value, list) else []
    flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    sizes[id(node)] = 1 + sum(count(part, sizes, parts) for part in flat)
    return sizes[id(node)]


def long_keys(node: yaml.Node) -> int:
    """Count the keys of a mapping that are numbers of many digits."""
    keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return sum(key.tag.endswith(":int") and len(key.value) > 15 for key in keys)
