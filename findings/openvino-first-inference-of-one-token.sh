#!/usr/bin/env bash
# Packages:  openvino 2026.4.1, numpy 2.4.6, CPU
# Expected:  the result of an inference does not depend on the inferences before it.
# Seen:      a model of one ScaledDotProductAttention of any length: if its first inference has one token, all later
#            ones of many tokens are wrong (here off by more than 1, values are below 4). If the first one has two
#            tokens, all are right. How many are "many" depends on the processor: 8 with AVX2, 16 with AVX-512.
# Matters:   a detector of any size whose first image is so small that its smallest map is one pixel.
# Source:    compared with softmax(Q K^T / sqrt(d)) V in numpy. Installed without openvino-telemetry: nothing is sent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv --no-deps openvino==2026.4.1 numpy==2.4.6
.venv/bin/python - <<'EOF'
import numpy as np
import openvino as ov
from openvino import opset13 as op

rng = np.random.default_rng(0)


def error(model, tokens):
    """Return the largest difference of one inference from attention computed in numpy."""
    q, k, v = (rng.normal(size=(1, 4, tokens, 16)).astype("float32") for _ in range(3))
    weights = np.exp(q @ k.swapaxes(2, 3) / 4)
    return np.abs(model([q, k, v])[0] - weights / weights.sum(-1, keepdims=True) @ v).max()


print("openvino", ov.__version__)
errors = {}
for first in (1, 2):
    q, k, v = (op.parameter([1, 4, -1, 16], ov.Type.f32) for _ in range(3))
    graph = ov.Model([op.scaled_dot_product_attention(q, k, v)], [q, k, v])
    model = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    errors[first] = [error(model, tokens) for tokens in (first, 4, 64, 64)]
    print(f"first inference of {first} token(s), then of 4, 64, 64: errors", *(f"{e:.1e}" for e in errors[first]))
assert max(errors[2]) < 1e-5, "after two tokens: wrong now"
assert min(errors[1][2:]) > 1, "after one token: right now"
EOF
