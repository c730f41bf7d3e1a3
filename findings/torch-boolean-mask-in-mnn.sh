#!/usr/bin/env bash
# Packages:  torch 2.15.0, onnx 1.23.2, MNN 3.6.1, numpy 2.4.6, CPU
# Expected:  attention with a Boolean mask and attention with the same mask as 0 and -inf export to graphs that the
#            same runtimes take.
# Seen:      torch's TorchScript exporter writes IsNaN for a Boolean mask (to turn rows without any key to 0), and
#            none for a mask of numbers. MNN has no IsNaN: its converter refuses the first graph and takes the second.
# Matters:   a module with a Boolean mask is exported well and cannot be converted; the message names IsNaN, which
#            nobody wrote.
# Source:    both graphs of one module. MNN's log client is switched off: otherwise the converter installs it with pip
#            and reports each run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 onnx==1.23.2 MNN==3.6.1 numpy==2.4.6
.venv/bin/python -W ignore - <<'EOF' | grep -E "^seen|Not Support"
import sys
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import nn

sys.modules["MNN.tools.utils.log"] = None
from MNN.tools import mnnconvert


class Attention(nn.Module):
    def forward(self, x, mask):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


mask = torch.ones(4, 4).tril().bool()
for name, m in (("Boolean", mask), ("numbers", torch.zeros(4, 4).masked_fill(~mask, -torch.inf))):
    torch.onnx.export(Attention(), (torch.ones(1, 2, 4, 8), m), "model.onnx", opset_version=18, dynamo=False)
    has_isnan = any(node.op_type == "IsNaN" for node in onnx.load("model.onnx").graph.node)
    made = Path("model.mnn")
    made.unlink(missing_ok=True)
    mnnconvert.convert(["", "-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", str(made), "--bizCode", "x"])
    print(f"\nseen: {name}: IsNaN in the graph {has_isnan}, converted {made.exists()}", flush=True)
    assert has_isnan == (name == "Boolean") and made.exists() == (name == "numbers"), "this has changed"
EOF
