"""What a process learns from torch's elastic launcher, and how the processes of all nodes agree with each other.

`torchrun` starts the same command several times on each node. Every process finds its number and the number of all of
them in its environment, and the address of a store (a dictionary that the launcher serves) through which they meet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ultralytics.nn.AddModules.errors import Refused
from ultralytics.utils import LOCAL_RANK, RANK, USER_CONFIG_DIR

__all__ = ()

WORLD_SIZE = int(os.getenv("WORLD_SIZE", "1"))  # processes on all nodes; upstream's RANK is -1 for a single one
RECORD = "launchers.json"  # in a run's folder: who trains it
# How long a process waits for the others. In a step as long as the launcher itself waits for nodes to join; while the
# run is set up, the first process may be downloading a data set or reading its labels for the first time.
STEP_TIMEOUT = timedelta(minutes=10)
SETUP_TIMEOUT = timedelta(hours=1)
SHARE_TIMEOUT = 30.0  # seconds until what one node writes must be seen by another; network file systems cache names


def is_launched() -> bool:
    """Whether torch's elastic launcher started this process, and not upstream's own `device=0,1` through it."""
    upstreams = Path(sys.argv[0] if sys.argv else "").parent == USER_CONFIG_DIR / "DDP"
    return "TORCHELASTIC_RUN_ID" in os.environ and not upstreams


def is_lost(error: Exception) -> bool:
    """Whether an error says that another process is gone or does not answer."""
    if isinstance(error, getattr(dist, "DistError", ())):  # NCCL's, the store's and the network's
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))


# The device and the group ---------------------------------------------------------------------------------------------
def choose_device(asked: str) -> str:
    """Choose this process's device.

    Args:
        asked: `device=`, as upstream's `parse_device` gives it: empty, "cpu", "0,1" or "npu:0,1". Where it names
            devices, it names one for each process of a node.

    Returns:
        The device, in the same form.

    Raises:
        ValueError: If a node has not as many devices as processes.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind, _, names = asked.rpartition(":")
    if asked in ("npu", "xpu"):
        kind, names = asked, "0"
    if not asked and torch.cuda.is_available() and WORLD_SIZE > 1:
        count = torch.cuda.device_count()
        if count < local:
            raise Refused(f"{local} processes on a node with {count} GPUs: use --nproc-per-node={count}, or device=cpu")
        return str(LOCAL_RANK)
    if not asked or asked == "cpu" or (asked == "mps" and WORLD_SIZE == 1):
        return asked or ("cpu" if WORLD_SIZE > 1 else "")
    chosen = names.split(",")
    if len(set(chosen)) != local or len(chosen) != local:
        raise Refused(
            f"device={asked} for {local} processes on this node: name as many different devices as --nproc-per-node, "
            "or none"
        )
    name = chosen[max(LOCAL_RANK, 0)]
    known = hasattr(torch, kind or "cuda")  # or upstream says what to install
    if known and name.isdigit() and int(name) >= (count := device_module(kind or "cuda").device_count()):
        has = f"has {count} such devices, numbered from 0" if count else "has no such device; device=cpu takes its CPU"
        raise Refused(f"device={asked}: {socket.gethostname()} {has}")
    return f"{kind}:{name}" if kind else name


def device_module(kind: str) -> Any:
    """Give torch's module of a kind of device, such as `torch.cuda`."""
    return getattr(torch, kind)


def join_group(device: str) -> None:
    """Make the process group: NCCL on GPUs, gloo on CPUs. Nothing is done for one process.

    Args:
        device: What `choose_device` gave.
    """
    if WORLD_SIZE == 1 or dist.is_initialized():
        return
    kind, _, index = device.rpartition(":")
    on_gpu = device.isdigit() and dist.is_nccl_available()
    backend = {"npu": "hccl", "xpu": "xccl"}.get(kind, "nccl" if on_gpu else "gloo")
    if index.isdigit():
        device_module(kind or "cuda").set_device(int(index))
    if backend == "nccl":  # or its watchdog would end the process, and no line would name the checkpoint
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    store, _, _ = next(dist.rendezvous("env://", RANK, WORLD_SIZE, timeout=SETUP_TIMEOUT))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(meet(store, backend), store),
        rank=RANK,
        world_size=WORLD_SIZE,
        timeout=SETUP_TIMEOUT,
    )


def meet(store: dist.Store, backend: str) -> str:
    """Agree with all processes on a name that no earlier start of theirs has used.

    The launcher's store outlives its workers. What killed ones left there, the addresses of a group above all, must
    not be taken for a new one's; and the launchers of two nodes do not count restarts alike.

    Raises:
        RuntimeError: If the others do not come.
        ValueError: If they come with another backend, as where one node does not see its GPUs.
    """
    store.set(f"worker/{RANK}", f"{uuid.uuid4().hex} {backend} {socket.gethostname()}")
    deadline = time.monotonic() + STEP_TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        try:
            workers = [f"worker/{rank}" for rank in range(WORLD_SIZE)]
            store.wait(workers, timedelta(seconds=1))
            found = store.multi_get(workers)
            name = hashlib.sha256(b"".join(found)).hexdigest()
            # Who found a killed worker's entry waits under another name, in vain, and looks again
            store.set(f"{name}/{RANK}", "here")
            store.wait([f"{name}/{rank}" for rank in range(WORLD_SIZE)], timedelta(seconds=1))
            break
        except RuntimeError as e:  # in some releases of torch a subclass of it
            if "timeout" not in str(e).lower() and "timed out" not in str(e).lower():
                raise
    else:
        raise RuntimeError(f"rank {RANK}: the {WORLD_SIZE} processes did not meet within {STEP_TIMEOUT}")
    hosts = sorted({" on ".join(worker.decode().split(" ", 2)[1:]) for worker in found})
    if len({host.split(" ")[0] for host in hosts}) > 1:
        raise Refused(f"the processes do not see the same kind of device ({', '.join(hosts)}); device=cpu takes CPUs")
    return name


def limit_waiting() -> None:
    """End the run when a process does not answer for `STEP_TIMEOUT`, from here on."""
    if WORLD_SIZE > 1:
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(STEP_TIMEOUT)


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Let the first process of all go first, then the first of each other node, then the rest.

    Upstream lets the first of every node go at once, which write the same files where nodes share them. An error leaves
    the turns in order, so that each process meets it and says so.
    """
    turn = 0 if RANK in {-1, 0} else 1 if LOCAL_RANK == 0 else 2
    for _ in range(turn):
        barrier()
    try:
        yield
    finally:
        for _ in range(2 - turn):
            barrier()


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def gather(value: Any) -> list:
    """Give every process the values of all, in the order of their ranks."""
    values = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        dist.all_gather_object(values, value)
    return values


def decide(function: Callable[[], Any]) -> Any:
    """Call a function in the first process, and give its result, or its error, in all."""
    if WORLD_SIZE == 1:
        return function()
    answer = [None, None]
    if RANK == 0:
        try:
            answer[0] = function()
        except Exception as e:
            answer[1] = e
    dist.broadcast_object_list(answer, 0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


# The run's folder -----------------------------------------------------------------------------------------------------
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


def is_own(folder: Path) -> bool:
    """Whether the launcher of this process has trained the run in a folder."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return is_launched() and name_launcher() in json.loads((folder / RECORD).read_text("utf-8"))["launchers"]
    return False


def stamp(file: Path) -> list[int] | None:
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

    decide(write)
    seen = appears(folder / RECORD, text)
    blind = sorted({host for host, sees in gather((socket.gethostname(), seen)) if not sees})
    if blind:
        raise Refused(
            f"the run's folder {folder} is not shared: {', '.join(blind)} does not see what rank 0 wrote there; "
            "let project= name a folder on a file system that all nodes share"
        )


def see_same(file: Path, written: list[int]) -> None:
    """See that every process reads the same state of a file.

    Args:
        file: The file.
        written: Its `stamp` in the first process. Clocks of file systems differ in how fine they are: seconds count.

    Raises:
        ValueError: If a node sees another file, or none.
    """

    def is_same() -> bool:
        own = stamp(file)
        return own is not None and own[1] == written[1] and abs(own[0] - written[0]) < 2e9

    blind = sorted({host for host, sees in gather((socket.gethostname(), comes(is_same, file))) if not sees})
    if blind:
        raise Refused(f"{', '.join(blind)} does not see {file} as rank 0 does: the run's folder must be shared")


def appears(file: Path, text: str | None = None) -> bool:
    """Wait up to `SHARE_TIMEOUT` for a file that another node has written, and the text in it."""
    return comes(lambda: file.exists() and (text is None or file.read_text(encoding="utf-8") == text), file)


def comes(condition: Callable[[], bool], file: Path) -> bool:
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
