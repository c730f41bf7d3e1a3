"""Check half precision on a device without fetching a model, which upstream's check of AMP does; choose where it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ultralytics.nn.modules import Conv
from ultralytics.utils import ASSETS, LOGGER, RANK, colorstr

TOLERANCE = 0.05  # of the norm: how far a result in half precision may be from fp32; it is 0.003
LOSS_SCALE = 2**8  # as a training scales its loss: small gradients have few digits in half precision


def choose_precision(trainer: Any) -> None:
    """Train in FP32 where a recipe has `amp=bf16` and the device has no fast bfloat16."""
    device: torch.device = trainer.device
    if trainer.args.amp != "bf16" or not trainer.args.loss:  # which the recipes have
        return
    if device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)):
        trainer.args.amp = False
        if RANK in {-1, 0}:
            LOGGER.info(f"amp=bf16: {device} has no fast bfloat16, so that training is in FP32")


def is_half_precision_accurate(device: torch.device) -> bool:
    """Whether a device computes in half precision what it computes in fp32.

    It runs a few convolutions and their norms forward and backward on a photograph, with weights that are always the
    same.
    """
    import cv2

    image = cv2.imread(str(ASSETS / "bus.jpg"))
    assert image is not None  # one of upstream's assets
    x = torch.from_numpy(cv2.resize(image, (256, 256))).permute(2, 0, 1)[None].float().to(device) / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(Conv(3, 32, 3, 2), Conv(32, 64, 3, 2), Conv(64, 64, 5, g=64), Conv(64, 32, 3))
    layers.to(device).train()

    def run(is_half: bool) -> list[torch.Tensor]:
        with torch.enable_grad(), torch.autocast(device.type, torch.float16, enabled=is_half):
            y = layers(x)
            loss = LOSS_SCALE * y.float().square().mean()
            return [y, *torch.autograd.grad(loss, list(layers.parameters()))]

    pairs = zip(run(False), run(True))
    is_accurate = all((a - b).norm() < TOLERANCE * a.norm() for a, b in pairs)  # false where a number is not finite
    prefix = colorstr("AMP: ")
    if is_accurate:
        LOGGER.info(f"{prefix}checks passed ✅")
    else:
        LOGGER.warning(f"{prefix}half precision is wrong on this device, so that training is in fp32 (amp=False)")
    return is_accurate
