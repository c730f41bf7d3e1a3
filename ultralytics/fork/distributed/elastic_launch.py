"""Read what torch's elastic launcher says of this process, choose its device, and join the group of all processes.

`torchrun` starts the same command several times on each node. Every process finds its rank and the world size in its
environment, and the address of a store (a dictionary that the launcher serves) through which the processes find each
other.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from ultralytics.fork.errors import Refused
from ultralytics.utils import LOCAL_RANK, RANK, USER_CONFIG_DIR

WORLD_SIZE = int(os.getenv("WORLD_SIZE", "1"))  # processes on all nodes; upstream's RANK is -1 for a single one
# How long a process waits for the others. In a step as long as the launcher itself waits for nodes to join; while the
# run is set up, the first process may be downloading a data set or reading its labels for the first time.
STEP_TIMEOUT = timedelta(minutes=10)
SETUP_TIMEOUT = timedelta(hours=1)


def is_launched() -> bool:
    """Whether torch's elastic launcher started this process, and not upstream's own `device=0,1` through it."""
    upstreams = Path(sys.argv[0] if sys.argv else "").parent == USER_CONFIG_DIR / "DDP"
    return "TORCHELASTIC_RUN_ID" in os.environ and not upstreams


def is_lost_process(error: Exception) -> bool:
    """Whether an error says that another process is gone or does not answer."""
    if isinstance(error, getattr(dist, "DistError", ())):  # NCCL's, the store's and the network's
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))


def choose_device(requested: str) -> str:
    """Choose this process's device.

    Args:
        requested: `device=`, as upstream's `parse_device` gives it: empty, "cpu", "0,1" or "npu:0,1". Where it names
            devices, it names one for each process of a node.

    Returns:
        The device, in the same form.

    Raises:
        ValueError: If a node has not as many devices as processes.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind, _, names = requested.rpartition(":")
    if requested in ("npu", "xpu"):
        kind, names = requested, "0"
    if not requested and torch.cuda.is_available() and WORLD_SIZE > 1:
        count = torch.cuda.device_count()
        if count < local:
            raise Refused(f"{local} processes on a node with {count} GPUs: use --nproc-per-node={count}, or device=cpu")
        return str(LOCAL_RANK)
    if not requested or requested == "cpu" or (requested == "mps" and WORLD_SIZE == 1):
        return requested or ("cpu" if WORLD_SIZE > 1 else "")
    chosen = names.split(",")
    if len(set(chosen)) != local or len(chosen) != local:
        raise Refused(
            f"device={requested} for {local} processes on this node: name as many different devices as "
            "--nproc-per-node, or none"
        )
    name = chosen[max(LOCAL_RANK, 0)]
    known = hasattr(torch, kind or "cuda")  # or upstream says what to install
    if known and name.isdigit() and int(name) >= (count := device_module(kind or "cuda").device_count()):
        has = f"has {count} such devices, numbered from 0" if count else "has no such device; device=cpu takes its CPU"
        raise Refused(f"device={requested}: {socket.gethostname()} {has}")
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
        store=dist.PrefixStore(agree_on_group_name(store, backend), store),
        rank=RANK,
        world_size=WORLD_SIZE,
        timeout=SETUP_TIMEOUT,
    )


def agree_on_group_name(store: dist.Store, backend: str) -> str:
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
        raise RuntimeError(f"rank {RANK}: the {WORLD_SIZE} processes did not find each other within {STEP_TIMEOUT}")
    hosts = sorted({" on ".join(worker.decode().split(" ", 2)[1:]) for worker in found})
    if len({host.split(" ")[0] for host in hosts}) > 1:
        raise Refused(f"the processes do not see the same kind of device ({', '.join(hosts)}); device=cpu takes CPUs")
    return name


def shorten_timeout() -> None:
    """End the run when a process does not answer for `STEP_TIMEOUT`, from here on."""
    if WORLD_SIZE > 1:
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(STEP_TIMEOUT)


@contextlib.contextmanager
def run_in_turn() -> Iterator[None]:
    """Let the first process of all go first, then the first of each other node, then the rest.

    Upstream lets the first of every node go at once, which write the same files where nodes share them. An error leaves
    the turns in order, so that each process meets it and says so.
    """
    turn = 0 if RANK in {-1, 0} else 1 if LOCAL_RANK == 0 else 2
    for _ in range(turn):
        wait_for_all()
    try:
        yield
    finally:
        for _ in range(2 - turn):
            wait_for_all()


def wait_for_all() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def gather_values(value: Any) -> list:
    """Give every process the values of all, in the order of their ranks."""
    values = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_result(function: Callable[[], Any]) -> Any:
    """Call a function in the first process, and give its result, or its error, in all."""
    if WORLD_SIZE == 1:
        return function()
    answer: list[Any] = [None, None]
    if RANK == 0:
        try:
            answer[0] = function()
        except Exception as e:
            answer[1] = e
    dist.broadcast_object_list(answer, 0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
