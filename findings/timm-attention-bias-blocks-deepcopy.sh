#!/usr/bin/env bash
# Packages:  timm 1.0.31, torch 2.15.0, torchvision 0.29.2, CPU
# Expected:  a model in eval mode can be copied after a forward as before it.
# Seen:      tiny_vit, levit, efficientformer and efficientvit_m0 keep their attention biases of the last eval
#            forward. If that ran with gradients enabled, copy.deepcopy raises: the kept tensors have a history. After
#            a forward under no_grad it works, and so does any model that keeps nothing.
# Matters:   whatever copies a model for an average of its weights, an export or a checkpoint fails because of an
#            earlier forward elsewhere.
# Source:    timm's models made without weights, on one image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv timm==1.0.31 torch==2.15.0 torchvision==0.29.2
.venv/bin/python - <<'EOF'
import copy

import timm
import torch


def can_copy(name, grad):
    """Whether a model can be copied after one forward in eval mode."""
    model = timm.create_model(name).eval()
    with torch.set_grad_enabled(grad):
        model(torch.zeros(1, 3, 224, 224))
    try:
        copy.deepcopy(model)
    except RuntimeError as e:
        print("   ", str(e).split(".")[0])
        return False
    return True


print("timm", timm.__version__)
kept = ["tiny_vit_5m_224", "levit_128s", "efficientformer_l1", "efficientvit_m0"]
for name in [*kept, "deit_tiny_patch16_224"]:
    with_grad, without = can_copy(name, True), can_copy(name, False)
    print(f"{name}: copied after a forward with gradients {with_grad}, without {without}")
    assert without and with_grad == (name not in kept), "this has changed"
EOF
