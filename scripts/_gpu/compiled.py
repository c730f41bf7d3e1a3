"""Small models of each family compiled by torch: the same detections, a training step, and CUDA graphs by torch."""

from __future__ import annotations

import torch

from _gpu.checks import NotHere, Options, run_check
from _gpu.models import TINY, ModelChecks


def check_compiled(name: str, options: Options) -> None:
    """Run the checks of one compiled model."""
    checks = ModelChecks(name, Options(options.device, small=True))

    def predict(mode: str) -> dict:
        if mode == "reduce-overhead" and options.device != "cuda":
            raise NotHere("CUDA graphs need a GPU")
        torch.compiler.reset()
        model = torch.compile(checks.on_device().eval().fuse(verbose=False), mode=mode)
        return checks.compare(lambda x: model(x)[0].clone())

    for mode in ("default", "reduce-overhead") if name == TINY[0] else ("default",):
        run_check("compiled", f"{name}: torch.compile, {mode}", lambda mode=mode: predict(mode))
