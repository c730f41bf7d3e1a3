#!/usr/bin/env bash
# Packages:  timm 1.0.31, torch 2.15.0, torchvision 0.29.2, CPU
# Expected:  with features_only=True a map has the image's sides divided by the reduction that feature_info gives.
# Seen:      at 480 x 640 the last map of mobilevitv2 is 16 x 20, where reduction 32 means 15 x 20: its blocks resize
#            maps of an odd side to the next even one, and do not resize back. The image is a multiple of 32 in both
#            sides. mobilevit (the first version) resizes back.
# Matters:   a neck that adds or concatenates maps by their strides, or a decoder that makes anchors from them.
# Source:    feature_info of the same model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv timm==1.0.31 torch==2.15.0 torchvision==0.29.2
.venv/bin/python - <<'EOF'
import timm
import torch

print("timm", timm.__version__)
sizes = {}
for name in ("mobilevit_xxs", "mobilevitv2_050"):
    model = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        last = model(torch.zeros(1, 3, 480, 640))[-1]
    sizes[name] = tuple(last.shape[2:])
    print(f"{name}: reduction {model.feature_info.reduction()[-1]}, last map of a 480 x 640 image {sizes[name]}")
assert sizes == {"mobilevit_xxs": (15, 20), "mobilevitv2_050": (16, 20)}, "this has changed"
EOF
