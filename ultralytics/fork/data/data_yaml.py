"""Check a data YAML before upstream uses it: upstream fails on some values late, or takes all memory for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ultralytics.fork.class_limit import MAX_CLASSES
from ultralytics.fork.data.annotations import fill_class_names
from ultralytics.fork.errors import Refused, quote

MAX_CHANNELS = 1024


def check_data_yaml(data: dict) -> None:
    """Check the content of a data YAML, and take the names of its classes from its annotations if it has none.

    Args:
        data: What upstream has read, with the file's name as `yaml_file`.

    Raises:
        Refused: With the file, the key and what is expected.
    """
    file = data.get("yaml_file")

    def expect(key: str, is_right: bool, expected: str) -> None:
        if not is_right:
            raise Refused(f"{file}, `{key}:` expected {expected}, not {quote(data[key], 100)}")

    if not data.keys() - {"yaml_file"}:
        raise Refused(f"{file} is empty: a data file has train, val and names")
    check_paths(data, expect)
    fill_class_names(data)
    check_classes(data, expect)
    if data.get("channels") is not None:
        is_right = is_integer(data["channels"]) and 0 < data["channels"] <= MAX_CHANNELS
        expect("channels", is_right, f"a number from 1 to {MAX_CHANNELS}")
    if data.get("bits") is not None:
        is_right = is_integer(data["bits"]) and 8 <= data["bits"] <= 16 and data.get("channels", 3) in (None, 1, 3)
        expect("bits", is_right, "a number from 8 to 16, for images of 1 or 3 channels")
    if data.get("kpt_shape") is not None:
        shape = data["kpt_shape"]
        is_right = isinstance(shape, list) and len(shape) == 2 and all(is_integer(x) and 0 <= x < 10000 for x in shape)
        expect("kpt_shape", is_right, "[points, 2 or 3]")


def check_paths(data: dict, expect: Callable[[str, bool, str], None]) -> None:
    """Check the paths of a data YAML."""
    for key in ("train", "val", "test"):
        value = data.get(key)
        if value is not None:
            paths = value if isinstance(value, list) else [value]
            expect(key, all(isinstance(p, str) and "\0" not in p for p in paths), "a path or a list of paths")
            expect(key, key == "test" or any(paths), "a path or a list of paths")
    for key in ("path", "download"):
        expect(key, data.get(key) is None or isinstance(data[key], str), "text")


def check_classes(data: dict, expect: Callable[[str, bool, str], None]) -> None:
    """Check the class names of a data YAML and their number."""
    names = data.get("names")
    if names is not None:
        is_right = isinstance(names, (list, dict)) and len(names) > 0
        expect("names", is_right, "a list or a mapping of one class or more")
        keys = names if isinstance(names, dict) else range(len(names))
        numbers = sorted(int(k) for k in keys if is_integer(k) or (isinstance(k, str) and k.isdecimal()))
        is_right = numbers == list(range(len(names)))
        expect("names", is_right, f"the numbers from 0 to {len(names) - 1}, each once, as keys")
        expect("names", len(names) <= MAX_CLASSES, f"{MAX_CLASSES:,} classes at most")
    if isinstance(data.get("nc"), (int, float)):
        is_right = data["nc"] is not True and 0 < data["nc"] <= MAX_CLASSES
        expect("nc", is_right, f"a number of classes from 1 to {MAX_CLASSES:,}")


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, and not True or False."""
    return isinstance(value, int) and not isinstance(value, bool)
