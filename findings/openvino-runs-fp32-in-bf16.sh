#!/usr/bin/env bash
# Packages:  openvino 2026.4.1, numpy 2.4.6, CPU
# Expected:  a model whose every tensor is fp32 runs in fp32 unless the user asks for less.
# Seen:      where the processor has bf16 (AVX-512 BF16, AMX), the default is bf16: the error of a matrix product is
#            some thousand times larger. INFERENCE_PRECISION_HINT=f32 gives fp32 back.
# Matters:   the same file gives other detections on another processor.
# Source:    compared with float64 in numpy. On a processor without bf16 the script says so and checks nothing more
#            than that the default is f32 there. Installed without openvino-telemetry: nothing is sent.
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
x, weight = (rng.normal(size=(64, 64)).astype("float32") for _ in range(2))
exact = x.astype("float64") @ weight.astype("float64")


def run(**options):
    """Return the precision in which a matrix product runs, and its largest error."""
    node = op.parameter([64, 64], ov.Type.f32)
    graph = ov.Model([op.matmul(node, op.constant(weight), False, False)], [node])
    model = ov.Core().compile_model(graph, "CPU", options)
    return model.get_property("INFERENCE_PRECISION_HINT").to_string(), np.abs(model([x])[0] - exact).max()


print("openvino", ov.__version__, *ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
default, asked = run(), run(INFERENCE_PRECISION_HINT="f32")
print("default:        ", *default)
print("f32 asked for:  ", *asked)
assert asked[0] == "f32" and asked[1] < 1e-4, "f32 is not exact now"
if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    assert default[0] == "bf16" and default[1] > 1e-2, "the default is not bf16 now"
else:
    print("this processor has no bf16: nothing to see here")
    assert default[0] == "f32"
EOF
