"""Run a command in a copy of a folder on a small disk of its own, and once more when there is space again.

    unshare --mount python tests/upstream/small_disk.py FOLDER DISK KIB 'COMMAND AS JSON' 'NEXT COMMAND AS JSON'

Where the mount is made, nobody else sees it. Prints a line of JSON: what became of the command, whether the folder is
as it was before, what became of the next one, and the sha256 of each file behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SPARE = 2**22  # of the disk's size, for what the file system itself takes


def digests(folder: Path) -> dict[str, str]:
    """Hash each file of a checkout but the scratch folder's and byte code."""
    found = {}
    for where, below, names in os.walk(folder):
        below[:] = [name for name in below if name not in {".upstream", ".git", "__pycache__"}]
        for path in (Path(where, name) for name in names if name != "fill"):
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(command: list[str], disk: Path) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, cwd=disk)
    return {"status": done.returncode, "stderr": done.stderr}


def main(folder: Path, disk: Path, free: int, command: list[str], following: list[str]) -> None:
    """Do it, `free` KiB being left."""
    size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    options = f"size={2 * size + free * 1024 + SPARE}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=True)
    shutil.copytree(folder, disk, symlinks=True, dirs_exist_ok=True)
    before = digests(disk)
    with open(disk / "fill", "wb", buffering=0) as file:
        room = shutil.disk_usage(disk).free - free * 1024
        os.posix_fallocate(file.fileno(), 0, room)
    first = run(command, disk)
    first["untouched"] = digests(disk) == before
    (disk / "fill").unlink()
    print(json.dumps({**first, "following": run(following, disk), "files": digests(disk)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]), json.loads(sys.argv[5]))
