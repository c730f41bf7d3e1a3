"""Readers for upstream's layers that its own `parse_model` has no branch for, such as CBAM."""

from __future__ import annotations

from ultralytics.nn.AddModules.registry import (
    NAMES,
    READERS,
    Layer,
    Reader,
    Row,
    changes_channels,
    keeps_channels,
)
from ultralytics.nn.modules import block, conv, transformer

BRANCHED = "Conv2", "RepConv"  # which a row could name before, with the input's channels as its first argument


def changes_channels_once_named(row: Row) -> Layer:
    """Read `[c2, k, ...]`, and refuse `[c1, c2, k, ...]`, which the row of such a class had to be before."""
    if len(row.args) > 1 and row.args[:2] == [row.c1, row.c1]:
        raise row.error(f"arguments {row.args}", f"[c2, k, ...], without the input's channels: {row.args[1:]}")
    return changes_channels(row)


def widens_by_expansion(row: Row) -> Layer:
    """Read `[c2, s, e]` of upstream's ResNetBlock, whose output has e times c2 channels, e being 4 by default."""
    if not row.args:
        raise row.error("no arguments", "[c2, s, e]")
    expansion = row.args[2] if len(row.args) > 2 else 4
    return Layer(args=[row.c1, *row.args], c2=expansion * row.args[0], n=row.n)


FOUND: dict[str, Reader] = {
    **dict.fromkeys(("CBAM", "ChannelAttention", "SpatialAttention"), keeps_channels),
    **dict.fromkeys(("AAttn", "ABlock", "Attention", "LayerNorm2d", "PSABlock", "RepVGGDW"), keeps_channels),
    **dict.fromkeys(("C3f", "CIB", "LightConv", "Proto", "RepBottleneck", "RepCSP"), changes_channels),
    **dict.fromkeys(("TransformerBlock",), changes_channels),
    **dict.fromkeys(BRANCHED, changes_channels_once_named),
    "ResNetBlock": widens_by_expansion,
}


def lend_names() -> None:
    """Let rows name these layers, as far as this release of upstream has them and no module of that name is there."""
    for name, reader in FOUND.items():
        cls = next((vars(home)[name] for home in (conv, block, transformer) if name in vars(home)), None)
        if cls is not None:
            READERS[cls] = reader
            NAMES.setdefault(name, cls)
