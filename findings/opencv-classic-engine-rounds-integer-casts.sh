#!/usr/bin/env bash
# Packages:  opencv-python-headless 5.0.0.93, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, CPU
# Expected:  ONNX's Cast to int64 drops the fraction: 1.75 becomes 1.
# Seen:      OpenCV's classic engine rounds to the nearest integer, without a word: 1.75 becomes 2. Its new engine,
#            and ONNX Runtime, drop the fraction.
# Matters:   indices that a graph computes (a position divided by a width, say) are wrong, and so is what is gathered
#            with them.
# Source:    ONNX's operator specification; compared with ONNX Runtime.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv opencv-python-headless==5.0.0.93 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
.venv/bin/python - <<'EOF'
import cv2
import numpy as np
import onnx
import onnxruntime
from onnx.parser import parse_model

text = """<ir_version: 8, opset_import: ["": 16]> g (float[1,4] x) => (float[1,4] y)
    { a = Cast<to = 7>(x) b = Add(a, a) y = Cast<to = 1>(b) }"""
onnx.save(parse_model(text), "model.onnx")
onnx.checker.check_model("model.onnx", full_check=True)
x = np.array([[0.25, 0.75, 1.25, 1.75]], "float32")
found = {"ONNX Runtime": onnxruntime.InferenceSession("model.onnx").run(None, {"x": x})[0]}
for name, engine in (("new", cv2.dnn.ENGINE_NEW), ("classic", cv2.dnn.ENGINE_CLASSIC)):
    net = cv2.dnn.readNetFromONNX("model.onnx", engine=engine)
    net.setInput(x)
    found[f"OpenCV {cv2.__version__}, {name} engine"] = net.forward()
for name, y in found.items():
    print(f"{name}: twice the integer parts of {x[0].tolist()} are {y[0].tolist()}")
    assert y[0].tolist() == ([0, 2, 2, 4] if "classic" in name else [0, 0, 2, 2]), "this has changed"
EOF
