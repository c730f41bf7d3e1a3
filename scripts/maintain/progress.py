"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

from maintain.pin import UpstreamError


class Progress:
    """tqdm's bar with the name of what was done last beside it."""

    def __init__(self, title: str, total: int | None = None):
        try:
            from tqdm import tqdm  # not there when the project is installed, which shows no bar
        except ModuleNotFoundError:
            raise UpstreamError("tqdm is not installed; `uv run python scripts/upstream.py …` brings it") from None
        self.bar = tqdm(desc=title, total=total, disable=None, leave=False, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, what: str) -> None:
        """Count one more thing done."""
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.update()
