"""Upstream's source distribution, which holds its tests: find or download it, and compare it with the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from _upstream.fetch.releases import check_file_hash
from _upstream.pin import PACKAGE, Pin, UpstreamError

TESTS = ("tests", "pyproject.toml")  # the tests and pytest's settings


def fetch_sdist(root: Path, pin: Pin, wheel: Path, folder: Path) -> Path:
    """Find the release's source distribution on disk or download it with pip, and keep it for the next run.

    Args:
        root: The checkout.
        pin: The pinned release.
        wheel: Its wheel, verified.
        folder: Where a download goes.

    Raises:
        UpstreamError: If pip cannot download it, or it is not what was published or not of the wheel.
    """
    name = f"{PACKAGE}-{pin.release}.tar.gz"
    kept = root / ".upstream" / "sdists" / name
    found = next((file for file in (root / "wheels" / name, kept) if file.is_file()), None)
    sdist = check_file_hash(found or download_sdist(pin, folder))
    differing = list_differing_files(sdist, wheel)
    if differing:
        raise UpstreamError(
            f"{sdist}: {', '.join(differing[:3])}{' and more' * (len(differing) > 3)} not as in {wheel.name}, so its "
            "tests are another release's; remove the file and run this again"
        )
    if sdist.parent == folder:
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(sdist, kept.with_suffix(".part"))
        os.replace(kept.with_suffix(".part"), kept)
    return sdist


def download_sdist(pin: Pin, folder: Path) -> Path:
    """Download the source distribution with pip and the user's index, proxy and certificate settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [f"--no-binary={PACKAGE}", "--retries=2", f"--dest={folder}", f"{PACKAGE}=={pin.release}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    sdist = folder / f"{PACKAGE}-{pin.release}.tar.gz"
    if done.returncode or not sdist.is_file():
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named" in line]
        reason = lines[0].strip().removeprefix("ERROR: ") if lines else f"pip exited with {done.returncode}"
        raise UpstreamError(
            f"could not download {sdist.name}: {reason}; connect to the network, or put the file into wheels/"
        )
    return sdist


def read_members(sdist: Path) -> dict[str, bytes]:
    """Read the regular files of a source distribution, by their path inside its one folder."""
    try:
        with tarfile.open(sdist, "r:gz") as archive:
            files = {}
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                    raise UpstreamError(f"{sdist}: unsafe path {member.name!r} in the archive, do not use it")
                if member.isfile():
                    files["/".join(path.parts[1:])] = archive.extractfile(member).read()
            return files
    except (tarfile.TarError, zlib.error, EOFError) as e:
        raise UpstreamError(f"{sdist} is a damaged archive: {e}; remove the file and run this again") from None


def list_differing_files(sdist: Path, wheel: Path) -> list[str]:
    """List the files of the package that differ between a source distribution and a wheel, or are in one only."""
    with zipfile.ZipFile(wheel) as archive:
        ours = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    theirs = read_members(sdist)
    paths = {path for path in [*ours, *theirs] if path.startswith(f"{PACKAGE}/")}
    return sorted(path for path in paths if ours.get(path) != theirs.get(path))


def unpack_tests(sdist: Path, folder: Path) -> None:
    """Write the tests of a source distribution into a folder."""
    for path, content in read_members(sdist).items():
        if path.partition("/")[0] in TESTS:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
