#!/usr/bin/env bash
# Packages:  torch 2.15.0, numpy 2.4.6, CPU
# Expected:  `conv2d` with a kernel of one pixel runs the same kernels whatever `dilation` is: with one pixel there is
#            nothing to spread.
# Seen:      on one thread, with up to 15 images, torch computes it by its own `_slow_conv2d_forward`, a matrix product of
#            the BLAS. With `dilation=2` it takes oneDNN's convolution, whose result is equal but for rounding. On two
#            threads both take oneDNN's.
# Matters:   on an AMD EPYC with AVX-512 oneDNN's takes half the time, forward and backward; half of the convolutions of
#            an RT-DETR are of one pixel.
# Source:    the names of the operations in torch's profiler, and the results.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 numpy==2.4.6
.venv/bin/python - 2>/dev/null <<'EOF'
import torch
from torch.nn.functional import conv2d

KERNELS = "aten::_slow_conv2d_forward", "aten::mkldnn_convolution"
x, weight = torch.rand(1, 64, 20, 20), torch.rand(32, 64, 1, 1)


def run(x, dilation):
    """Give the kernel that computes a convolution, and its result."""
    with torch.profiler.profile() as profiler:
        result = conv2d(x, weight, dilation=dilation)
    names = {event.key for event in profiler.key_averages()}
    return [name for name in KERNELS if name in names], result


print("\nfinding: torch", torch.__version__)
seen = {}
for threads in (1, 2):
    torch.set_num_threads(threads)
    for images in (1, 15, 16):
        for dilation in (1, 2):
            seen[threads, images, dilation], _ = run(x.expand(images, -1, -1, -1), dilation)
            print(f"finding: {threads} threads, {images} images, dilation {dilation}:", *seen[threads, images, dilation])
torch.set_num_threads(1)
difference = (run(x, 1)[1] - run(x, 2)[1]).abs().max().item()
print(f"finding: the results differ by {difference:.1e}")
assert {case for case, kernels in seen.items() if kernels == ["aten::_slow_conv2d_forward"]} == {(1, 1, 1), (1, 15, 1)}
assert all(kernels == ["aten::mkldnn_convolution"] for case, kernels in seen.items() if case[2] == 2 or case[0] == 2)
assert difference < 1e-4
EOF
