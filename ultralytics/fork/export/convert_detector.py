"""Write an RT-DETR of this project as an official file, or as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultralytics.fork.errors import Refused
from ultralytics.fork.pretrained.detector_names import CLASS_EMBEDDING, map_names, to_hugging_face
from ultralytics.fork.pretrained.detector_rows import OFFICIAL_EPS, DecoderSettings
from ultralytics.fork.pretrained.detectors import CONFIG, FIXED, SETTINGS_KEY, TOLD, WEIGHTS
from ultralytics.fork.rtdetr import get_head
from ultralytics.utils import LOGGER

OFFICIAL_SIZE = 640  # of the images whose anchors an official v2 file holds
PREPROCESSOR = "preprocessor_config.json"


def list_official_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Give a model's tensors their official names.

    Raises:
        Refused: If a row of the model is none of the official RT-DETR's, or a layer differs from its.
    """
    rows = [*model.yaml["backbone"], *model.yaml["head"]]
    try:
        names = map_names(model.state_dict(), [row[2] for row in rows], len(model.yaml["backbone"]))
    except LookupError as e:
        i = e.args[0]
        raise Refused(f"row {i} of this model, {rows[i][2]}, is not one of the official RT-DETR's") from None
    if any(type(m) is nn.Conv2d and m.bias is not None for m in model.model[:-1].modules()):
        raise Refused("the layers of this model are fused: open it anew, and convert it before it predicts")
    eps = {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    if eps != {OFFICIAL_EPS}:
        raise Refused(
            f"the batch norms of this model have an eps of {max(eps):g}, the official ones {OFFICIAL_EPS:g}: no box "
            f"would be the same. Train a model whose file says `norm_eps: {OFFICIAL_EPS:g}`"
        )
    tensors = {names[key]: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    embedding = tensors[CLASS_EMBEDDING]
    tensors[CLASS_EMBEDDING] = torch.cat([embedding, embedding.new_zeros(1, embedding.shape[1])])  # of the padding
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


def write_official(model: Any, file: Path) -> None:
    """Write a file that the official code opens, with the names of v1 or v2."""
    from ultralytics.nn.AddModules.RTDETRv2 import RTDETRDecoderV2, make_anchors

    tensors, head = list_official_tensors(model), get_head(model)
    if any(key.startswith("backbone.stem.") for key in tensors):  # HGNetv2's norms
        tensors = {
            key.replace(".norm.", ".bn.") if key.startswith("backbone.") else key: t for key, t in tensors.items()
        }
    if isinstance(head, RTDETRDecoderV2):
        for i, layer in enumerate(head.decoder.layers):
            tensors[f"decoder.decoder.layers.{i}.cross_attn.num_points_scale"] = scale_points(layer)
        sides = [OFFICIAL_SIZE // stride for stride in list_strides(head)]
        anchors, valid = make_anchors([[n, n] for n in sides], torch.zeros(()))
        tensors |= {"decoder.anchors": anchors, "decoder.valid_mask": valid}
    else:
        tensors = {
            key.replace(".conv.", ".0.").replace(".norm.", ".1.") if key.startswith("encoder.input_proj.") else key: t
            for key, t in tensors.items()
        }
        for part, number in (("proj", 0), ("norm", 1)):
            for kind in ("weight", "bias"):
                name = f"decoder.enc_output.{part}.{kind}"
                tensors[f"decoder.enc_output.{number}.{kind}"] = tensors.pop(name)
    told = DecoderSettings(
        num_queries=head.num_queries,
        sampling=getattr(head.decoder.layers[0].cross_attn, "sampling", "bilinear"),
        offset_scale=getattr(head.decoder.layers[0].cross_attn, "offset_scale", 0.5),
        eval_idx=head.decoder.eval_idx,
        names=dict(model.names),
    )
    told = {key: getattr(told, key) for key in TOLD}
    torch.save({"ema": {"module": tensors}, SETTINGS_KEY: told}, file)  # the official code leaves the second out


def write_hugging_face(model: Any, folder: Path) -> None:
    """Write a folder that Hugging Face's `transformers` opens: weights, configuration, preprocessing.

    Images are resized there to what the model was trained with.
    """
    from safetensors.torch import save_file

    tensors, config = list_official_tensors(model), make_config(model)
    used = config["decoder_layers"]
    if used < len(get_head(model).decoder.layers):
        LOGGER.info(
            f"Hugging Face's models give the last layer's boxes: the {used} decoder layers that are run are kept"
        )
        of_layer = ("decoder.decoder.layers.", "decoder.dec_score_head.", "decoder.dec_bbox_head.")
        tensors = {
            key: t
            for key, t in tensors.items()
            if not any(key.startswith(p) and int(key.removeprefix(p).split(".")[0]) >= used for p in of_layer)
        }
    tensors = to_hugging_face(tensors)
    if config["model_type"] == "rt_detr_v2":
        for i, layer in enumerate(get_head(model).decoder.layers[:used]):
            tensors[f"model.decoder.layers.{i}.encoder_attn.n_points_scale"] = scale_points(layer)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    size = read_image_size(model)
    preprocessing = {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "do_pad": False,
    }
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessing, indent=2) + "\n", encoding="utf-8")


def read_image_size(model: Any) -> int:
    """Read the image size of a model's training from its arguments."""
    arguments = getattr(model, "args", None) or {}
    size = arguments.get("imgsz") if isinstance(arguments, dict) else getattr(arguments, "imgsz", None)
    return size if isinstance(size, int) else OFFICIAL_SIZE


def scale_points(layer: Any) -> torch.Tensor:
    """Give 1 / n for each of the n points of each map, a buffer of v2's files."""
    return torch.cat([torch.full((n,), 1 / n) for n in layer.cross_attn.points])


def make_config(model: Any) -> dict:
    """Describe a model as Hugging Face's configuration does.

    Raises:
        Refused: For what Hugging Face's RT-DETR does not have.
    """
    from ultralytics.nn.AddModules.RTDETRv2 import RTDETRDecoderV2

    head: Any = get_head(model)
    attention: Any = head.decoder.layers[0].cross_attn
    is_v2 = isinstance(head, RTDETRDecoderV2)
    points = attention.points if is_v2 else [attention.n_points]
    if len(set(points)) > 1 or (is_v2 and head.selection != "best_class"):
        raise Refused("Hugging Face's RT-DETR has the same number of points in each map, and chooses queries by class")
    backbone = {**describe_backbone(model), "out_indices": list(range(5 - len(list_strides(head)), 5))}
    tensors = model.state_dict()
    rows, start = model.yaml["head"], len(model.yaml["backbone"])
    width = tensors[f"model.{start}.conv.weight"].shape[0]
    maps = [f"model.{start + i}.conv.weight" for i, row in enumerate(rows) if row[2] == "Conv" and row[3][-1] is False]
    fusion = next(m for m in model.model if type(m).__name__ == "RepC3")
    decoder: Any = head.decoder
    levels: Any = head.nl
    config = {
        "architectures": ["RTDetrV2ForObjectDetection" if is_v2 else "RTDetrForObjectDetection"],
        "model_type": "rt_detr_v2" if is_v2 else "rt_detr",
        "backbone_config": backbone,
        "freeze_backbone_batch_norms": False,
        **FIXED,
        "encode_proj_layers": [levels - 1],
        "encoder_hidden_dim": width,
        "encoder_in_channels": [tensors[key].shape[1] for key in maps[::-1]],
        "encoder_ffn_dim": model.model[start + 1].fc1.out_features,
        "hidden_expansion": fusion.m[0].c1 / width,
        "d_model": head.hidden_dim,
        "decoder_in_channels": [width] * levels,
        "decoder_ffn_dim": decoder.layers[0].linear1.out_features,
        "decoder_layers": decoder.eval_idx + 1,
        "decoder_attention_heads": head.nhead,
        "decoder_n_points": points[0],
        "num_feature_levels": levels,
        "num_queries": head.num_queries,
        "num_denoising": head.num_denoising,
        "feat_strides": list_strides(head),
        "id2label": {str(i): name for i, name in model.names.items()},
        "label2id": {name: i for i, name in model.names.items()},
        "dtype": "float32",
    }
    if is_v2:
        method = "discrete" if attention.sampling == "discrete" else "default"
        config |= {
            "decoder_n_levels": levels,
            "decoder_method": method,
            "decoder_offset_scale": attention.offset_scale,
        }
    return config


def list_strides(head: Any) -> list[int]:
    """List the strides of the maps that a decoder reads, of which the last has 32."""
    return [32 >> i for i in range(head.nl)][::-1]


def describe_backbone(model: Any) -> dict:
    """Describe the backbone as Hugging Face's configuration does."""
    first, *rest = model.model[: len(model.yaml["backbone"])]
    if type(first).__name__ == "ResNetVDStem":
        blocks = [stage.blocks for stage in rest]
        return {
            "model_type": "rt_detr_resnet",
            "embedding_size": first.convs[-1].conv.out_channels,
            "hidden_sizes": [
                (stage[-1].cv3 if hasattr(stage[-1], "cv3") else stage[-1].cv2).conv.out_channels for stage in blocks
            ],
            "depths": [len(stage) for stage in blocks],
            "layer_type": "bottleneck" if hasattr(blocks[0][0], "cv3") else "basic",
        }
    stages: list[list[Any]] = [[]]
    for m in rest:
        if type(m).__name__ == "DWConv":
            stages.append([])
        else:
            stages[-1].append(m)
    light = [not hasattr(stage[0].m[0], "bn") for stage in stages]
    firsts = [(stage[0].m[0], is_light) for stage, is_light in zip(stages, light)]
    outgoing = [stage[-1].ec.conv.out_channels for stage in stages]
    stem, embedding = first.stem1.conv, first.stem4.conv.out_channels
    return {
        "model_type": "hgnet_v2",
        "stem_channels": [stem.in_channels, stem.out_channels, embedding],
        "embedding_size": embedding,
        "hidden_sizes": outgoing,
        "depths": [len(stage) for stage in stages],
        "stage_in_channels": [embedding, *outgoing[:-1]],
        "stage_mid_channels": [(m.conv2 if is_light else m).conv.out_channels for m, is_light in firsts],
        "stage_out_channels": outgoing,
        "stage_num_blocks": [len(stage) for stage in stages],
        "stage_downsample": [i > 0 for i in range(len(stages))],
        "stage_light_block": light,
        "stage_kernel_size": [(m.conv2 if is_light else m).conv.kernel_size[0] for m, is_light in firsts],
        "stage_numb_of_layers": [len(stage[0].m) for stage in stages],
    }
