#!/usr/bin/env bash
# Packages:  torch 2.15.0, numpy 2.4.6, CPU
# Expected:  torch.export leaves the module as it was: it runs as before, with real numbers.
# Seen:      an attribute that the first forward creates (a cached grid, say) stays a fake tensor in the exported
#            module. torch warns that the attribute was assigned, but the module keeps running: its output is a fake
#            tensor, too, and `.item()` returns a symbol instead of a number, without an error. Attributes that exist
#            before the export, even as None, are restored.
# Matters:   RT-DETR's decoder caches its anchors so: export first, then predict, gives no detections that mean
#            anything.
# Source:    the same module with and without one forward before the export.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 numpy==2.4.6
.venv/bin/python - <<'EOF'
import torch
from torch import nn


class AddGrid(nn.Module):
    """Add each row's number to it; the numbers are cached for the last height."""

    height = 0

    def forward(self, x):
        if self.height != x.shape[1]:
            self.grid, self.height = torch.arange(x.shape[1], dtype=x.dtype)[:, None], x.shape[1]
        return x + self.grid


print("torch", torch.__version__)
x = torch.ones(1, 3, 2)
for runs_before in (0, 1):
    module = AddGrid().eval()
    for _ in range(runs_before):
        module(x)
    torch.export.export(module, (x,), strict=False)
    out = module(x).sum().item()
    grid = type(module.grid).__name__
    print(f"{runs_before} forward(s) before the export: the grid is a {grid}, the sum a {type(out).__name__}")
    assert isinstance(out, float) == bool(runs_before), "this has changed"
EOF
