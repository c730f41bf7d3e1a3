"""Build models with the ultralytics that is on the path, and print what they are: one JSON object a line.

`build_models.py` runs this inside a release's own environment, on a patched tree and on the untouched one.

    python model_probe.py shipped rtdetr-l-FLA.yaml …    our models: parameters; for tiny ones a forward and a backward
    python model_probe.py vanilla yolov8n.yaml …         upstream's models: a fingerprint
"""

from __future__ import annotations

import hashlib
import json
import sys

print(
    "PROBE" + json.dumps({"name": "started"}), flush=True
)  # so that a failure from here on is not taken for one of uv's

import torch  # noqa: E402

import ultralytics  # noqa: E402
from ultralytics import RTDETR, YOLO  # noqa: E402


def build_shipped_model(name: str) -> dict:
    """Build one of this project's models by the bare name of its file, as a user would."""
    model = RTDETR(name).model
    found = {"parameters": sum(p.numel() for p in model.parameters())}
    if "tiny" in name:
        found |= run_passes(model)
    return found


def run_passes(model: torch.nn.Module) -> dict:
    """Run a model in eval mode, plain and fused, and take the gradients of a training loss."""
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        plain = model.eval()(image)[0]
    model.nc = model.yaml["nc"]
    batch = {
        "img": image,
        "batch_idx": torch.tensor([0.0, 1, 1]),
        "cls": torch.tensor([[0.0], [1], [2]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.1, 0.2]]),
    }
    loss, _ = model.train()(batch)
    loss.sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        fused = model.eval().fuse(verbose=False)(image)[0]
    return {
        "output": bool(plain.isfinite().all() and plain.shape[0] == 2),
        "loss": bool(loss.isfinite().all()),
        "without gradient": without,
        "fused": bool(fused.shape == plain.shape and fused.isfinite().all()),
    }


def fingerprint_vanilla_model(name: str) -> dict:
    """Build one of upstream's models from a fixed seed; hash its parameters and an output."""
    model = (RTDETR if "rtdetr" in name else YOLO)(name).model.eval()
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    with torch.no_grad():
        output = model(torch.rand(1, 3, 128, 192))  # 504 tokens: earlier RT-DETRs fail for fewer than their queries
    while isinstance(output, (tuple, list)):
        output = output[0]
    output = output if isinstance(output, torch.Tensor) else next(iter(output.values()))
    digest.update(output.contiguous().numpy().tobytes())
    rows = [[m.i, m.f, m.type, m.np] for m in model.model]
    return {"class": type(model).__name__, "sha256": digest.hexdigest(), "save": sorted(model.save), "rows": rows}


def main() -> None:
    """Print what was imported, then a line for each model."""
    kind, *names = sys.argv[1:]
    torch.set_num_threads(1)  # so that both sides add in the same order
    print("PROBE" + json.dumps({"file": ultralytics.__file__, "version": ultralytics.__version__}), flush=True)
    for name in names:
        torch.manual_seed(3)
        try:
            found = build_shipped_model(name) if kind == "shipped" else fingerprint_vanilla_model(name)
        except Exception as e:  # any error is a result
            found = {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
        print("PROBE" + json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    main()
