"""Errors whose line says all, so that on the command line no traceback follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ultralytics.utils import LOGGER

__all__ = ()


class Refused(ValueError):
    """Something that the user gave is not taken, and the line says what is."""

    plain = True


def plain(error: Exception) -> Exception:
    """Mark an error whose line says all, so that no traceback need follow it on the command line."""
    error.plain = True
    return error


def called(method: Callable) -> Callable:
    """Wrap what the command `yolo` calls: what has been said in one line is not followed by a traceback."""

    def call(**kwargs: Any) -> Any:
        try:
            return method(**kwargs)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Exception as e:
            if not hasattr(e, "plain"):
                raise
            LOGGER.error(getattr(e, "strerror", None) or e)
            raise SystemExit(1) from None

    return call
