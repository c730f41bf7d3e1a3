"""Measure a case: times of all its sides in one run, and the peak memory of each in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from benchmark import cases, naive
from benchmark.floor import floor
from benchmark.timing import Times, compare, synchronise
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

MODES = ("inference", "training")
NOISE = 128  # MiB beside which it does not show in which order threads take memory


def outputs(y: object) -> list[torch.Tensor]:
    """List the tensors that a module gives."""
    return [y] if isinstance(y, torch.Tensor) else [t for part in y for t in outputs(part)]


def caller(module: nn.Module, x: torch.Tensor, mode: str, autocast: torch.dtype | None) -> Callable[[], object]:
    """Give a function that runs a module once: forward in inference mode, or forward and backward."""

    def forward(x: torch.Tensor) -> object:
        with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
            return module(x)

    if mode == "inference":
        return torch.inference_mode()(lambda: forward(x))
    x = x.clone().requires_grad_()

    def step() -> None:
        maps = [y.float().mean() for y in outputs(forward(x))]
        x.grad = None
        module.zero_grad(set_to_none=True)
        torch.stack(maps).sum().backward()

    return step


def build(case: cases.Case, side: str, mode: str, device: torch.device) -> nn.Module:
    """Make the module of a side, always with the same weights; fused for inference, as `yolo predict` does."""
    torch.manual_seed(0)
    module = case.plain()[side]() if side in case.plain() else case.build()
    if side == "naive":
        module = naive.naive(module)
    module = module.to(device).train(mode == "training")
    if mode == "inference" and side != "naive":
        fuse(module)
    return module


def fuse(module: nn.Module) -> None:
    """Fold what a module and its parts can fold: ours as they say, upstream's convolutions as upstream does."""
    for m in list(module.modules()):
        if isinstance(m, Conv) and hasattr(m, "bn"):
            m.conv = fuse_conv_and_bn(m.conv, m.bn)
            del m.bn
            m.forward = m.forward_fuse
        elif callable(getattr(m, "fuse", None)):
            m.fuse()


def times(
    case: cases.Case, mode: str, sides: list[str], device: torch.device, options: dict, rounds: int, seconds: float
) -> dict[str, Times]:
    """Time the sides of a case in one run; "floor" and "best floor" are among them."""
    x = torch.randn(case.shape, device=device)
    calls = {}
    for side in sides:
        if side in ("floor", "best floor"):
            module, autocast = build(case, "ours", "training", device).eval(), options["autocast"]
            results = outputs(caller(module, x, "inference", autocast)())
            calls[side] = torch.inference_mode()(floor(module, x, results, autocast, side == "best floor"))
            continue
        module = build(case, side, mode, device)
        if options["compile"]:
            module = torch.compile(module)
        calls[side] = caller(module, x, mode, options["autocast"])
    return compare(calls, device, rounds, seconds)


def profile(case: cases.Case, mode: str, device: torch.device, options: dict, repeats: int) -> list[dict]:
    """Say where a case's time goes: the operations that take most of it, by their own time."""
    module = build(case, "ours", mode, device)
    module = torch.compile(module) if options["compile"] else module
    call = caller(module, torch.randn(case.shape, device=device), mode, options["autocast"])
    call()
    with torch.profiler.profile() as profiler:
        for _ in range(repeats):
            call()
        synchronise(device)

    def own(event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
        return event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total  # microseconds

    events = sorted(profiler.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    return [
        {
            "case": case.name,
            "mode": mode,
            "operation": event.key,
            "calls": event.count // repeats,
            "ms": own(event) / repeats / 1e3,
            "share": own(event) / total,
        }
        for event in events[:8]
    ]


def peak(case: cases.Case, side: str, mode: str, device: torch.device, options: dict) -> float:
    """Measure the memory in MiB that one call of a case takes at its peak, beyond module and input.

    A map of a quarter's side goes first: what libraries load and set up once is no activation.
    """
    x = torch.randn(case.shape, device=device)
    module = build(case, side, mode, device)
    if options["compile"]:
        module = torch.compile(module)
        caller(module, x, mode, options["autocast"])()  # what the compiler takes is no activation either
    caller(module, x[..., : case.shape[2] // 4, : case.shape[3] // 4], mode, options["autocast"])()
    return peak_of(caller(module, x, mode, options["autocast"]), device)


def peak_of(call: Callable[[], object], device: torch.device) -> float:
    """Measure the MiB that a call takes at its peak.

    On a GPU it is the allocator's; on a CPU the resident set's, which only a process of its own can tell.
    """
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with resident() as measured:
        call()
    return measured()


class resident:
    """Measure by how much the resident set grows at its peak within a block, in MiB. Linux only."""

    def __enter__(self) -> Callable[[], float]:
        if not Path("/proc/self/clear_refs").exists():
            raise OSError("the peak of the resident set is measured on Linux only")
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no part of it
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
        self.before, self.grown = self._peak(), float("nan")
        return lambda: self.grown

    def __exit__(self, *_: object) -> None:
        self.grown = (self._peak() - self.before) / 1024

    @staticmethod
    def _peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])  # KiB


def peak_alone(case: cases.Case, side: str, mode: str, device: torch.device, options: dict) -> float:
    """Measure `peak`, on a CPU in processes of its own: the median of three where it is small."""
    if device.type == "cuda":
        return peak(case, side, mode, device, options)
    first = in_process("peak", case.name, side, mode, options)
    if first > NOISE:
        return first
    return statistics.median([first, *(in_process("peak", case.name, side, mode, options) for _ in range(2))])


def in_process(kind: str, name: str, side: str, mode: str, options: dict, *batch: int) -> float:
    """Run this file for one figure, in a process of its own."""
    request = kind, name, side, mode, {**options, "autocast": str(options["autocast"] or "")[6:]}, *batch
    return float(alone("benchmark.measure", json.dumps(request)).split()[-1])


def alone(module: str, *arguments: str) -> str:
    """Give what a module of these scripts prints that runs in a process of its own.

    Raises:
        RuntimeError: If it fails, with the last line that it wrote.
    """
    scripts = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([scripts, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return done.stdout


def all_cases() -> Iterator[cases.Case]:
    """Go through the published cases and those of growth."""
    yield from cases.CASES
    for family in cases.GROWTH.values():
        yield from family


def main() -> None:
    """Print one figure."""
    kind, name, side, mode, options, *batch = json.loads(sys.argv[1])
    options["autocast"] = getattr(torch, options["autocast"]) if options["autocast"] else None
    how = torch.device("cpu"), options
    if kind == "peak":
        print(peak(next(c for c in all_cases() if c.name == name), side, mode, *how))
    elif kind == "model":
        from benchmark.models import peak_of_model

        print(peak_of_model(name, side, mode, *how, *batch))
    else:
        raise ValueError(f"unknown request {kind!r}")


if __name__ == "__main__":
    main()
