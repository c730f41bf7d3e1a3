#!/usr/bin/env bash
# Packages:  timm 1.0.31, torch 2.15.0, torchvision 0.29.2, numpy 2.4.6, CPU
# Expected:  a local file of weights that a caller names is loaded, or an error says why not.
# Seen:      `pretrained_cfg_overlay={"file": path}` loads the file with pretrained=True. With pretrained=False it
#            loads nothing and says nothing, even where the file does not exist. `checkpoint_path=path`, the other
#            way, loads into a whole model, but with features_only=True it raises for the file of the same model, as
#            its keys have other names there.
# Matters:   who wants "my file, no download" writes pretrained=False, and trains from random weights.
# Source:    the weights of a model saved and loaded by timm itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
.venv/bin/python - <<'EOF'
import timm
import torch

name = "convnext_atto"
source = timm.create_model(name)
torch.save(source.state_dict(), "weights.pth")


def load(**options):
    """Return whether a backbone's first layer has the file's weights, or the error."""
    try:
        model = timm.create_model(name, features_only=True, **options)
    except RuntimeError as e:
        return f"raises: {str(e).splitlines()[0]}"
    return f"loaded: {torch.equal(model.stem_0.weight, source.stem[0].weight)}"


print("timm", timm.__version__)
overlay, missing = {"file": "weights.pth"}, {"file": "missing.pth"}
results = [
    load(pretrained=True, pretrained_cfg_overlay=overlay),
    load(pretrained=False, pretrained_cfg_overlay=overlay),
    load(pretrained=False, pretrained_cfg_overlay=missing),
    load(checkpoint_path="weights.pth"),
]
ways = ["pretrained=True, overlay", "pretrained=False, overlay", "pretrained=False, no such file", "checkpoint_path"]
for way, result in zip(ways, results):
    print(f"{way}: {result}")
assert [r.partition(" ")[0] for r in results] == ["loaded:"] * 3 + ["raises:"], "this has changed"
assert results[:3] == ["loaded: True", "loaded: False", "loaded: False"], "this has changed"
EOF
