#!/usr/bin/env bash
# Packages:  supervision 0.31.0, opencv-python-headless 5.0.0.93, numpy 2.4.6, CPU
# Expected:  a box that reaches a few pixels beyond its slice is clipped, or taken as it is: detectors that regress a
#            centre and a size give such boxes for objects that the border cuts.
# Seen:      InferenceSlicer warns that the callback may have run on the full image instead of the slice, and keeps
#            the boxes as they are, also where they reach beyond the image. Clipped in the callback, there is no
#            warning.
# Matters:   RT-DETR does not clip its boxes; who reads the warning looks for a mistake that is not there.
# Source:    a callback that uses its slice only.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv supervision==0.31.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
.venv/bin/python - <<'EOF'
import warnings

import numpy as np
import supervision

print("supervision", supervision.__version__)
for clip in (False, True):

    def detect(part, clip=clip):
        """Find one object at the lower right corner of a slice, 3 pixels too large."""
        height, width = part.shape[:2]
        corner = np.array([[width - 20.0, height - 20.0, width + 3.0, height + 3.0]])
        boxes = corner.clip(0, [width, height, width, height]) if clip else corner
        return supervision.Detections(xyxy=boxes, confidence=np.array([0.9]), class_id=np.array([0]))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        slicer = supervision.InferenceSlicer(callback=detect, slice_wh=80, overlap_wh=20)
        boxes = slicer(np.zeros((100, 150, 3), "uint8")).xyxy
    lines = [str(w.message).split(". ")[1] for w in caught if "full image" in str(w.message)]
    print(f"clipped by the callback: {clip}; largest x in 150 pixels: {boxes[:, 2].max():.0f}; warnings: {lines}")
    assert bool(lines) != clip and (boxes[:, 2].max() > 150) != clip, "this has changed"
EOF
