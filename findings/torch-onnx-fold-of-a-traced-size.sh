#!/usr/bin/env bash
# Packages:  torch 2.15.0, onnx 1.23.2, numpy 2.4.6, CPU
# Expected:  `torch.nn.functional.fold` exports to ONNX at opset 18, which has Col2Im: at 17 the error of the TorchScript
#            exporter (`dynamo=False`) says "added in version 18, try exporting with this version".
# Seen:      at 18 it exports only if `output_size` is made of Python's numbers. Where the size is read from a tensor's
#            shape, as in `fold(x, (h, w), ...)` behind `h, w = image.shape[2:]`, the export ends in `TypeError: 'NoneType'
#            object is not subscriptable`, although the image has a fixed size and no axis is dynamic.
# Matters:   VOLO of timm cannot be exported so; what names the size as numbers can.
# Source:    the outcome of each export.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 onnx==1.23.2 numpy==2.4.6
.venv/bin/python - 2>/dev/null <<'EOF'
import io

import torch
from torch import nn
from torch.nn.functional import fold, unfold


class OfShape(nn.Module):
    """The size of a shape."""

    def forward(self, x):
        h, w = x.shape[2:]
        return fold(unfold(x, 3, padding=1), (h, w), 3, padding=1)


class OfNumbers(nn.Module):
    """The size as numbers."""

    def forward(self, x):
        return fold(unfold(x, 3, padding=1), (8, 8), 3, padding=1)


def export(model, opset):
    """Give the error's name and text, or "exported"."""
    try:
        torch.onnx.export(model, (torch.rand(1, 2, 8, 8),), io.BytesIO(), opset_version=opset, dynamo=False)
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0]}"
    return "exported"


seen = {(kind.__name__, opset): export(kind(), opset) for kind in (OfShape, OfNumbers) for opset in (17, 18)}
print("\nfinding: torch", torch.__version__)
for (name, opset), outcome in seen.items():
    print(f"finding: {name}, opset {opset}: {outcome}")
for name in ("OfShape", "OfNumbers"):
    assert "added in version 18, try exporting with this version" in seen[name, 17]
assert seen["OfShape", 18].startswith("TypeError: 'NoneType' object is not subscriptable")
assert seen["OfNumbers", 18] == "exported"
EOF
