#!/usr/bin/env bash
# Packages:  torch 2.15.0, numpy 2.4.6, CPU
# Expected:  the memory order of a tensor does not change any value: BatchNorm2d and InstanceNorm give the gradient
#            that their formula gives.
# Seen:      for a batch of one, a contiguous input and an output gradient of strides (C, 1, W*C, C), the gradient of
#            the input is wrong, in float64 too, without an error. Batches of two or more are right.
# Matters:   layers that turn a (1, C, H, W) map into (1, H*W, C) tokens send such gradients back.
# Source:    compared with the formula, differentiated by torch itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 numpy==2.4.6
.venv/bin/python - <<'EOF'
import torch
from torch import nn


def formula(x, per_image):
    axes = (2, 3) if per_image else (0, 2, 3)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def error(norm, batch, dtype):
    """Return the largest difference between the gradients of a norm and of its formula."""
    torch.manual_seed(0)
    image, weight = torch.randn(batch, 8, 6, 5, dtype=dtype), torch.randn(batch, 30, 8, dtype=dtype)
    gradients = []
    for function in (norm, lambda x: formula(x, isinstance(norm, nn.InstanceNorm2d))):
        x = image.clone().requires_grad_()
        (function(x).flatten(2).transpose(1, 2) * weight).sum().backward()  # tokens, (B, H*W, C)
        gradients.append(x.grad)
    return (gradients[0] - gradients[1]).abs().max().item()


print("torch", torch.__version__)
for kind in (nn.BatchNorm2d, nn.InstanceNorm2d):
    for dtype in (torch.float32, torch.float64):
        norm = kind(8).to(dtype)
        one, two = (error(norm, batch, dtype) for batch in (1, 2))
        print(f"{kind.__name__} {dtype}: error {one:.2g} for one image, {two:.2g} for two")
        assert one > 0.1, "one image: the gradient is right now"
        assert two < 1e-4, "two images: the gradient is wrong now"
EOF
