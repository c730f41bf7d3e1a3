"""Read the rows of an RT-DETR off the shapes of its tensors, under their official names."""

from __future__ import annotations

from dataclasses import dataclass, field

from ultralytics.fork.pretrained.timm_backbones import list_numbered, read_hgnet_rows

Shapes = dict[str, tuple[int, ...]]
HEADS = 8  # of every attention in the official models: no shape tells it
OFFICIAL_EPS, OFFICIAL_MOMENTUM = 1e-5, 0.1  # of batch norms


@dataclass
class DecoderSettings:
    """What no shape tells of a detector: a configuration beside the weights does, or the official one is assumed."""

    version: int = 1
    num_queries: int = 300
    sampling: str = "bilinear"
    offset_scale: float = 0.5
    eval_idx: int | None = None  # the decoder layer that gives the result; None for the official one of this size
    heads: int = HEADS
    points: list[int] | None = None  # of each level, where they differ
    names: dict[int, str] = field(default_factory=dict)


def read_detector(shape: Shapes, settings: DecoderSettings) -> dict:
    """Give the model YAML of a detector.

    Args:
        shape: Shapes of its tensors, by their official names.
        settings: What no shape tells.

    Raises:
        KeyError: If a tensor that every RT-DETR has is missing.
    """
    backbone, maps = read_backbone(shape)
    neck, outputs = read_neck(shape, len(backbone), maps)
    decoder, nc = read_decoder(shape, settings, expansion=neck_expansion(shape))
    return {
        "nc": nc,
        "norm_eps": OFFICIAL_EPS,
        "norm_momentum": OFFICIAL_MOMENTUM,
        "backbone": backbone,
        "head": [*neck, [outputs, *decoder]],
    }


def read_backbone(shape: Shapes) -> tuple[list[list], list[int]]:
    """Give the rows of the backbone, and the layers that give the maps of the encoder, from the highest resolution."""
    levels = count(shape, "encoder.input_proj.")
    if "backbone.stem.stem1.conv.weight" in shape:
        own = {key.removeprefix("backbone."): size for key, size in shape.items() if key.startswith("backbone.")}
        rows, *_ = read_hgnet_rows(own)
        for row in rows:
            if row[3][3:] == [False, False]:  # as the shipped files leave them out
                del row[3][3:]
        ends = [i for i in range(len(rows)) if i + 1 == len(rows) or rows[i + 1][2] == "DWConv"]
        return rows, ends[-levels:]
    rows = [[-1, 1, "ResNetVDStem", [shape["backbone.conv1.conv1_3.conv.weight"][0]]]]
    for i, stage in enumerate(list_numbered(shape, "backbone.res_layers.")):
        last = f"{stage}.blocks.0.branch2c.conv.weight"
        bottleneck = last in shape
        width = shape[last if bottleneck else f"{stage}.blocks.0.branch2b.conv.weight"][0]
        arguments = [width, 2 if i else 1, *([True] if bottleneck else [])]
        rows.append([-1, count(shape, f"{stage}.blocks."), "ResNetVDStage", arguments])
    return rows, list(range(len(rows)))[-levels:]


def read_neck(shape: Shapes, start: int, maps: list[int]) -> tuple[list[list], list[int]]:
    """Give the rows of the encoder, which begin at layer `start`, and the layers that the decoder reads."""
    width = shape["encoder.lateral_convs.0.conv.weight"][0]
    expansion = neck_expansion(shape)
    fusion = [
        -1,
        count(shape, "encoder.fpn_blocks.0.bottlenecks."),
        "RepC3",
        [width, expansion][: 1 + (expansion != 1)],
    ]
    bare, activated = [width, 1, 1, None, 1, 1, False], [width, 1, 1]
    rows: list[list] = [
        [-1, 1, "Conv", bare],
        [-1, 1, "AIFI", [shape["encoder.encoder.0.layers.0.linear1.weight"][0], HEADS]],
    ]
    laterals = []
    for level in maps[-2::-1]:
        rows.append([-1, 1, "Conv", activated])
        laterals.append(start + len(rows) - 1)
        rows.append([-1, 1, "nn.Upsample", [None, 2, "nearest"]])
        rows.append([level, 1, "Conv", bare])
        rows.append([[-2, -1], 1, "Concat", [1]])
        rows.append(list(fusion))
    outputs = [start + len(rows) - 1]
    for lateral in laterals[::-1]:
        rows.append([-1, 1, "Conv", [width, 3, 2]])
        rows.append([[-1, lateral], 1, "Concat", [1]])
        rows.append(list(fusion))
        outputs.append(start + len(rows) - 1)
    return rows, outputs


def read_decoder(shape: Shapes, settings: DecoderSettings, expansion: float) -> tuple[list, int]:
    """Give the decoder's row without its inputs, with as few arguments as say all; and the number of classes."""
    nc, width = shape["decoder.dec_score_head.0.weight"]
    layers = count(shape, "decoder.decoder.layers.")
    inner = shape["decoder.decoder.layers.0.linear1.weight"][0]
    levels = count(shape, "decoder.input_proj.")
    total = shape["decoder.decoder.layers.0.cross_attn.attention_weights.weight"][0] // settings.heads
    points = settings.points or total // levels
    # R50-m trains six layers and reads the third; no other size has six layers behind a fusion of half the width
    last = settings.eval_idx
    if last is None:
        last = 2 if layers == 6 and expansion == 0.5 else -1
    if last == layers - 1:
        last = -1
    arguments = ["nc", width, settings.num_queries, points, settings.heads, layers, inner]
    if settings.version == 1:
        arguments += [0.0, None, last]
        defaults = ["nc", 256, 300, 4, 8, 6, 1024, 0.0, None, -1]
        return [1, "RTDETRDecoder", shorten(arguments, defaults)], nc
    selection = "agnostic" if shape["decoder.enc_score_head.weight"][0] == 1 != nc else "best_class"
    arguments += [last, settings.sampling, selection, settings.offset_scale]
    defaults = ["nc", 256, 300, 4, 8, 6, 1024, -1, "bilinear", "best_class", 0.5]
    return [1, "RTDETRDecoderV2", shorten(arguments, defaults)], nc


def shorten(arguments: list, defaults: list) -> list:
    """Leave out the last arguments as far as they are the defaults."""
    least = max((i + 1 for i, (x, y) in enumerate(zip(arguments, defaults, strict=True)) if x != y), default=1)
    return arguments[:least]


def neck_expansion(shape: Shapes) -> float:
    """Give the width inside the fusion blocks, as a part of the encoder's."""
    return shape["encoder.fpn_blocks.0.conv1.conv.weight"][0] / shape["encoder.lateral_convs.0.conv.weight"][0]


def count(shape: Shapes, prefix: str) -> int:
    """Count the numbered parts that begin with a prefix."""
    return len(list(list_numbered(shape, prefix)))
