"""Write an RT-DETR as an official file, as a Hugging Face folder, or as a folder of safetensors.

    uv run scripts/convert.py best.pt --to huggingface --out my-detector
    uv run scripts/convert.py best.pt --to official --out my-detector.pth
    uv run scripts/convert.py rtdetr_r18vd.pth --to safetensors --out my-detector

The model is a checkpoint of this project, an official file or a Hugging Face folder. What was written is opened again,
and kept only if it finds the same boxes and scores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from ultralytics.fork.errors import Refused, is_plain
from ultralytics.fork.export.convert_detector import read_image_size, write_hugging_face, write_official
from ultralytics.fork.export.safetensors_folder import read_own_folder, write_folder
from ultralytics.fork.pretrained.detectors import load_detector
from ultralytics.fork.rtdetr import find_head, get_head
from ultralytics.nn.tasks import load_checkpoint

SIZE = 160, 224  # of the image on which both models are compared
BOUND = 1e-5  # largest difference of a box's side, of the image, or of a score
WRITE = {"official": write_official, "huggingface": write_hugging_face, "safetensors": write_folder}


def convert(source: str, kind: str, out: Path) -> float:
    """Write a model in another form, and give the largest difference of what it finds.

    Args:
        source: The model.
        kind: `official`, `huggingface` or `safetensors`.
        out: The file or folder, which must not exist.

    Raises:
        Refused: If it exists, or the model has no such form.
    """
    if out.exists():
        raise Refused(f"{out} exists; name another --out")
    if (kind == "official") != (out.suffix == ".pth"):
        raise Refused(
            f"--out {out}: --to {kind} writes a {'file that ends in .pth' if kind == 'official' else 'folder'}"
        )
    model = load_checkpoint(source)[0].float().eval()
    if not find_head(model):
        raise Refused(f"{source} is not an RT-DETR")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        written = Path(scratch, out.name)
        if kind == "safetensors":
            written.mkdir()
        WRITE[kind](model, written, *([read_image_size(model)] if kind == "safetensors" else []))
        again, _ = (read_own_folder if kind == "safetensors" else load_detector)(written)
        difference = compare_models(model, again)
        if not difference <= BOUND:  # or not a number
            raise Refused(f"{source}: the written model differs by {difference:.1g}; nothing was kept")
        shutil.move(written, out)
    return difference


def compare_models(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """Give the largest difference of boxes and scores of two models, query by query, on an image of noise."""
    image = torch.rand(1, one.yaml.get("channels", 3), *SIZE, generator=torch.Generator().manual_seed(0))
    found = []
    with torch.no_grad():
        for model in (one, other):
            get_head(model).shapes = []
            _, (boxes, scores, *_) = model(image)
            found.append((boxes[-1], scores[-1].sigmoid()))
    return float(torch.stack([(a - b).abs().max() for a, b in zip(*found, strict=True)]).max())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint (.pt), official file (.pth), folder, or hf/ORGANISATION/NAME")
    parser.add_argument("--to", required=True, choices=sorted(WRITE), help="what to write")
    parser.add_argument("--out", required=True, type=Path, help="file (.pth) or folder to write")
    args = parser.parse_args()
    try:
        difference = convert(args.model, args.to, args.out)
    except (OSError, ValueError, TypeError) as e:
        if isinstance(e, OSError) or is_plain(e):
            sys.exit(f"convert.py: {e}")
        raise
    print(f"{args.out}: the same boxes and scores (largest difference {difference:.1g})")


if __name__ == "__main__":
    main()
