"""Names of RT-DETR's tensors: in the rows of a model YAML, in the official files, and in Hugging Face's.

The official names (github.com/lyuwenyu/RT-DETR, v1 and v2) are what the two others are translated to. Hugging Face
keeps query, key and value of self-attention apart, the official files have them in one tensor; ours are as the official
ones. The embedding of classes for denoising has a last row for padding, which ours lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import torch

CLASS_EMBEDDING = "decoder.denoising_class_embed.weight"
# Buffers that are made anew: they hold no weights, or are those of one image size
MADE_ANEW = r"(.*\.)?(num_batches_tracked|n(um)?_points_scale)|decoder\.(anchors|valid_mask)|.*pos_embed\d*"
PARTS_OF_ATTENTION = "q_proj", "k_proj", "v_proj"

# Hugging Face's names beside the official ones; each # is a number
HUGGING_FACE = (
    ("backbone.conv1.conv1_1.", "backbone.model.embedder.embedder.0."),
    ("backbone.conv1.conv1_2.", "backbone.model.embedder.embedder.1."),
    ("backbone.conv1.conv1_3.", "backbone.model.embedder.embedder.2."),
    ("backbone.res_layers.#.blocks.#.branch2a.", "backbone.model.encoder.stages.#.layers.#.layer.0."),
    ("backbone.res_layers.#.blocks.#.branch2b.", "backbone.model.encoder.stages.#.layers.#.layer.1."),
    ("backbone.res_layers.#.blocks.#.branch2c.", "backbone.model.encoder.stages.#.layers.#.layer.2."),
    ("backbone.res_layers.#.blocks.#.short.conv.", "backbone.model.encoder.stages.#.layers.#.shortcut.1."),
    ("backbone.res_layers.#.blocks.#.short.", "backbone.model.encoder.stages.#.layers.#.shortcut."),
    ("backbone.stem.", "backbone.model.embedder."),
    ("backbone.stages.", "backbone.model.encoder.stages."),
    ("encoder.input_proj.#.conv.", "encoder_input_proj.#.0."),
    ("encoder.input_proj.#.norm.", "encoder_input_proj.#.1."),
    ("encoder.encoder.#.layers.#.linear1.", "encoder.encoder.#.layers.#.fc1."),
    ("encoder.encoder.#.layers.#.linear2.", "encoder.encoder.#.layers.#.fc2."),
    ("encoder.encoder.#.layers.#.norm1.", "encoder.encoder.#.layers.#.self_attn_layer_norm."),
    ("encoder.encoder.#.layers.#.norm2.", "encoder.encoder.#.layers.#.final_layer_norm."),
    ("decoder.input_proj.#.conv.", "decoder_input_proj.#.0."),
    ("decoder.input_proj.#.norm.", "decoder_input_proj.#.1."),
    ("decoder.enc_output.proj.", "enc_output.0."),
    ("decoder.enc_output.norm.", "enc_output.1."),
    ("decoder.enc_score_head.", "enc_score_head."),
    ("decoder.enc_bbox_head.", "enc_bbox_head."),
    ("decoder.denoising_class_embed.", "denoising_class_embed."),
    ("decoder.query_pos_head.", "decoder.query_pos_head."),
    ("decoder.dec_score_head.", "decoder.class_embed."),
    ("decoder.dec_bbox_head.", "decoder.bbox_embed."),
    ("decoder.decoder.layers.#.cross_attn.", "decoder.layers.#.encoder_attn."),
    ("decoder.decoder.layers.#.linear1.", "decoder.layers.#.fc1."),
    ("decoder.decoder.layers.#.linear2.", "decoder.layers.#.fc2."),
    ("decoder.decoder.layers.#.norm1.", "decoder.layers.#.self_attn_layer_norm."),
    ("decoder.decoder.layers.#.norm2.", "decoder.layers.#.encoder_attn_layer_norm."),
    ("decoder.decoder.layers.#.norm3.", "decoder.layers.#.final_layer_norm."),
    ("decoder.decoder.", "decoder."),
)
# What newer releases of Hugging Face's library call otherwise in memory than in their files
IN_MEMORY = ((".mlp.fc", ".fc"), (".o_proj.", ".out_proj."), ("encoder.aifi.", "encoder.encoder."))


def rename(pairs: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """Make a function that replaces the first prefix that a name begins with; each # stands for a number."""
    rules = []
    for old, new in pairs:
        numbers = iter(range(1, old.count("#") + 1))
        replacement = re.sub("#", lambda _, numbers=numbers: rf"\g<{next(numbers)}>", new)
        rules.append((re.compile(re.escape(old).replace(r"\#", r"(\d+)")), replacement))

    def renamed(name: str) -> str:
        for pattern, replacement in rules:
            if found := pattern.match(name):
                return found.expand(replacement) + name[found.end() :]
        return name

    return renamed


to_hugging_face_name = rename(HUGGING_FACE)
to_official_name = rename((theirs, official) for official, theirs in HUGGING_FACE)


def from_hugging_face(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give Hugging Face's tensors their official names, and put query, key and value into one."""
    found = {}
    for name, tensor in tensors.items():
        for new, old in IN_MEMORY:
            name = name.replace(new, old)
        if not name.startswith("model."):  # copies of the heads, in older files
            continue
        name = to_official_name(name.removeprefix("model."))
        if name.startswith("backbone."):
            name = name.replace(".convolution.", ".conv.").replace(".normalization.", ".norm.")
        found[name] = tensor
    for name in [name for name in found if f".{PARTS_OF_ATTENTION[0]}." in name]:
        parts = [name.replace(PARTS_OF_ATTENTION[0], part) for part in PARTS_OF_ATTENTION]
        if all(part in found for part in parts):
            merged = torch.cat([found.pop(part) for part in parts])
            found[name.replace(f"{PARTS_OF_ATTENTION[0]}.", "in_proj_")] = merged
    return found


def to_hugging_face(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give tensors of official names Hugging Face's, and take query, key and value apart."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            name = re.sub(r"\.conv\.(?=weight$)", ".convolution.", name).replace(".norm.", ".normalization.")
        name = "model." + to_hugging_face_name(name)
        if "in_proj_" not in name:
            found[name] = tensor
            continue
        for part, piece in zip(PARTS_OF_ATTENTION, tensor.chunk(3)):
            found[name.replace("in_proj_", f"{part}.")] = piece.clone()
    return found


def clean_official(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors of an official file the names of v2's, without what is made anew."""
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")  # of a model that several processes trained
        if re.fullmatch(MADE_ANEW, name):
            continue
        if name.startswith("backbone."):
            name = name.replace(".bn.", ".norm.")  # HGNetv2's
        name = re.sub(r"(encoder\.input_proj\.\d+|decoder\.input_proj\.\d+)\.0\.", r"\1.conv.", name)  # v1's
        name = re.sub(r"(encoder\.input_proj\.\d+|decoder\.input_proj\.\d+)\.1\.", r"\1.norm.", name)
        name = name.replace("decoder.enc_output.0.", "decoder.enc_output.proj.")
        found[name.replace("decoder.enc_output.1.", "decoder.enc_output.norm.")] = tensor
    return found


# Our names ------------------------------------------------------------------------------------------------------------
RESIDUAL = (("cv1.", "branch2a."), ("cv2.", "branch2b."), ("cv3.", "branch2c."))
BLOCKS = {  # of a class, its tensors' prefixes and the official ones
    "ResNetVDStem": tuple((f"convs.{i}.", f"conv1_{i + 1}.") for i in range(3)),
    "ResNetVDStage": (
        *((f"blocks.#.{ours}", f"blocks.#.{theirs}") for ours, theirs in RESIDUAL),
        ("blocks.#.shortcut.1.", "blocks.#.short.conv."),
        ("blocks.#.shortcut.", "blocks.#.short."),
    ),
    "HGStem": (("", ""),),
    "HGBlock": (("m.", "layers."), ("sc.", "aggregation.0."), ("ec.", "aggregation.1.")),
    "DWConv": (("", ""),),
    "Conv": (("", ""),),
    "RepC3": (("cv1.", "conv1."), ("cv2.", "conv2."), ("cv3.", "conv3."), ("m.", "bottlenecks.")),
    "AIFI": (("ma.", "self_attn."), ("fc1.", "linear1."), ("fc2.", "linear2."), ("", "")),
    "RTDETRDecoder": (
        ("input_proj.#.0.", "input_proj.#.conv."),
        ("input_proj.#.1.", "input_proj.#.norm."),
        ("enc_output.0.", "enc_output.proj."),
        ("enc_output.1.", "enc_output.norm."),
        ("", ""),
    ),
}
BLOCKS["RTDETRDecoderV2"] = BLOCKS["RTDETRDecoder"]


def list_official_prefixes(modules: list[str], backbone: int) -> Iterator[str | None]:
    """Give for each row of an RT-DETR the prefix of its official names, or None for one without weights.

    Args:
        modules: The rows' modules.
        backbone: How many of them are the backbone's.

    Raises:
        LookupError: With the number of the first row that the official RT-DETR does not have.
    """
    stage, block = -1, 0
    for i, module in enumerate(modules[:backbone]):
        if module in {"ResNetVDStem", "HGStem"} and i == 0:
            yield "backbone.conv1." if module == "ResNetVDStem" else "backbone.stem."
        elif module == "ResNetVDStage" and modules[0] == "ResNetVDStem":
            stage += 1
            yield f"backbone.res_layers.{stage}."
        elif module in {"DWConv", "HGBlock"} and modules[0] == "HGStem":
            if module == "DWConv" or stage < 0:
                stage, block = stage + 1, 0
            if module == "DWConv":
                yield f"backbone.stages.{stage}.downsample."
            else:
                yield f"backbone.stages.{stage}.blocks.{block}."
                block += 1
        else:
            raise LookupError(i)
    expected = list_neck(modules[backbone:].count("nn.Upsample") + 1)
    for i, module in enumerate(modules[backbone:], backbone):
        wanted, prefix = next(expected, ("", None))
        if module != wanted and not (wanted == "RTDETRDecoder" and module == "RTDETRDecoderV2"):
            raise LookupError(i)
        yield prefix


def list_neck(levels: int) -> Iterator[tuple[str, str | None]]:
    """Give the modules of encoder and decoder in the order of rows, with the official prefix of their names."""
    yield "Conv", f"encoder.input_proj.{levels - 1}."
    yield "AIFI", "encoder.encoder.0.layers.0."
    for i in range(levels - 1):
        yield "Conv", f"encoder.lateral_convs.{i}."
        yield "nn.Upsample", None
        yield "Conv", f"encoder.input_proj.{levels - 2 - i}."
        yield "Concat", None
        yield "RepC3", f"encoder.fpn_blocks.{i}."
    for i in range(levels - 1):
        yield "Conv", f"encoder.downsample_convs.{i}."
        yield "Concat", None
        yield "RepC3", f"encoder.pan_blocks.{i}."
    yield "RTDETRDecoder", "decoder."


def map_names(names: Iterable[str], modules: list[str], backbone: int) -> dict[str, str]:
    """Map our tensors' names to the official ones.

    Args:
        names: Those of a model's state dict.
        modules: The modules of its rows.
        backbone: How many of them are the backbone's.

    Raises:
        LookupError: With the number of the first row that the official RT-DETR does not have.
    """
    rows = [
        (prefix, rename(BLOCKS[module])) if prefix else None
        for prefix, module in zip(list_official_prefixes(modules, backbone), modules, strict=True)
    ]
    found = {}
    for name in names:
        _, row, rest = name.split(".", 2)
        known = rows[int(row)]
        assert known is not None  # a layer without weights has no names
        prefix, renamed = known
        rest = renamed(rest)
        found[name] = prefix + (rest if prefix == "decoder." else re.sub(r"(^|\.)bn\.", r"\1norm.", rest))
    return found
