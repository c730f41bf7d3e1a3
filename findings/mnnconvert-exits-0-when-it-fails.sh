#!/usr/bin/env bash
# Packages:  MNN 3.6.1, onnx 1.23.2
# Expected:  a converter that converted nothing exits with another status than 0.
# Seen:      for a valid model with an operator that MNN lacks (Hardmax), `mnnconvert` prints "Converted Failed!" and
#            exits 0. An older model with the output's name stays as it was: a script takes it for the new one.
# Matters:   a caller must delete the output first, and look whether it is there afterwards.
# Source:    the command's entry point, called with MNN's log client switched off: otherwise the command installs it
#            with pip, into the environment to which the first `pip` on PATH belongs, and reports each run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv MNN==3.6.1 onnx==1.23.2
.venv/bin/python - <<'EOF'
import onnx
from onnx.parser import parse_model

text = '<ir_version: 9, opset_import: ["": 18]> g (float[4,4] x) => (float[4,4] y) { y = Hardmax(x) }'
onnx.save(parse_model(text), "model.onnx")
onnx.checker.check_model("model.onnx", full_check=True)
EOF
echo "the model of last week" >model.mnn
status=0
.venv/bin/python - -f ONNX --modelFile model.onnx --MNNModel model.mnn --bizCode x >log <<'EOF' || status=$?
import sys

sys.modules["MNN.tools.utils.log"] = None
from MNN.tools.mnnconvert import main

sys.exit(main())
EOF
grep "Failed" log
echo "exit status $status; model.mnn holds: $(cat model.mnn)"
[ "$status" = 0 ] || exit 1
[ "$(cat model.mnn)" = "the model of last week" ]
