#!/usr/bin/env bash
# Packages:  ultralytics 8.3.200, torch 2.15.0, CPU
# Expected:  YOLO("net50m.yaml") builds the model in net50m.yaml.
# Seen:      where a net50.yaml lies beside it, that one is built, without a word: n, s, m, l or x behind a number is taken
#            for a scale, whatever the file is called. Later releases look for the file that is named first.
# Matters:   a paper's R50 and R50-m are two models; a study of both trains the same one twice.
# Source:    two files that differ in one row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv ultralytics==8.3.200 torch==2.15.0
YOLO_CONFIG_DIR="$folder" YOLO_OFFLINE=true .venv/bin/python - <<'EOF'
from pathlib import Path

import ultralytics
from ultralytics import YOLO

text = "nc: 3\nbackbone:\n  - [-1, 1, Conv, [{}, 3, 2]]\nhead:\n  - [[0], 1, Detect, [nc]]\n"
Path("net50.yaml").write_text(text.format(16))
Path("net50m.yaml").write_text(text.format(32))
print("ultralytics", ultralytics.__version__)
for name, channels in (("net50.yaml", 16), ("net50m.yaml", 16)):  # the second file says 32
    built = YOLO(name, task="detect").model.model[0].conv.out_channels
    print(f"{name}: {built} channels; the file says {Path(name).read_text().split('[[')[0].split('Conv, [')[1][:2]}")
    assert built == channels, "this has changed"
EOF
