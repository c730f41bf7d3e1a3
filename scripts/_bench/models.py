"""Measure whole models at 640 pixels: latency relative to the baseline's for the same operations, and peak memory."""

from __future__ import annotations

import torch
from torch import nn

from _bench import naive_formulas
from _bench.measure import measure_in_process
from _shared.flops import count_gflops
from _shared.module_calls import make_call, make_training_step
from _shared.peak_memory import measure_peak_memory
from _shared.timing import time_in_turn
from ultralytics.fork.training.activation_checkpoints import checkpoint_activations
from ultralytics.fork.training.fast_kernels import use_fast_kernels
from ultralytics.fork.training.norm_gradients import match_gradient_layout
from ultralytics.fork.training.norm_recomputation import recompute_norms
from ultralytics.nn.tasks import RTDETRDetectionModel

SIZE = 640


def build_model(name: str, side: str, device: torch.device) -> nn.Module:
    """Build a model from its file's name, fused as by `yolo predict`; the side "naive" has textbook formulas."""
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).eval().fuse(verbose=False)
    return (naive_formulas.naive_copy(model) if side == "naive" else model).to(device)


def time_models(
    names: list[str], side: str, device: torch.device, options: dict, batch: int, rounds: int, seconds: float
) -> list[dict]:
    """Time models in one run, relative to the first one, also for the same number of operations."""
    x = torch.rand(batch, 3, SIZE, SIZE, device=device)
    calls, facts = {}, {}
    for name in names:
        model = build_model(name, side, device)
        plain = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
        facts[name] = {
            "parameters": sum(p.numel() for p in plain.parameters()),
            "gflops": count_gflops(plain, SIZE),
        }
        if options["compile"]:
            model = torch.compile(model)
        calls[name] = make_call(model, x, "inference", options["autocast"])
    found = time_in_turn(calls, device, rounds, seconds)
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


def time_against_naive(
    names: list[str], reference: str, device: torch.device, options: dict, rounds: int, seconds: float
) -> list[dict]:
    """Time models in one run against the textbook form of one of them."""
    x = torch.rand(1, 3, SIZE, SIZE, device=device)
    sides = {name: build_model(name, "ours", device) for name in names} | {
        "naive": build_model(reference, "naive", device)
    }
    if options["compile"]:
        sides = {side: torch.compile(model) for side, model in sides.items()}
    calls = {side: make_call(model, x, "inference", options["autocast"]) for side, model in sides.items()}
    found = time_in_turn(calls, device, rounds, seconds)
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


def build_trainable_model(name: str, device: torch.device, side: str = "plain") -> nn.Module:
    """Build a model from its file's name, ready to train.

    Args:
        name: The file's name without `.yaml`.
        device: Where it is trained.
        side: "plain"; "recipe", with the fast kernels and recomputed norms of the recipes; "checkpointed", with few
            activations kept.
    """
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).to(device).train()
    model.nc = model.yaml["nc"]
    if side == "checkpointed":
        checkpoint_activations(model)
    elif side == "recipe":
        use_fast_kernels(model, device)
        recompute_norms(model)
    if device.type == "cpu":
        match_gradient_layout(model)
    return model


def time_training(
    names: list[str], device: torch.device, options: dict, batch: int, rounds: int, seconds: float
) -> list[dict]:
    """Time training steps of models in one run, relative to the first model."""
    steps = {
        name: make_training_step(build_trainable_model(name, device), device, options, batch, SIZE) for name in names
    }
    found = time_in_turn(steps, device, rounds, seconds)
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


def measure_model_peak(name: str, side: str, mode: str, device: torch.device, options: dict, batch: int) -> float:
    """Measure the peak memory in MiB of a forward or a training step, without the model and its input."""
    if mode == "inference":
        model = build_model(name, side, device)
        model = torch.compile(model) if options["compile"] else model
        call = make_call(model, torch.rand(batch, 3, SIZE, SIZE, device=device), mode, options["autocast"])
    else:
        call = make_training_step(build_trainable_model(name, device, side), device, options, batch, SIZE)
    if options["compile"]:
        call()  # compile first, as its memory does not count
    return measure_peak_memory(call, device)


def measure_model_memory(name: str, side: str, mode: str, device: torch.device, options: dict, batch: int) -> float:
    """Call `measure_model_peak`, on a CPU in a process of its own."""
    if device.type == "cuda":
        return measure_model_peak(name, side, mode, device, options, batch)
    return measure_in_process("model", name, side, mode, options, batch)
