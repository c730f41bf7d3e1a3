"""Measure the peak memory of a call, and run a module of scripts/ in a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def measure_peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Measure the peak memory of a call in MiB.

    On a GPU this is the allocator's peak. On a CPU it is the growth of the resident set, which is exact only in a
    process of its own.
    """
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with ResidentSetGrowth() as measured:
        call()
    return measured()


class ResidentSetGrowth:
    """Measure the peak growth of the resident set within a block, in MiB. Linux only."""

    def __enter__(self) -> Callable[[], float]:
        if not Path("/proc/self/clear_refs").exists():
            raise OSError("the peak of the resident set is measured on Linux only")
        ctypes.CDLL(None).malloc_trim(0)  # so that memory that was freed before does not count
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
        self.before, self.grown = self._peak(), float("nan")
        return lambda: self.grown

    def __exit__(self, *_: object) -> None:
        self.grown = (self._peak() - self.before) / 1024

    @staticmethod
    def _peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])  # KiB


def run_module(module: str, *arguments: str) -> str:
    """Run a module of scripts/ in a process of its own and return its output.

    Raises:
        RuntimeError: If it fails, with the last line that it wrote.
    """
    scripts = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return done.stdout
