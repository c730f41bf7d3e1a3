"""Measure whole models at 640 pixels: latency against the baseline's for as many operations, and peak memory."""

from __future__ import annotations

import torch
from torch import nn

from _bench import naive_formulas
from _bench.measure import in_process
from _shared.flops import count_gflops
from _shared.module_calls import caller, training_step
from _shared.peak_memory import peak_of
from _shared.timing import compare
from ultralytics.nn.tasks import RTDETRDetectionModel

SIZE = 640


def make(name: str, side: str, device: torch.device) -> nn.Module:
    """Build a model by its file's name, fused as `yolo predict` runs it; "naive" with the textbook formulas."""
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).eval().fuse(verbose=False)
    return (naive_formulas.naive(model) if side == "naive" else model).to(device)


def latencies(
    names: list[str], side: str, device: torch.device, options: dict, batch: int, rounds: int, seconds: float
) -> list[dict]:
    """Time models in one run; the first is what the others are compared with, for as many operations."""
    x = torch.rand(batch, 3, SIZE, SIZE, device=device)
    calls, facts = {}, {}
    for name in names:
        model = make(name, side, device)
        plain = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
        facts[name] = {
            "parameters": sum(p.numel() for p in plain.parameters()),
            "gflops": count_gflops(plain, SIZE),
        }
        if options["compile"]:
            model = torch.compile(model)
        calls[name] = caller(model, x, "inference", options["autocast"])
    found = compare(calls, device, rounds, seconds)
    first = names[0]
    return [
        {
            "model": name,
            "batch": batch,
            **facts[name],
            "ms": 1e3 * found[name].median,
            "spread": found[name].spread,
            "over_baseline": found[name].over(found[first]),
            "over_baseline_per_operation": found[name].over(found[first])
            * facts[first]["gflops"]
            / facts[name]["gflops"],
        }
        for name in names
    ]


def over_naive(
    names: list[str], reference: str, device: torch.device, options: dict, rounds: int, seconds: float
) -> list[dict]:
    """Time models against the textbook form of one, all of them in one run."""
    x = torch.rand(1, 3, SIZE, SIZE, device=device)
    sides = {name: make(name, "ours", device) for name in names} | {"naive": make(reference, "naive", device)}
    if options["compile"]:
        sides = {side: torch.compile(model) for side, model in sides.items()}
    calls = {side: caller(model, x, "inference", options["autocast"]) for side, model in sides.items()}
    found = compare(calls, device, rounds, seconds)
    return [
        {
            "model": name,
            "naive": reference,
            "ms": 1e3 * found[name].median,
            "naive_ms": 1e3 * found["naive"].median,
            "over_naive": found[name].over(found["naive"]),
        }
        for name in names
    ]


def trainable(name: str, device: torch.device) -> nn.Module:
    """Build a model by its file's name as a trainer has it."""
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).to(device).train()
    model.nc = model.yaml["nc"]
    return model


def throughput(
    names: list[str], device: torch.device, options: dict, batch: int, rounds: int, seconds: float
) -> list[dict]:
    """Time training steps of models in one run; the first is what the others are compared with."""
    steps = {name: training_step(trainable(name, device), device, options, batch, SIZE) for name in names}
    found = compare(steps, device, rounds, seconds)
    return [
        {
            "model": name,
            "batch": batch,
            "images per second": batch / found[name].median,
            "spread": found[name].spread,
            "over_baseline": 1 / found[name].over(found[names[0]]),
        }
        for name in names
    ]


def peak_of_model(name: str, side: str, mode: str, device: torch.device, options: dict, batch: int) -> float:
    """Measure the MiB that a forward, or a training step, takes at its peak beyond the model and its input."""
    if mode == "inference":
        model = make(name, side, device)
        model = torch.compile(model) if options["compile"] else model
        call = caller(model, torch.rand(batch, 3, SIZE, SIZE, device=device), mode, options["autocast"])
    else:
        call = training_step(trainable(name, device), device, options, batch, SIZE)
    if options["compile"]:
        call()  # what the compiler takes is no activation
    return peak_of(call, device)


def memory(name: str, side: str, mode: str, device: torch.device, options: dict, batch: int) -> float:
    """Measure `peak_of_model`, on a CPU in a process of its own."""
    if device.type == "cuda":
        return peak_of_model(name, side, mode, device, options, batch)
    return in_process("model", name, side, mode, options, batch)
