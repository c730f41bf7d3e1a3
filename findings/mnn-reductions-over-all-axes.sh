#!/usr/bin/env bash
# Packages:  MNN 3.6.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6
# Expected:  ONNX's reductions reduce the axes that the graph names, by an attribute before opset 18, by an input
#            since.
# Seen:      MNN's converter takes ReduceL1, L2, SumSquare, LogSum and LogSumExp of opset 18 for reductions over all
#            axes, without a word. ReduceSum, Mean, Max and Prod of opset 18, and all of opset 13, are right.
# Matters:   torch's exporters write a norm (`x.norm(dim=-1)`) as ReduceL2.
# Source:    ONNX's operator specification; compared with ONNX Runtime. MNN's log client is switched off: otherwise
#            the converter installs it with pip and reports each run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv MNN==3.6.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
.venv/bin/python - <<'EOF' | grep ^seen
import sys

import numpy as np
import onnx
import onnxruntime
from onnx.parser import parse_model

sys.modules["MNN.tools.utils.log"] = None
import MNN
from MNN.tools import mnnconvert

x = np.random.default_rng(0).uniform(1, 2, (1, 2, 3, 4)).astype("float32")


def reduce_in_mnn(name, opset):
    """Return the shape of a reduction over the last axis, and whether it equals ONNX Runtime's."""
    by_input = opset >= 18 or name == "ReduceSum"
    call = f"{name}<keepdims = 1>(x, axes)" if by_input else f"{name}<axes = [-1], keepdims = 1>(x)"
    axes = "<int64[1] axes = {-1}>" if by_input else ""
    ends = "(float[1,2,3,4] x) => (float[1,2,3,1] y)"
    onnx.save(parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {ends} {axes} {{ y = {call} }}'), "m.onnx")
    onnx.checker.check_model("m.onnx", full_check=True)
    mnnconvert.convert(["", "-f", "ONNX", "--modelFile", "m.onnx", "--MNNModel", "m.mnn", "--bizCode", "x"])
    net = MNN.nn.load_module_from_file("m.mnn", ["x"], ["y"])
    y = np.array(net.forward([MNN.expr.const(x, list(x.shape), MNN.expr.NCHW)])[0].read())
    expected = onnxruntime.InferenceSession("m.onnx").run(None, {"x": x})[0]
    return y.shape, y.shape == expected.shape and np.allclose(y, expected, atol=1e-5)


wrong = ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"]
for name in [*wrong, "ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd"]:
    (old, old_right), (new, new_right) = reduce_in_mnn(name, 13), reduce_in_mnn(name, 18)
    print(f"\nseen: {name} of (1, 2, 3, 4) over axis -1: opset 13 {old}, opset 18 {new}", flush=True)
    assert old_right and new_right == (name not in wrong), "this has changed"
EOF
