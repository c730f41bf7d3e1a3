"""Measure RT-DETR-R18 of this project against Hugging Face's `transformers`, with the same random weights.

    python -m _bench.transformers_peer SIDE MODE FOLDER    print the peak memory of one side in MiB

Both sides get the same images and objects. In inference ours is fused and in channels-last layout, as `yolo predict`
runs it on a CPU; in training both have their batch norms trained, the official loss and denoising.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _shared.peak_memory import ResidentSetGrowth, run_module
from _shared.timing import Times

NAME, SIZE, CLASSES, OBJECTS = "rtdetr-r18", 640, 80, 10
BATCH = {"inference": 1, "training": 2}
SIDES, MODES = ("transformers", "ours"), ("inference", "training")


def write_weights(folder: Path) -> None:
    """Write a model of random weights as a folder that both sides open."""
    from ultralytics.fork.export.convert_detector import write_hugging_face
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(0)
    write_hugging_face(RTDETRDetectionModel(f"{NAME}.yaml", nc=CLASSES, verbose=False).eval(), folder)


def make_step(side: str, mode: str, folder: Path) -> Callable[[], Any]:
    """Give a call that runs one image, or one training step without the optimiser's."""
    generator, batch = torch.Generator().manual_seed(0), BATCH[mode]
    image = torch.rand(batch, 3, SIZE, SIZE, generator=generator)
    boxes = torch.rand(batch, OBJECTS, 4, generator=generator) * 0.3 + 0.2
    classes = torch.randint(0, CLASSES, (batch, OBJECTS), generator=generator)
    if side == "transformers":
        from transformers import RTDetrForObjectDetection

        model: Any = RTDetrForObjectDetection.from_pretrained(folder)
        labels = [{"class_labels": c, "boxes": b} for c, b in zip(classes, boxes, strict=True)]
        compute = lambda: model(image, labels=labels).loss  # noqa: E731
    else:
        from ultralytics.fork.training.fast_kernels import use_fast_kernels
        from ultralytics.fork.training.norm_gradients import match_gradient_layout
        from ultralytics.fork.training.norm_recomputation import recompute_norms
        from ultralytics.nn.tasks import load_checkpoint

        model = load_checkpoint(folder)[0]
        model.nc, model.args = CLASSES, {"loss": "official"}
        model.requires_grad_(True)
        if mode == "training":
            use_fast_kernels(model, torch.device("cpu"))
            recompute_norms(model)
            match_gradient_layout(model)
        else:
            model.fuse(verbose=False).to(memory_format=torch.channels_last)
            image = image.contiguous(memory_format=torch.channels_last)
        objects = {"batch_idx": torch.arange(batch).repeat_interleave(OBJECTS), "cls": classes.view(-1, 1)}
        objects |= {"img": image, "bboxes": boxes.view(-1, 4)}
        compute = lambda: model(objects)[0].sum()  # noqa: E731

    def infer() -> Any:
        with torch.inference_mode():
            return model(image)

    def train() -> Any:
        model.zero_grad()
        compute().backward()

    model.train(mode == "training")
    return train if mode == "training" else infer


def measure_peers(rounds: int) -> list[dict]:
    """Measure processor time, in turn in one process, and peak memory, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder)
        for mode in MODES:
            steps = {side: make_step(side, mode, folder) for side in SIDES}
            samples: dict[str, list[float]] = {side: [] for side in SIDES}
            for i in range(rounds + 1):
                for side in SIDES if i % 2 else SIDES[::-1]:
                    began = time.process_time()
                    steps[side]()
                    if i:  # the first builds kernels and buffers
                        samples[side].append(time.process_time() - began)
            times = {side: Times(found) for side, found in samples.items()}
            del steps
            peaks = {side: float(run_module("_bench.transformers_peer", side, mode, name)) for side in SIDES}
            rows.append(
                {
                    "model": NAME,
                    "mode": mode,
                    "batch": BATCH[mode],
                    "ours s": times["ours"].median,
                    "transformers s": times["transformers"].median,
                    "of the time": times["ours"].over(times["transformers"]),
                    "ours MiB": peaks["ours"],
                    "transformers MiB": peaks["transformers"],
                    "of the memory": peaks["ours"] / peaks["transformers"],
                }
            )
    return rows


def main() -> None:
    """Print the peak memory of one side: weights, and two steps."""
    side, mode, folder = sys.argv[1:]
    make_step(side, mode, Path(folder))  # what is imported on the way is not of the model
    with ResidentSetGrowth() as grown:
        step = make_step(side, mode, Path(folder))
        for _ in range(2):
            step()
    print(grown())


if __name__ == "__main__":
    main()
