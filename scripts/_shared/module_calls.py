"""Return functions that run a module once: a forward, a forward and backward, or a training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def list_tensors(y: object) -> list[torch.Tensor]:
    """List the tensors in a module's output."""
    return [y] if isinstance(y, torch.Tensor) else [t for part in y for t in list_tensors(part)]


def make_call(module: nn.Module, x: torch.Tensor, mode: str, autocast: torch.dtype | None) -> Callable[[], object]:
    """Return a function that runs a module once: forward in inference mode, or forward and backward."""

    def forward(x: torch.Tensor) -> object:
        with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
            return module(x)

    if mode == "inference":
        return torch.inference_mode()(lambda: forward(x))
    x = x.clone().requires_grad_()

    def step() -> None:
        maps = [y.float().mean() for y in list_tensors(forward(x))]
        x.grad = None
        module.zero_grad(set_to_none=True)
        torch.stack(maps).sum().backward()

    return step


def make_training_step(
    model: nn.Module, device: torch.device, options: dict, batch: int, imgsz: int
) -> Callable[[], None]:
    """Return a function that runs one training step: loss, backward and AdamW, on random images and boxes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=options["autocast"] is torch.float16)
    boxes = batch * 4
    data = {
        "img": torch.rand(batch, 3, imgsz, imgsz, device=device),
        "batch_idx": torch.arange(boxes, device=device).float() // 4,
        "cls": torch.zeros(boxes, 1, device=device),
        "bboxes": torch.rand(boxes, 4, device=device) * 0.2 + 0.3,
    }
    run = torch.compile(model) if options["compile"] else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=options["autocast"], enabled=options["autocast"] is not None):
            loss = run(data)[0].sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
