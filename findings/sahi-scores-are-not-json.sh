#!/usr/bin/env bash
# Packages:  sahi 0.12.8, torch 2.15.0, torchvision 0.29.2, opencv-python-headless 5.0.0.93, numpy 2.4.6, CPU
# Expected:  `to_coco_predictions()` gives what a COCO results file holds: a list that json.dump writes.
# Seen:      scores are numpy.float32, which json refuses. Boxes and categories are Python's numbers.
# Matters:   the results of sliced prediction need `float(score)` before they can be evaluated with pycocotools.
# Source:    SAHI's own adapter of torchvision's Faster R-CNN, without trained weights, on an empty image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv sahi==0.12.8 torch==2.15.0 torchvision==0.29.2 opencv-python-headless==5.0.0.93 numpy==2.4.6
.venv/bin/python - <<'EOF'
import json
from importlib.metadata import version

import numpy as np
import torch
from sahi import AutoDetectionModel
from sahi.predict import get_prediction
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

torch.manual_seed(0)
network = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
names = {"0": "none", "1": "cat", "2": "dog"}
options = {"confidence_threshold": 0.0, "device": "cpu", "category_mapping": names}
model = AutoDetectionModel.from_pretrained(model_type="torchvision", model=network, **options)
detections = get_prediction(np.zeros((64, 64, 3), "uint8"), model).to_coco_predictions(image_id=1)
print("sahi", version("sahi"), {key: type(value).__name__ for key, value in detections[0].items()})
try:
    json.dumps(detections)
except TypeError as e:
    print("json:", e)
else:
    raise SystemExit("json takes them now")
EOF
