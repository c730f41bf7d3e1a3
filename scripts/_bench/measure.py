"""Measure a case: time all its sides in one run, and the peak memory of each side in a process of its own."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

import torch
from torch import nn

from _bench import cases, naive_formulas
from _bench.lower_bound import make_floor_call
from _shared.module_calls import list_tensors, make_call
from _shared.peak_memory import measure_peak_memory, run_module
from _shared.timing import Times, synchronise, time_in_turn
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

MODES = ("inference", "training")
NOISE = 128  # MiB above which the order in which threads allocate memory does not matter


def build_side(case: cases.Case, side: str, mode: str, device: torch.device) -> nn.Module:
    """Build the module of a side with fixed weights; for inference it is fused, as `yolo predict` does."""
    torch.manual_seed(0)
    module = case.plain_modules()[side]() if side in case.plain_modules() else case.build()
    if side == "naive":
        module = naive_formulas.naive_copy(module)
    module = module.to(device).train(mode == "training")
    if mode == "inference" and side != "naive":
        fuse_layers(module)
    return module


def fuse_layers(module: nn.Module) -> None:
    """Fuse a module's layers: ours with their own method, upstream's convolutions as upstream does."""
    for m in list(module.modules()):
        if isinstance(m, Conv) and hasattr(m, "bn"):
            m.conv = fuse_conv_and_bn(m.conv, m.bn)
            del m.bn
            m.forward = m.forward_fuse
        elif callable(getattr(m, "fuse", None)):
            m.fuse()


def time_sides(
    case: cases.Case, mode: str, sides: list[str], device: torch.device, options: dict, rounds: int, seconds: float
) -> dict[str, Times]:
    """Time the sides of a case in one run; "floor" and "best floor" are among them."""
    x = torch.randn(case.shape, device=device)
    calls = {}
    for side in sides:
        if side in ("floor", "best floor"):
            module, autocast = build_side(case, "ours", "training", device).eval(), options["autocast"]
            results = list_tensors(make_call(module, x, "inference", autocast)())
            calls[side] = torch.inference_mode()(make_floor_call(module, x, results, autocast, side == "best floor"))
            continue
        module = build_side(case, side, mode, device)
        if options["compile"]:
            module = torch.compile(module)
        calls[side] = make_call(module, x, mode, options["autocast"])
    return time_in_turn(calls, device, rounds, seconds)


def profile_case(case: cases.Case, mode: str, device: torch.device, options: dict, repeats: int) -> list[dict]:
    """List the operations of a case that take the most time."""
    module = build_side(case, "ours", mode, device)
    module = torch.compile(module) if options["compile"] else module
    call = make_call(module, torch.randn(case.shape, device=device), mode, options["autocast"])
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


def measure_peak(case: cases.Case, side: str, mode: str, device: torch.device, options: dict) -> float:
    """Measure the peak memory in MiB of one call of a case, without the module and its input.

    A small map goes first, so that memory that libraries allocate once is not counted.
    """
    x = torch.randn(case.shape, device=device)
    module = build_side(case, side, mode, device)
    if options["compile"]:
        module = torch.compile(module)
        make_call(module, x, mode, options["autocast"])()  # compile first, as its memory does not count
    make_call(module, x[..., : case.shape[2] // 4, : case.shape[3] // 4], mode, options["autocast"])()
    return measure_peak_memory(make_call(module, x, mode, options["autocast"]), device)


def measure_peak_alone(case: cases.Case, side: str, mode: str, device: torch.device, options: dict) -> float:
    """Call `measure_peak`, on a CPU in a process of its own; if the result is small, return the median of three."""
    if device.type == "cuda":
        return measure_peak(case, side, mode, device, options)
    first = measure_in_process("peak", case.name, side, mode, options)
    if first > NOISE:
        return first
    return statistics.median([first, *(measure_in_process("peak", case.name, side, mode, options) for _ in range(2))])


def measure_in_process(kind: str, name: str, side: str, mode: str, options: dict, *batch: int) -> float:
    """Run `peak_process.py` for one figure."""
    request = kind, name, side, mode, {**options, "autocast": str(options["autocast"] or "")[6:]}, *batch
    return float(run_module("_bench.peak_process", json.dumps(request)).split()[-1])


def iterate_cases() -> Iterator[cases.Case]:
    """Yield the published cases and those on growing maps."""
    yield from cases.CASES
    for family in cases.GROWTH.values():
        yield from family
