"""A made-up release of a few files: its wheel, its source distribution and a checkout of it."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

from _upstream.pin import queue_sha256
from _upstream.queue.tree import manifest, write_stamp

RELEASE = "9.9.9"
PACKAGE = {"ultralytics/__init__.py": "answer = 42\nflavour = 'theirs'\n", "ultralytics/cfg/default.yaml": "a: 1\n"}
PYPROJECT = '[tool.pytest.ini_options]\naddopts = "--no-such-option"\n'


def make_wheel(file: Path, package: dict[str, str] = PACKAGE) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in package.items():
            archive.writestr(path, text)
        archive.writestr(f"ultralytics-{RELEASE}.dist-info/METADATA", f"Name: ultralytics\nVersion: {RELEASE}\n")
    return file


def make_sdist(file: Path, tests: dict[str, str], package: dict[str, str] = PACKAGE, folder: str | None = None) -> Path:
    folder = f"ultralytics-{RELEASE}" if folder is None else folder
    with tarfile.open(file, "w:gz") as archive:
        for path, text in {**package, "pyproject.toml": PYPROJECT, "setup.py": "", **tests}.items():
            member = tarfile.TarInfo(f"{folder}/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return file


def make_checkout(root: Path, tests: dict[str, str], ours: dict[str, str]) -> Path:
    """Make a checkout of a made-up release: `ours` is what is laid down in it, over the release's files."""
    for name in ("wheels", "patches", ".upstream"):
        (root / name).mkdir(parents=True)
    wheel = make_wheel(root / "wheels" / f"ultralytics-{RELEASE}-py3-none-any.whl")
    make_sdist(root / "wheels" / f"ultralytics-{RELEASE}.tar.gz", tests)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (root / "patches" / "upstream.toml").write_text(
        f'release = "{RELEASE}"\nwheel-sha256 = "{digest}"\ntree-sha256 = "{"0" * 64}"\n'
    )
    for path, text in {**PACKAGE, **ours}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    write_stamp(root, {"release": RELEASE, "queue": queue_sha256(root), "files": manifest(root)})
    return root
