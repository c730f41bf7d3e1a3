"""The upstream release to which the queue applies, the queue's files, and the error that set-up raises."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    try:
        import tomli as tomllib
    except ModuleNotFoundError:  # outside of the build environment: pip brings its own copy
        from pip._vendor import tomli as tomllib

PACKAGE = "ultralytics"
OURS = (f"{PACKAGE}/nn/AddModules/", f"{PACKAGE}/fork/")  # folders in upstream's package that are this project's
APPLY = "python scripts/upstream.py apply"


class UpstreamError(Exception):
    """An error that stops set-up. Its message is one line that names the file and the remedy."""


@dataclass(frozen=True)
class Pin:
    """The upstream release to which the queue applies, from patches/upstream.toml."""

    release: str
    wheel_sha256: str
    tree_sha256: str

    @classmethod
    def read(cls, root: Path) -> Pin:
        file = root / "patches" / "upstream.toml"
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
            return cls(data["release"], data["wheel-sha256"], data["tree-sha256"])
        except FileNotFoundError:
            raise UpstreamError(f"{file} is missing: this checkout is incomplete, clone it again") from None
        except KeyError as e:
            raise UpstreamError(f"{file} has no {e}; `git checkout patches/upstream.toml` restores it") from None
        except ValueError as e:  # neither TOML nor UTF-8
            raise UpstreamError(f"{file}: {e}; `git checkout patches/upstream.toml` restores it") from None

    def text(self) -> str:
        """Format the pin as upstream.toml."""
        return (
            "# The upstream release that the queue is for. `scripts/upstream.py` reads and writes this file.\n"
            f'release = "{self.release}"\n'
            f'wheel-sha256 = "{self.wheel_sha256}"\n'
            f'tree-sha256 = "{self.tree_sha256}"  # of the release with the queue on it\n'
        )

    @property
    def wheel(self) -> str:
        """The file name of the release's wheel."""
        return f"{PACKAGE}-{self.release}-py3-none-any.whl"


def list_patches(root: Path) -> list[Path]:
    """List the queue's patches in order."""
    return sorted((root / "patches").glob("[0-9]*.patch"))


def parse_version(release: str) -> tuple[int, ...]:
    """Return a release's numbers, by which releases are sorted."""
    return tuple(int(number) for number in release.split("."))


def is_for_release(patch: Path, release: str) -> bool:
    """Whether a patch applies to a release: its message may name the first release that has what it changes."""
    message = patch.read_bytes().partition(b"\ndiff --git ")[0].decode(errors="replace")
    since = re.search(r"(?m)^Applies from: ([\d.]*\d)\s*$", message)
    return since is None or parse_version(release) >= parse_version(since[1])


def list_later_patches(root: Path, release: str) -> list[Path]:
    """List the patches that apply only to later releases than this one."""
    return [patch for patch in list_patches(root) if not is_for_release(patch, release)]


def queue_sha256(root: Path) -> str:
    """Hash everything that determines the tree: the pin and the queue."""
    return hash_queue(
        {file.name: file.read_bytes() for file in [root / "patches" / "upstream.toml", *list_patches(root)]}
    )


def hash_file(file: Path) -> str:
    """Hash a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def hash_queue(files: dict[str, bytes]) -> str:
    """Hash the pin and the queue, given the content of each file by its name."""
    digest = hashlib.sha256()
    for name in ["upstream.toml", *sorted(files.keys() - {"upstream.toml"})]:
        digest.update(name.encode() + b"\0" + files[name].replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()
