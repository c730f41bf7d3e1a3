"""Measure a trained RT-DETR at each number of decoder layers, and with fewer queries: latency and mAP."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch

from _shared.module_calls import make_call
from _shared.progress import Progress
from _shared.timing import time_in_turn
from ultralytics import RTDETR, YOLO
from ultralytics.fork import decoder_size
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import LOGGER

HOW_TO_TRAIN = "yolo train cfg=scratch.yaml model=rtdetr-tiny-FLA.yaml data=shapes.yaml"


def list_choices(layers: int, queries: int) -> list[dict[str, int]]:
    """List the sizes: each number of layers, all first, then all layers with 1/2, 1/4 and 1/8 of the queries."""
    depths = [(k, queries) for k in range(layers, 0, -1)]
    fewer = [(layers, queries // part) for part in (2, 4, 8) if queries >= part]
    return [dict(zip(decoder_size.ARGUMENTS, choice)) for choice in depths + fewer]


def measure_depths(
    file: str, data: str, size: int | None, device: torch.device, options: dict, rounds: int, seconds: float
) -> dict:
    """Time a checkpoint's model on one image, fused as `yolo predict` runs it, and validate it, at each size.

    Args:
        file: A checkpoint of an RT-DETR.
        data: The data set's YAML, whose split `val` gives the mAP, in fp32.
        size: Side of the images in pixels; None for the one that the model was trained with.
        device: Where the model runs.
        options: How the timed model runs: autocast and compilation.
        rounds: Samples of each choice.
        seconds: For all samples together.

    Raises:
        RuntimeError: If the checkpoint is not an RT-DETR.
    """
    model = YOLO(file)  # an RTDETR if the head is one
    if not isinstance(model, RTDETR):
        raise RuntimeError(f"{file} is not an RT-DETR, and only RT-DETR has decoder layers to choose")
    size = size or model.overrides["imgsz"]
    found = list_choices(*decoder_size.decoder_metadata(model.model).values())
    rows, calls = [], {}
    with Progress("depth", 1 + len(found)) as progress, tempfile.TemporaryDirectory() as folder:
        fused = AutoBackend(file, device=device, verbose=False).backend.model
        x = torch.rand(1, 3, size, size, device=device)
        for i, chosen in enumerate(found):
            short = decoder_size.shorten(fused, chosen)
            rows.append({**chosen, "parameters": sum(p.numel() for p in short.parameters())})
            short = torch.compile(short) if options["compile"] else short
            calls[i] = make_call(short, x, "inference", options["autocast"])
        times = time_in_turn(calls, device, rounds, seconds)
        progress.step("latency")
        level = LOGGER.level
        LOGGER.setLevel(logging.ERROR)  # a validation prints a page
        try:
            for i, (row, chosen) in enumerate(zip(rows, found)):
                where = {"data": data, "imgsz": size, "device": str(device), "project": folder, "plots": False}
                box = model.val(**where, **chosen).box
                row |= {"ms": 1e3 * times[i].median, "spread": times[i].spread, "over_whole": times[i].over(times[0])}
                row |= {"mAP50": float(box.map50), "mAP50-95": float(box.map)}
                progress.step(decoder_size.format_arguments(chosen))
        finally:
            LOGGER.setLevel(level)
    name = Path(model.model.yaml.get("yaml_file", file)).stem
    return {"model": name, "data": Path(data).stem, "imgsz": size, "rows": rows}
