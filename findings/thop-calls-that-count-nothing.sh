#!/usr/bin/env bash
# Packages:  ultralytics-thop 2.2.3, torch 2.15.0, numpy 2.4.6, CPU
# Expected:  one operation written in several ways costs the same.
# Seen:      a convolution counts when its module is called, and 0 as `conv.forward(x)` or `F.conv2d`. A matrix
#            product counts as `@`, `torch.bmm` and einsum, and 0 as `torch.mm` and `torch.baddbmm`. torch's own
#            counter counts all.
# Matters:   published GFLOPs depend on how a module is written; a fused or re-parametrised layer can look free.
# Source:    compared with torch.utils.flop_counter.FlopCounterMode, which counts two operations a product.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv ultralytics-thop==2.2.3 torch==2.15.0 numpy==2.4.6
.venv/bin/python - <<'EOF'
import thop
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

calls = {
    "conv(x)": lambda conv, x: conv(x),
    "conv.forward(x)": lambda conv, x: conv.forward(x),
    "F.conv2d(x, conv.weight)": lambda conv, x: F.conv2d(x, conv.weight, padding=1),
    "a @ b": lambda conv, x: x.flatten(2) @ x.flatten(2).mT,
    "torch.bmm(a, b)": lambda conv, x: torch.bmm(x.flatten(2), x.flatten(2).mT),
    "torch.einsum(..., a, b)": lambda conv, x: torch.einsum("bci,bdi->bcd", x.flatten(2), x.flatten(2)),
    "torch.mm(a[0], b[0])": lambda conv, x: torch.mm(x[0].flatten(1), x[0].flatten(1).T),
    "torch.baddbmm(c, a, b)": lambda conv, x: torch.baddbmm(torch.zeros(1, 8, 8), x.flatten(2), x.flatten(2).mT),
}
free = ["conv.forward(x)", "F.conv2d(x, conv.weight)", "torch.mm(a[0], b[0])", "torch.baddbmm(c, a, b)"]


class Layer(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.call = call

    def forward(self, x):
        return self.call(self.conv, x)


print("ultralytics-thop", thop.__version__)
x = torch.zeros(1, 8, 16, 16)
for name, call in calls.items():
    with FlopCounterMode(display=False) as counter:
        Layer(call)(x)
    products = thop.profile(Layer(call), [x], verbose=False)[0]
    print(f"{name}: {products:.0f} products, torch's counter {counter.get_total_flops() // 2}")
    assert products == (0 if name in free else counter.get_total_flops() / 2), "this has changed"
EOF
