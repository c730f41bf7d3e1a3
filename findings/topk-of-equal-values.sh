#!/usr/bin/env bash
# Packages:  torch 2.15.0, onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, opencv-python-headless 5.0.0.93, MNN
#            3.6.1, numpy 2.4.6, CPU
# Expected:  ONNX's TopK takes of equal values the one with the lower index first.
# Seen:      ONNX Runtime and OpenCV do. OpenVINO and MNN give the right set in another order. torch, which promises
#            nothing, takes another set.
# Matters:   a detector that chooses its queries by top-k gives its boxes in another order, or other boxes, where
#            scores are equal, as they are in flat images and after rounding to half precision.
# Source:    ONNX's operator specification; compared with a stable sort in numpy. Installed without openvino-telemetry
#            and with MNN's log client switched off: nothing is sent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv torch==2.15.0 onnx==1.23.2 onnxruntime==1.32.0 MNN==3.6.1 numpy==2.4.6
uv pip install -q -p .venv --no-deps openvino==2026.4.1 opencv-python-headless==5.0.0.93
.venv/bin/python - <<'EOF' | grep ^seen
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnx.parser import parse_model

sys.modules["MNN.tools.utils.log"] = None
import MNN
from MNN.tools import mnnconvert

x = np.random.default_rng(0).integers(0, 4, (1, 300)).astype("float32")
text = """<ir_version: 9, opset_import: ["": 17]> g (float[1,300] x) => (float[1,20] v, int64[1,20] i)
    <int64[1] k = {20}> { v, i = TopK(x, k) }"""
onnx.save(parse_model(text), "model.onnx")
mnnconvert.convert(["", "-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn", "--bizCode", "x"])
in_mnn = MNN.nn.load_module_from_file("model.mnn", ["x"], ["i"]).forward([MNN.expr.const(x, [1, 300], MNN.expr.NCHW)])
in_cv2 = cv2.dnn.readNetFromONNX("model.onnx")
in_cv2.setInput(x)
indices = {
    "ONNX Runtime": onnxruntime.InferenceSession("model.onnx").run(["i"], {"x": x})[0],
    "OpenCV": in_cv2.forward(["v", "i"])[1],
    "OpenVINO": openvino.Core().compile_model("model.onnx", "CPU")([x])["i"],
    "MNN": in_mnn[0].read(),
    "torch": torch.from_numpy(x).topk(20).indices.numpy(),
}
expected = np.argsort(-x[0], kind="stable")[:20].tolist()
right = {"ONNX Runtime": "same order", "OpenCV": "same order", "OpenVINO": "same set", "MNN": "same set"}
for name, i in indices.items():
    i = np.ravel(i).tolist()
    found = "same order" if i == expected else "same set" if sorted(i) == sorted(expected) else "another set"
    print(f"\nseen: {name}: {found}, begins with {i[:6]}; expected {expected[:6]}", flush=True)
    assert found == right.get(name, "another set"), "this has changed"
EOF
