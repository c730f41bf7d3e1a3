"""Upstream's wheel: found on disk or downloaded by pip, verified, and unpacked with care."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from maintain.pin import OURS, PACKAGE, Pin, UpstreamError
from maintain.tree import sha256

WHEEL_VARIABLE = "ULTRALYTICS_WHEEL"


def find_wheel(root: Path, pin: Pin) -> Path | None:
    """Find the release's wheel on disk, where the user or an earlier run has put it."""
    named = os.environ.get(WHEEL_VARIABLE)
    if named:
        wheel = Path(named).expanduser()
        wheel = wheel / pin.wheel if wheel.is_dir() else wheel
        if not wheel.is_file():
            raise UpstreamError(f"{WHEEL_VARIABLE}={named}: there is no {wheel.name}; unset it to download the wheel")
        return wheel
    wheel = root / "wheels" / pin.wheel
    return wheel if wheel.is_file() else None


def fetch(root: Path, pin: Pin, folder: Path) -> Path:
    """Get the release's wheel, by pip where it is not on disk, and verify it.

    Raises:
        UpstreamError: Where pip cannot get it, or its sha256 is not the pinned one.
    """
    wheel = find_wheel(root, pin)
    kept = root / ".upstream" / "wheels" / pin.wheel
    if wheel is None and kept.is_file() and sha256(kept) == pin.wheel_sha256:
        return kept
    if wheel is None:
        wheel = download(pin, folder)
    digest = sha256(wheel)
    if digest != pin.wheel_sha256:
        raise UpstreamError(
            f"{wheel} has sha256 {digest}, pinned is {pin.wheel_sha256} (patches/upstream.toml): not the file that "
            "was published, do not use it"
        )
    return wheel


def download(pin: Pin, folder: Path) -> Path:
    """Download the release's wheel with pip, whose index, proxy and certificate settings hold."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--retries=2", f"--dest={folder}", f"{PACKAGE}=={pin.release}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheel = folder / pin.wheel
    if done.returncode or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        reason = lines[0].removeprefix("ERROR: ") if lines else f"pip exited with {done.returncode}"
        raise UpstreamError(
            f"could not download {PACKAGE}=={pin.release}: {reason}; connect to the network, or set {WHEEL_VARIABLE} "
            f"to a local {pin.wheel}"
        )
    return wheel


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack upstream's package, and nothing that would land elsewhere."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                path = PurePosixPath(entry.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
                    raise UpstreamError(f"{wheel}: unsafe path {entry.filename!r} in the archive, do not use it")
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise UpstreamError(f"{wheel}: symbolic link {entry.filename!r} in the archive, do not use it")
                if path.parts[:1] == (PACKAGE,) and not path.as_posix().startswith(OURS):
                    archive.extract(entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
        raise UpstreamError(f"{wheel} is no sound archive: {e}") from None


def keep_wheel(root: Path, wheel: Path, pin: Pin) -> None:
    """Keep the wheel for the next set-up, which then needs no network."""
    kept = root / ".upstream" / "wheels" / pin.wheel
    if wheel.resolve() != kept.resolve():
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(wheel, kept.with_suffix(".part"))
        os.replace(kept.with_suffix(".part"), kept)
