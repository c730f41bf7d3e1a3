"""What a stranger's data set holds: a program to run, or a pickle; and whether it was run."""

import json
from pathlib import Path

import pytest

from ultralytics.data import utils
from ultralytics.fork.data.download_consent import CONSENT
from ultralytics.utils import LOGGER


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that is there if something was run."""
    monkeypatch.delenv(CONSENT, raising=False)
    monkeypatch.setattr(utils, "check_font", lambda *_: None)  # would download a font
    return tmp_path / "was run"


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The warnings."""
    lines = []
    monkeypatch.setattr(LOGGER, "warning", lines.append)
    return lines


def lies_elsewhere(root: Path, download: str, name: str = "data.yaml") -> Path:
    """Write a data file whose images are missing, and what it would do then."""
    file = root / name
    path = json.dumps(str(root / "nowhere"))
    file.write_text(f"path: {path}\ntrain: a\nval: b\nnames: [x]\ndownload: {json.dumps(download)}\n")
    return file


class Bomb:
    """A pickle that makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")
