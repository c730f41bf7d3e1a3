"""The modules against their floors on the device, and bi-level routing by FlexAttention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from _bench import cases, measure
from _gpu.checks import Options, require, run_check
from _shared.timing import time_in_turn
from ultralytics.nn.AddModules.Biformer import Regions, RoutedAttention

FAMILIES = "FLA", "BRA", "EMO", "MQA"
BLOCK = 128  # tokens: FlexAttention takes blocks that are multiples of it
SHAPE, HEADS, WINDOWS, TOPK = (8, 80, 80, 256), 8, 7, 4  # of the routing that is timed


def check_modules(family: str, options: Options) -> None:
    """Time the published cases of a family; the family BRA also by FlexAttention."""
    found = [case for case in cases.CASES if case.family == family]
    for case in found[: 1 if options.small else None]:
        for mode in measure.MODES:
            run_check("modules", f"{case.name}, {mode}", lambda case=case, mode=mode: time_case(case, mode, options))
    if family == "BRA":
        run_check("modules", "bi-level routing by FlexAttention", lambda: time_flex_attention(options))


def time_case(case: cases.Case, mode: str, options: Options) -> dict:
    """Time a case in bf16 against the textbook's form, its floor and, where it can replace it, torch's attention."""
    dtype = None if options.small else torch.bfloat16
    settings = {"autocast": dtype, "compile": False}
    sides = ["ours", "naive", "best floor", *(["MHA"] if "MHA" in case.plain_modules() and not options.small else [])]
    rounds, seconds = (3, 0.1) if options.small else (20, 2)
    times = measure.time_sides(case, mode, sides, options.torch_device, settings, rounds, seconds)
    floors = 3 if mode == "training" else 1  # a backward has two products for each product of the forward
    figures = {"ms": 1e3 * times["ours"].median, "of naive": times["ours"].over(times["naive"])}
    figures["of the floor"] = times["ours"].over(times["best floor"]) / floors
    if "MHA" in times:
        figures["of fused attention"] = times["ours"].over(times["MHA"])
    return figures


def attend_by_flex_attention(
    qkv: torch.Tensor, chosen: torch.Tensor, regions: Regions, heads: int, scale: float, flex: object = flex_attention
) -> torch.Tensor:
    """Compute what `RoutedAttention` does by FlexAttention, with a region as a block of its mask.

    Args:
        qkv: (B * R, L, 3 * C) queries, keys and values, ordered by region.
        chosen: (B * R, topk) regions of the batch that a region attends to.
        regions: The map's.
        heads: Attention heads.
        scale: Of the scores.
        flex: `flex_attention`, or the same compiled.
    """
    R, L, C, topk = regions.R, regions.L, qkv.shape[2] // 3, chosen.shape[1]
    batch, places = qkv.shape[0] // R, math.ceil(L / BLOCK) * BLOCK
    padded = F.pad(qkv, (0, 0, 0, places - L)).view(batch, R * places, 3, heads, C // heads)
    q, k, v = padded.permute(2, 0, 3, 1, 4)  # (B, heads, R * places, C / heads)
    is_real = F.pad(regions.real, (0, places - L)).flatten()  # (R * places,)
    chosen = (chosen % R).view(batch, R, topk)
    is_chosen = torch.zeros(batch, R, R, dtype=torch.bool, device=qkv.device).scatter_(2, chosen, True)
    mask = BlockMask.from_kv_blocks(
        torch.full((batch, 1, R), topk, dtype=torch.int32, device=qkv.device),
        F.pad(chosen, (0, R - topk)).unsqueeze(1).int(),
        BLOCK_SIZE=places,
        mask_mod=lambda b, h, i, j: (
            is_real[j] & is_chosen[b, i // places, j // places]
        ),  # what is not compiled reads this
    )
    out = flex(q, k, v, block_mask=mask, scale=scale)  # pyright: ignore[reportCallIssue]
    return out.transpose(1, 2).reshape(batch * R, places, C)[:, :L]


def time_flex_attention(options: Options) -> dict:
    """Compare the results, and the time of forward and backward."""
    batch, height, width, channels = (1, 14, 15, 32) if options.small else SHAPE
    device, heads = options.torch_device, 2 if options.small else HEADS
    regions = Regions(height, width, (height // WINDOWS, width // WINDOWS), device)
    qkv = torch.randn(batch * regions.R, regions.L, 3 * channels, device=device, requires_grad=not options.small)
    chosen, mask = regions.route(*(t.detach() for t in qkv.chunk(3, dim=-1)[:2]), TOPK)
    scale = channels**-0.5
    flex = flex_attention if options.small else torch.compile(flex_attention)

    def ours() -> torch.Tensor:
        return RoutedAttention.apply(qkv, chosen, mask, heads, scale)[0]  # pyright: ignore[reportReturnType]

    def by_flex() -> torch.Tensor:
        return attend_by_flex_attention(qkv, chosen, regions, heads, scale, flex)

    real = regions.real.repeat(batch, 1)
    error = float((ours() - by_flex())[real].abs().max().detach())
    require(error < 1e-3, f"the results differ by {error:.2g}")
    sides = {name: (lambda run=run: run().sum().backward()) for name, run in (("ours", ours), ("flex", by_flex))}
    if options.small:  # FlexAttention has no backward for a CPU
        return {"difference": error}
    times = time_in_turn(sides, device, 20, 5)
    figures = {"ours ms": 1e3 * times["ours"].median, "flex ms": 1e3 * times["flex"].median}
    return {**figures, "of flex": times["ours"].over(times["flex"]), "difference": error}
