"""The run's folder that all nodes share: who trains in it, and whether every node sees the same files."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from ultralytics.fork.distributed.elastic_launch import broadcast_result, gather_values, is_launched
from ultralytics.fork.errors import Refused

RECORD = "launchers.json"  # in a run's folder: which launchers train it
SHARE_TIMEOUT = 30.0  # seconds until one node must see what another writes; network file systems cache names


def name_launcher() -> str:
    """Name the launcher that started this process: the host and the folder of its logs, which no two launches share."""
    log = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_0/0/error.json
    return f"{socket.gethostname()}:{Path(log).parents[2] if log else uuid.uuid4().hex}"


def find_run(folder: Path, launchers: list[str], number: int) -> tuple[Path, dict] | None:
    """Find the run that these launchers have trained before.

    A launcher that restarts its workers is the same launcher, whether they failed or nodes came or went; another
    launch has another one, even with the same arguments and rendezvous id. One that is left is enough.

    Args:
        folder: The folder that a new run would get; the run is this one or beside it.
        launchers: The names of all launchers.
        number: Which training of its workers' command it is, from 1.

    Returns:
        The run's folder and record, or None if it is new.
    """
    for file in (folder / RECORD, *sorted(folder.parent.glob(f"*/{RECORD}"))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of a run's own folder, and of others'
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["number"] == number and set(launchers) & set(record["launchers"]):
                return file.parent, record
    return None


def is_own_run(folder: Path) -> bool:
    """Whether the launcher of this process has trained the run in a folder."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return is_launched() and name_launcher() in json.loads((folder / RECORD).read_text("utf-8"))["launchers"]
    return False


def stamp_file(file: Path) -> list[int] | None:
    """Give what tells one state of a file from another: when it was written, in nanoseconds, and its bytes."""
    return [file.stat().st_mtime_ns, file.stat().st_size] if file.exists() else None


def record_run(folder: Path, record: dict) -> None:
    """Write into the run's folder who trains it, and see that all nodes have this folder.

    Args:
        folder: The run's folder, made if missing.
        record: `launchers` and `number`, as `find_run` takes them, and what else is to be known after a restart.

    Raises:
        ValueError: If the folder of another node is another one.
    """
    text = json.dumps(record, indent=1)

    def write() -> None:
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        part = folder / f"{RECORD}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / RECORD)

    broadcast_result(write)
    seen = wait_for_file(folder / RECORD, text)
    unseeing = sorted({host for host, sees in gather_values((socket.gethostname(), seen)) if not sees})
    if unseeing:
        raise Refused(
            f"the run's folder {folder} is not shared: {', '.join(unseeing)} does not see what rank 0 wrote there; "
            "let project= name a folder on a file system that all nodes share"
        )


def require_same_file(file: Path, written: list[int]) -> None:
    """See that every process reads the same state of a file.

    Args:
        file: The file.
        written: Its `stamp_file` in the first process. Clocks of file systems differ in precision: seconds count.

    Raises:
        ValueError: If a node sees another file, or none.
    """

    def is_same() -> bool:
        own = stamp_file(file)
        return own is not None and own[1] == written[1] and abs(own[0] - written[0]) < 2e9

    unseeing = sorted(
        {host for host, sees in gather_values((socket.gethostname(), wait_until(is_same, file))) if not sees}
    )
    if unseeing:
        raise Refused(f"{', '.join(unseeing)} does not see {file} as rank 0 does: the run's folder must be shared")


def wait_for_file(file: Path, text: str | None = None) -> bool:
    """Wait up to `SHARE_TIMEOUT` for a file that another node has written, and the text in it."""
    return wait_until(lambda: file.exists() and (text is None or file.read_text(encoding="utf-8") == text), file)


def wait_until(condition: Callable[[], bool], file: Path) -> bool:
    """Wait up to `SHARE_TIMEOUT` for what another node does to a file."""
    deadline = time.monotonic() + SHARE_TIMEOUT
    while True:
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # a network file system looks again
            if condition():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
