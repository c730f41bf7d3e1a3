"""Try a backbone of timm in a small RT-DETR: build, train, save, fuse, export."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _shared.flops import count_gflops
from ultralytics import RTDETR
from ultralytics.nn.AddModules.Timm import Timm
from ultralytics.nn.tasks import RTDETRDetectionModel, yaml_model_load
from ultralytics.utils.export.engine import best_onnx_opset

MODEL = "rtdetr-tiny-timm.yaml"
SIZES = (640, 640), (480, 640)  # pixels, of the training steps
SMALL = 320, 320  # pixels, of the image for which maps are compared
BOUND = 1e-3  # largest difference of a saved, fused or exported backbone's maps, of their largest value
OBJECTS = 5  # an image


@dataclass
class Trial:
    """What was tried, and what came of it."""

    name: str
    parameters: int = 0  # of the backbone, as built
    gflops: float = 0.0  # of the backbone for an image of 640 x 640
    strides: tuple[int, ...] = ()  # of its own maps
    size: str = ""  # which images it takes
    errors: dict[str, str] = field(default_factory=dict)  # by step

    @property
    def works(self) -> bool:
        """Whether each step worked."""
        return not self.errors


def try_backbone(name: str, export: bool = True) -> Trial:
    """Try a model of timm, with random weights.

    Args:
        name: Of the model.
        export: Whether to export it to ONNX, too, and compare the maps.
    """
    trial = Trial(name)
    model = attempt(trial, "build", lambda: build(name, SIZES[0]))
    if model is None:
        return trial
    backbone = model.model[0]
    trial.parameters = sum(p.numel() for p in backbone.parameters())
    trial.strides = tuple(backbone.places)
    trial.size = describe_size(backbone)
    trial.gflops = attempt(trial, "count", count_operations, backbone) or 0.0
    for size in SIZES:
        model = model if size == SIZES[0] or not backbone.fixed_size else attempt(trial, "build", build, name, size)
        if model is not None:
            attempt(trial, f"train at {size[0]}x{size[1]}", train_step, model, size)
    model = attempt(trial, "build", build, name, SMALL)
    if model is not None:
        attempt(trial, "save", save_and_open, model)
        attempt(trial, "fuse", fuse, model)
        if export:
            attempt(trial, "export", export_to_onnx, model)
    return trial


def attempt(trial: Trial, step: str, function: Callable, *args: Any) -> Any:
    """Call a function; note what it raises as the error of a step."""
    try:
        return function(*args)
    except Exception as e:
        trial.errors[step] = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        return None


def build(name: str, size: tuple[int, int]) -> RTDETRDetectionModel:
    """Build the detector on a backbone, for a size of images."""
    torch.manual_seed(0)
    rows = copy.deepcopy(yaml_model_load(MODEL))
    rows["backbone"][0][3] = [name, {"img_size": list(size)}]
    model = RTDETRDetectionModel(rows, nc=3, verbose=False)
    model.nc, model.args = 3, {}
    return model


def count_operations(backbone: Timm) -> float:
    """Count the GFLOPs of a backbone for an image of 640 x 640."""
    return count_gflops(copy.deepcopy(backbone).requires_grad_(False))  # a gradient would need its function counted


def describe_size(backbone: Timm) -> str:
    """Say which images a backbone takes."""
    if backbone.image_size:
        return f"any, resized to {backbone.image_size[0]}x{backbone.image_size[1]}"
    if backbone.fixed_size:
        return "the one that it is built for"
    return "any" if backbone.scale == 1 else f"any, scaled by {backbone.scale:g}"


def train_step(model: Any, size: tuple[int, int]) -> None:
    """Do one step; raise an error if the loss is not finite, or a parameter of the backbone gets no gradient."""
    model.train()
    torch.manual_seed(0)
    batch = {
        "img": torch.rand(2, 3, *size),
        "batch_idx": torch.arange(2).repeat_interleave(OBJECTS),
        "cls": torch.randint(0, 3, (2 * OBJECTS, 1)).float(),
        "bboxes": torch.rand(2 * OBJECTS, 4) * 0.4 + 0.3,
    }
    parameters = list(model.parameters())
    optimiser = torch.optim.SGD(parameters, lr=1e-4)
    loss = model(batch)[0].sum()
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise ArithmeticError(f"loss {loss.item()}, norm of the gradient {norm.item()}")
    optimiser.step()
    idle = [name for name, p in model.model[0].named_parameters() if p.grad is None]
    model.zero_grad(set_to_none=True)
    if idle:
        raise ArithmeticError(f"no gradient for {len(idle)} parameters of the backbone: {', '.join(idle[:4])}")


def find_maps(model: Any, image: torch.Tensor) -> list[torch.Tensor]:
    """Run the backbone of a model for inference, and give its maps."""
    model.eval()
    with torch.no_grad():
        return [x for x in model.model[0](image) if x is not None]


def save_and_open(model: Any) -> None:
    """Save a checkpoint, and open it as another process would."""
    image = torch.rand(1, 3, *SMALL)
    before = find_maps(copy.deepcopy(model), image)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt")
        torch.save({"model": model, "train_args": {}}, file)
        compare(find_maps(RTDETR(file).model.float(), image), before)


def fuse(model: Any) -> None:
    """Fuse the model; raise an error if it finds something else."""
    image = torch.rand(1, 3, *SMALL)
    for m in model.modules():  # statistics as training leaves them
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.1, 0.1)
            m.running_var.uniform_(0.8, 1.2)
    before = find_maps(model, image)
    compare(find_maps(model.fuse(verbose=False), image), before)


def export_to_onnx(model: Any) -> None:
    """Export the backbone to ONNX for one size, and run it; raise an error if its maps differ."""
    import onnx
    import onnxruntime

    image, backbone = torch.rand(1, 3, *SMALL), model.model[0]
    backbone.set_image_size(*SMALL)  # as `yolo export` does
    expected = find_maps(model, image)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        with discard_output():
            torch.onnx.export(Maps(backbone), (image,), str(file), opset_version=best_onnx_opset(onnx), dynamo=False)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    compare([torch.from_numpy(x) for x in found], expected)


class Maps(nn.Module):
    """A backbone that gives the maps that are built, and nothing for the others."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (B, 3, H, W) to the maps."""
        return [m for m in self.backbone(x) if m is not None]


@contextlib.contextmanager
def discard_output() -> Iterator[None]:
    """Discard what this process writes to its output, also from C++: torch prints whole graphs with its errors."""
    before = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def compare(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Raise an error if maps differ by more than a share of their largest value."""
    differences = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)]
    if not max(differences) <= BOUND:
        raise ArithmeticError(f"maps differ by {max(differences):.2g} of their largest value")
