"""Denoising queries of the global batch: drawn once for all processes, and each process takes its share.

How many groups of queries there are, and how many queries each has, depends on the image with most boxes.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ultralytics.fork.distributed.elastic_launch import device_module, gather_values
from ultralytics.fork.distributed.global_batch import shared_step
from ultralytics.utils import RANK


def draw_for_global_batch(get_cdn_group: Callable, *args: Any, **kwargs: Any) -> tuple:
    """Call upstream's `get_cdn_group` for the global batch in a shared step, as it is elsewhere.

    All processes draw the noise that the first one draws.
    """
    call = inspect.signature(get_cdn_group).bind(*args, **kwargs)
    call.apply_defaults()
    batch, training = call.arguments["batch"], call.arguments["training"]
    if not (shared_step.is_active and training and batch is not None):
        return get_cdn_group(*args, **kwargs)
    device = batch["bboxes"].device
    parts = gather_values((batch["gt_groups"], batch["cls"].cpu(), batch["bboxes"].cpu(), generator_states(device)))
    groups, cls, bboxes, states = zip(*parts)
    counts = torch.tensor(list(itertools.chain.from_iterable(groups)))  # boxes of each image
    call.arguments["batch"] = {
        "gt_groups": counts.tolist(),
        "cls": torch.cat(cls).to(device),
        "bboxes": torch.cat(bboxes).to(device),
        "batch_idx": torch.arange(len(counts)).repeat_interleave(counts).to(device),
    }
    with use_generator_states(states[0], device):
        embeddings, boxes, mask, meta = get_cdn_group(*call.args, **call.kwargs)
    if meta is None:
        return embeddings, boxes, mask, meta
    before = groups[:RANK]
    begin = sum(map(len, before))
    images, first_box = slice(begin, begin + len(batch["gt_groups"])), sum(map(sum, before))
    meta["dn_pos_idx"] = meta["dn_pos_idx"][images]
    meta["dn_gt_idx"] = [i - first_box for i in meta["dn_gt_idx"][images]]
    return embeddings[images], boxes[images], mask, meta


def generator_states(device: torch.device) -> list[torch.Tensor] | None:
    """Give the states of the first process's generators, of the CPU and of its device; None in other processes."""
    if RANK > 0:
        return None
    accelerator = [] if device.type == "cpu" else [device_module(device.type).get_rng_state(device)]
    return [torch.get_rng_state(), *accelerator]


@contextlib.contextmanager
def use_generator_states(states: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Draw what the first process draws, whose generators have these states; afterwards go on with the own ones."""
    if RANK <= 0:
        yield
        return
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        torch.set_rng_state(states[0])
        if not on_cpu:
            device_module(device.type).set_rng_state(states[1], device)
        yield
