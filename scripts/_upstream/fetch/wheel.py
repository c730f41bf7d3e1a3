"""Upstream's wheel: find or download it, verify it, and unpack it without writing outside of the folder."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from _upstream.fetch.releases import check_file_hash, check_release
from _upstream.pin import OURS, PACKAGE, Pin, UpstreamError, hash_file

WHEEL_VARIABLE = "ULTRALYTICS_WHEEL"


def find_wheel(root: Path, release: str, pinned: bool) -> Path | None:
    """Find a release's wheel on disk, at the place where the user put it."""
    name, named = wheel_name(release), os.environ.get(WHEEL_VARIABLE)
    if named:
        wheel = Path(named).expanduser()
        wheel = wheel / name if wheel.is_dir() else wheel
        if wheel.is_file() and (pinned or wheel.name == name):
            return wheel
        if pinned:
            raise UpstreamError(f"{WHEEL_VARIABLE}={named}: there is no {wheel.name}; unset it to download the wheel")
    wheel = root / "wheels" / name
    return wheel if wheel.is_file() else None


def wheel_name(release: str) -> str:
    """Return the file name of a release's wheel."""
    return f"{PACKAGE}-{release}-py3-none-any.whl"


def fetch_wheel(root: Path, pin: Pin, folder: Path) -> Path:
    """Find the pinned release's wheel on disk or download it with pip, and verify it.

    Raises:
        UpstreamError: If pip cannot download it, or its sha256 is not the pinned one.
    """
    wheel = find_wheel(root, pin.release, pinned=True)
    kept = root / ".upstream" / "wheels" / pin.wheel
    if wheel is None and kept.is_file() and hash_file(kept) == pin.wheel_sha256:
        return kept
    if wheel is None:
        wheel = download_wheel(pin.release, folder)
    digest = hash_file(wheel)
    if digest != pin.wheel_sha256:
        raise UpstreamError(
            f"{wheel} has sha256 {digest}, pinned is {pin.wheel_sha256} (patches/upstream.toml): not the file that "
            "was published, do not use it"
        )
    return wheel


def fetch_release(root: Path, release: str | None, folder: Path) -> tuple[str, Path]:
    """Find any release's wheel on disk or download it with pip, and compare it with the pinned or recorded sha256.

    Args:
        root: The checkout.
        release: A version; the newest without it.
        folder: Where a download goes.

    Returns:
        The release and its wheel.

    Raises:
        UpstreamError: If the release must not be used, is not a version, cannot be downloaded, or has another sha256.
    """
    pin = Pin.read(root)
    if release is None:
        wheel = download_wheel(None, folder)
        return check_release(wheel.name.split("-")[1]), check_file_hash(wheel)
    release = check_release(release)
    if release == pin.release:
        return release, fetch_wheel(root, pin, folder)
    return release, check_file_hash(find_wheel(root, release, pinned=False) or download_wheel(release, folder))


def download_wheel(release: str | None, folder: Path) -> Path:
    """Download the wheel of a release, or of the newest one, with pip and the user's settings."""
    wanted = f"{PACKAGE}=={release}" if release else PACKAGE
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as own:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--retries=2", f"--dest={own}", wanted]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        found = list(Path(own).glob(wheel_name(release or "*")))
        if done.returncode or not found:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
            lines = [line for line in lines if "Ignored the following" not in line] or [f"exit {done.returncode}"]
            reason = lines[0].removeprefix("ERROR: ").partition(" (from versions")[0]
            local = f", or set {WHEEL_VARIABLE} to a local {wheel_name(release)}" if release else ""
            raise UpstreamError(f"could not download {wanted}: {reason}; connect to the network{local}")
        if "yanked version" in done.stderr:
            why = re.search(r"Reason for being yanked: (.*)", done.stderr)
            reason = f" ({why[1].strip()})" if why and "none" not in why[1] else ""
            raise UpstreamError(f"{wanted} was yanked by its authors{reason}: it is never used; take another release")
        os.replace(found[0], folder / found[0].name)
    return folder / found[0].name


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack upstream's package; refuse paths that lead outside of the folder, and skip this project's folders."""
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
        raise UpstreamError(f"{wheel} is a damaged archive: {e}") from None


def keep_wheel(root: Path, wheel: Path, name: str | None = None) -> Path:
    """Copy a wheel to the scratch folder, under its name or another, so that the next run needs no network."""
    kept = root / ".upstream" / "wheels" / (name or wheel.name)
    if wheel.resolve() != kept.resolve():
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
        shutil.copyfile(wheel, part)
        os.replace(part, kept)
    return kept
