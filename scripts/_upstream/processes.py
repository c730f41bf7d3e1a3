"""Run child processes so that they, and all processes that they start, end with this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from _upstream.pin import UpstreamError

running: set[subprocess.Popen] = set()  # started by threads
stopping = threading.Event()
SECONDS_TO_END = 5


@contextlib.contextmanager
def stop_on_terminate() -> Iterator[None]:
    """Handle a request to terminate like an interrupt, so that child processes are ended and folders removed."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def end_processes_with(pool: Executor) -> Iterator[None]:
    """If the work of a pool is interrupted, end the processes that its threads have started, so that these end too."""
    try:
        yield
    except BaseException:
        stopping.set()
        for process in list(running):
            end_process(process)
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        stopping.clear()


@contextlib.contextmanager
def run_piped(command: list[str], folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Start a command and yield it, to read its output as it comes; at the end, end it and all that it has started."""
    if stopping.is_set():
        raise UpstreamError("interrupted")
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    running.add(process)
    try:
        yield process
        process.wait()
    finally:
        running.discard(process)
        if process.poll() is None:
            end_process(process)


@contextlib.contextmanager
def run_logged(command: list[str], log: Path, folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Start a command in a process group of its own with its output in a file; at the end, end the whole group."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_process(process)


def end_process(process: subprocess.Popen) -> None:
    """End a process and the processes that it has started."""
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            os.killpg(process.pid, number) if hasattr(os, "killpg") else process.terminate()
        except ProcessLookupError:  # it has ended
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    process.wait()
