#!/usr/bin/env bash
# Packages:  ultralytics 8.4.190, pycocotools 2.0.11, torch 2.15.0, torchvision 0.29.2, CPU
# Expected:  the average precision of the same detections is the same in both, and 1 where all objects are found
#            first.
# Seen:      one object, found: 0.995 in Ultralytics, 1 in pycocotools. With false detections Ultralytics is lower,
#            too: it interpolates between the points of the precision-recall curve and integrates, where COCO takes
#            the mean of the highest precision at 101 recalls.
# Matters:   a table may not mix the two; differences of a few tenths of a point between papers can be the metric
#            alone.
# Source:    both libraries on the same matches; all boxes are exact or far away, so that every IoU threshold gives
#            the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv ultralytics==8.4.190 pycocotools==2.0.11 torch==2.15.0 torchvision==0.29.2
YOLO_CONFIG_DIR="$folder" YOLO_VERBOSE=false .venv/bin/python - <<'EOF' | grep -v Settings
import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.utils.metrics import ap_per_class


def coco_ap(hits, scores, objects):
    """Return COCO's AP of detections in one image of which some are exactly on an object."""
    boxes = [[100 * i, 0, 50, 50] for i in range(objects)]
    labels = [dict(id=i + 1, image_id=1, category_id=1, bbox=b, area=2500, iscrowd=0) for i, b in enumerate(boxes)]
    places = iter(boxes)
    found = [next(places) if hit else [100 * i, 300, 50, 50] for i, hit in enumerate(hits)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(info={}, images=[dict(id=1)], categories=[dict(id=1)], annotations=labels)
        truth.createIndex()
        results = [dict(image_id=1, category_id=1, bbox=b, score=s) for b, s in zip(found, scores)]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


for objects, hits in ((1, [1]), (2, [1, 0, 1]), (2, [1, 0, 0, 0, 1]), (2, [1, 0])):
    scores, classes = np.linspace(0.9, 0.5, len(hits)), np.zeros(len(hits))
    matches = np.repeat(np.array(hits, bool)[:, None], 10, 1)  # of ten IoU thresholds
    ultralytics = ap_per_class(matches, scores, classes, np.zeros(objects))[5].mean()
    coco = coco_ap(hits, scores, objects)
    print(f"{objects} object(s), detections {hits}: AP {ultralytics:.4f} in Ultralytics, {coco:.4f} in pycocotools")
    assert 0.004 < coco - ultralytics < 0.02, "this has changed"
EOF
