#!/usr/bin/env bash
# Packages:  transformers 5.24.0, torch 2.15.0, safetensors 0.8.0, CPU
# Expected:  the names in `model.state_dict()` are those in the file that `save_pretrained` writes.
# Seen:      for RT-DETR, 22 of the names differ: `mlp.fc1` is `fc1` in the file, `o_proj` is `out_proj`, `encoder.aifi`
#            is `encoder.encoder`. Only `from_pretrained` translates; `load_state_dict` of the file's tensors fails.
# Matters:   a state dict that somebody saves with torch.save, and the file of the same model, need two tables of names;
#            a reader of weights that knows the published files alone finds no feed-forward layer in the first.
# Source:    the keys of both, side by side.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv transformers==5.24.0 torch==2.15.0 safetensors==0.8.0
HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1 .venv/bin/python - <<'EOF'
import transformers
from safetensors.torch import load_file

backbone = transformers.RTDetrResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
)
config = transformers.RTDetrConfig(
    backbone_config=backbone, encoder_in_channels=[16, 24, 32], d_model=32, encoder_hidden_dim=32, decoder_layers=1,
    decoder_in_channels=[32] * 3,
)
model = transformers.RTDetrForObjectDetection(config)
model.save_pretrained("folder")
memory, file = set(model.state_dict()), set(load_file("folder/model.safetensors"))
print("transformers", transformers.__version__)
print(f"{len(memory)} names in memory, {len(file)} in the file, {len(memory - file)} of them differ, such as")
print(" in memory:", *[name for name in sorted(memory - file) if "decoder.layers" in name][:3], sep="\n  ")
print(" in the file:", *[name for name in sorted(file - memory) if "decoder.layers" in name][:3], sep="\n  ")
assert len(memory) == len(file) and len(memory - file) == 22, "this has changed"
try:
    model.load_state_dict(load_file("folder/model.safetensors"))
except RuntimeError as e:
    print("load_state_dict of the file:", str(e).split(":")[0])
else:
    raise SystemExit("this has changed: load_state_dict takes the file's names")
EOF
