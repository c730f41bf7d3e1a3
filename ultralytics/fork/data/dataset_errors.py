"""Say in one line what is wrong with a data set, for errors that upstream raises in several lines or wraps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ultralytics.fork.errors import Refused, is_plain, mark_as_plain, quote

# What upstream raises for a data set that it cannot use
DATASET_ERRORS = OSError, ValueError, SyntaxError, TypeError, KeyError, AssertionError, RuntimeError
ONE_LINE_TYPES = FileNotFoundError, SyntaxError, TypeError, AssertionError, RuntimeError  # that take a message alone


@contextmanager
def explain_dataset_errors(source: Any) -> Iterator[None]:
    """Raise in one line what is wrong with a data set.

    Args:
        source: What is read: a data set, or what the user gave as one.
    """
    try:
        yield
    except DATASET_ERRORS as e:
        raise make_one_line_error(e, source) from e


def make_one_line_error(error: Exception, source: Any) -> Exception:
    """Make the error to raise for one of upstream's: of the same type, where that takes a message alone.

    Args:
        error: Upstream's error.
        source: What was read: a data set, or what the user gave as one.
    """
    if is_plain(error):
        return error
    first = error.__cause__ if isinstance(error.__cause__, DATASET_ERRORS) else error
    text = str(first.args[0] if isinstance(first, KeyError) and first.args else first)
    line = quote(text.partition(" Supported formats are:")[0])  # a list of thirty file endings
    if isinstance(first, UnicodeDecodeError):  # of a list of images that is not text
        line = f"{getattr(source, 'img_path', source)}: {line}"
    data = getattr(source, "data", None)
    name = data.get("yaml_file", "") if isinstance(data, dict) else str(source)
    line = line if name in line else f"{name}: {line}"
    kind = next((kind for kind in ONE_LINE_TYPES if isinstance(error, kind)), Refused)
    return mark_as_plain(kind(line))


@contextmanager
def raise_plain_cause() -> Iterator[None]:
    """Raise a plain error as it was, where upstream wraps each error of a data set into a `RuntimeError`."""
    try:
        yield
    except RuntimeError as e:
        if e.__cause__ is not None and is_plain(e.__cause__):
            raise e.__cause__ from None
        raise
