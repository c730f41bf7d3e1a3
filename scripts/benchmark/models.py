"""Measure whole models at 640 pixels: latency against the baseline's for as many operations, and peak memory."""

from __future__ import annotations

import torch
from flops import count_gflops
from torch import nn

from benchmark import naive
from benchmark.measure import caller, in_process, resident
from benchmark.timing import compare
from ultralytics.nn.tasks import RTDETRDetectionModel

SIZE = 640
TRAINING_BATCH = 4


def make(name: str, side: str, device: torch.device) -> nn.Module:
    """Build a model by its file's name, fused as `yolo predict` runs it, or plain with the textbook formulas."""
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).eval()
    return (naive.naive(model) if side == "naive" else model.fuse(verbose=False)).to(device)


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


def over_naive(name: str, reference: str, device: torch.device, options: dict, rounds: int, seconds: float) -> dict:
    """Time a model against the textbook form of another, or of itself."""
    x = torch.rand(1, 3, SIZE, SIZE, device=device)
    sides = {"ours": make(name, "ours", device), "naive": make(reference, "naive", device)}
    found = compare(
        {side: caller(model, x, "inference", options["autocast"]) for side, model in sides.items()},
        device,
        rounds,
        seconds,
    )
    return {
        "model": name,
        "naive": reference,
        "ms": 1e3 * found["ours"].median,
        "naive_ms": 1e3 * found["naive"].median,
        "over_naive": found["ours"].over(found["naive"]),
    }


def memory(name: str, side: str, mode: str) -> float:
    """Measure a model's peak memory in MiB, in a process of its own on the CPU."""
    return in_process("model", name, side, mode)


def peak_of_model(name: str, side: str, mode: str) -> float:
    """Measure, in this process, the MiB that one image, or one training step of four, takes beyond the model."""
    device = torch.device("cpu")
    if mode == "inference":
        model = make(name, side, device)
        call = caller(model, torch.rand(1, 3, SIZE, SIZE), mode, None)
        with resident() as measured:
            call()
        return measured()
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).train()
    model.nc = model.yaml["nc"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    boxes = TRAINING_BATCH * 4
    batch = {
        "img": torch.rand(TRAINING_BATCH, 3, SIZE, SIZE),
        "batch_idx": torch.arange(boxes).float() // 4,
        "cls": torch.zeros(boxes, 1),
        "bboxes": torch.rand(boxes, 4) * 0.2 + 0.3,
    }
    with resident() as measured:
        model(batch)[0].sum().backward()
        optimizer.step()
    return measured()
