"""Open the RT-DETRs of others: official files (v1, v2, DEIM's), and Hugging Face's folders, by path or by name.

A file becomes a model of this project's rows, with the same outputs, which is then trained, exported or aligned with
another model as a checkpoint is. Nothing in a file is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ultralytics.fork.checkpoints.load import load_checkpoint
from ultralytics.fork.errors import Refused, is_plain, mark_as_plain, quote
from ultralytics.fork.pretrained.detector_names import (
    CLASS_EMBEDDING,
    clean_official,
    from_hugging_face,
    map_names,
)
from ultralytics.fork.pretrained.detector_rows import DecoderSettings, read_detector
from ultralytics.fork.pretrained.timm_backbones import MAX_NAMES, read_pickled_names
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, ONLINE, ROOT, SETTINGS

PREFIX = "hf/"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SUFFIXES = ".pth", ".pt", ".bin", ".safetensors"
SIGNS = "decoder.dec_score_head.", "model.decoder.class_embed.", "encoder.fpn_blocks."  # in the names of tensors
OTHERS = {  # signs of detectors that are not RT-DETR
    "D-FINE": ("pre_bbox_head", "lqe_layers", "integral", "reg_max"),
    "DETR": ("transformer.encoder", "query_embed", "query_position_embeddings"),
}
FITS = (
    "expected RT-DETR or RT-DETRv2 (R18 to R101, L, X) as an official .pth, a Hugging Face folder or its .safetensors"
)
# What Hugging Face's configuration may say, where only one value is an RT-DETR as this project builds it
FIXED = {
    "encoder_layers": 1,
    "encoder_activation_function": "gelu",
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "normalize_before": False,
    "positional_encoding_temperature": 10000,
    "encoder_attention_heads": 8,
    "learn_initial_query": False,
    "with_box_refine": True,
    "batch_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
}
# What an official file does not tell, and those of this project do
SETTINGS_KEY, TOLD = "addmodules", ("num_queries", "sampling", "offset_scale", "eval_idx", "names")
FIXED_BACKBONE = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}
METHODS = {"default": "bilinear", "discrete": "discrete"}  # of sampling: Hugging Face's names, ours
MAX_QUERIES = 10_000
COCO = ROOT / "cfg" / "datasets" / "coco.yaml"


def is_detector(weights: Any) -> bool:
    """Whether weights are named, or are a file or a folder, of an RT-DETR of others; nothing is unpickled."""
    if not isinstance(weights, (str, Path)):
        return False
    file = Path(weights)
    if is_repository(weights):
        return True
    if file.is_dir():
        return (file / CONFIG).is_file() and any(file.glob("*.safetensors"))
    return file.suffix in SUFFIXES and file.is_file() and has_detector_names(file)


def is_repository(weights: str | Path) -> bool:
    """Whether weights are the name of a repository, `hf/ORGANISATION/NAME`, and not a path."""
    return str(weights).startswith(PREFIX) and not Path(weights).exists()


def has_detector_names(file: Path) -> bool:
    """Whether names of tensors of an RT-DETR, or of a detector like it, stand in a file."""
    head = read_header(file) if file.suffix == ".safetensors" else read_pickled_names(file)
    signs = [*SIGNS, *(sign for signs in OTHERS.values() for sign in signs[:1])]
    return any(sign.encode() in head for sign in signs) and b"ultralytics" not in head


def read_header(file: Path) -> bytes:
    """Read the names in a .safetensors file."""
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        return f.read(min(length, MAX_NAMES))


def load_detector(weights: str | Path, device: torch.device | None = None) -> tuple[nn.Module, dict]:
    """Give an RT-DETR of others as a model of this project, as `load_checkpoint` gives a checkpoint.

    Args:
        weights: A file, a folder, or `hf/` with the name of a repository.
        device: Where to put it.

    Returns:
        The model, and a checkpoint of it.

    Raises:
        Refused: If it is another model, or damaged.
        ConnectionError: If a repository is not on this machine and cannot be fetched.
    """
    file = fetch_folder(str(weights)) if is_repository(weights) else Path(weights)
    has_config = file.suffix == ".safetensors" and (file.parent / CONFIG).is_file()
    try:
        if file.is_dir() or has_config:
            tensors, settings = read_folder(*((file, None) if file.is_dir() else (file.parent, file)))
        else:
            tensors, settings = read_file(file)
        model = build_detector(tensors, settings, str(weights))
    except Exception as e:
        if is_plain(e):
            raise
        raise Refused(f"{weights} cannot be read ({type(e).__name__}: {quote(e, 200)}); {FITS}") from e
    return model.to(device).eval(), {"model": model, "train_args": {}}


def read_folder(folder: Path, file: Path | None) -> tuple[dict[str, torch.Tensor], DecoderSettings]:
    """Read Hugging Face's tensors, of a folder or of one file in it: official names, and what the configuration says.

    Raises:
        Refused: For the configuration of another model.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in {"rt_detr", "rt_detr_v2"}:
        raise Refused(f"{folder / CONFIG}: `model_type` is {kind!r}; expected rt_detr or rt_detr_v2")
    backbone = config.get("backbone_config") or {}
    last = len(config.get("encoder_in_channels", [0, 0, 0])) - 1
    for part, fixed in ((config, {**FIXED, "encode_proj_layers": [last]}), (backbone, FIXED_BACKBONE)):
        for key, value in fixed.items():
            if part.get(key, value) != value:
                raise Refused(f"{folder / CONFIG}: `{key}` is {part[key]!r}; RT-DETR is built here with {value!r}")
    method = config.get("decoder_method", "default")
    if method not in METHODS:
        raise Refused(f"{folder / CONFIG}: `decoder_method` is {method!r}; expected {' or '.join(METHODS)}")
    settings = DecoderSettings(
        version=2 if kind == "rt_detr_v2" else 1,
        num_queries=config.get("num_queries", 300),
        sampling=METHODS[method],
        offset_scale=config.get("decoder_offset_scale", 0.5),
        eval_idx=-1,  # Hugging Face's models have no other
        heads=config.get("decoder_attention_heads", 8),
        names={int(key): str(name) for key, name in (config.get("id2label") or {}).items()},
    )
    files = [file] if file else list_weights(folder)
    tensors = {name: tensor for found in files for name, tensor in read_safetensors(found).items()}
    return clean_official(from_hugging_face(tensors)), settings


def list_weights(folder: Path) -> list[Path]:
    """List the files of a folder of Hugging Face's that hold its weights: one, or those that its index names."""
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS]
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [folder / Path(name).name for name in sorted(names)]


def read_file(file: Path) -> tuple[dict[str, torch.Tensor], DecoderSettings]:
    """Read one file: official names, and what its name and its tensors tell."""
    tensors, told = (read_safetensors(file), {}) if file.suffix == ".safetensors" else read_official(file)
    theirs = any(name.startswith("model.decoder.") for name in tensors)
    scales = [t for name, t in tensors.items() if re.fullmatch(r".*n(um)?_points_scale", name)]
    settings = DecoderSettings(version=2 if scales else 1, eval_idx=-1 if theirs else None)
    if scales:
        settings.points = read_points(scales[0])
        if re.search(r"(?<![a-z])dsp(?![a-z])", file.stem):
            settings.sampling = "discrete"
            LOGGER.info(f"{file.name}: dsp in its name stands for discrete sampling; its tensors do not tell")
    vars(settings).update({key: told[key] for key in TOLD if key in told})
    return clean_official(from_hugging_face(tensors) if theirs else tensors), settings


def read_points(scale: torch.Tensor) -> list[int] | None:
    """Read the points of each level off v2's buffer, which has 1 / n for each of n points; None if all are equal.

    Raises:
        Refused: If it is another.
    """
    numbers = scale.flatten().tolist()
    if not all(0 < x <= 1 for x in numbers):
        raise Refused("its num_points_scale is not 1 / n for each of the n points of a level")
    inverse, points = [round(1 / x) for x in numbers], []
    while inverse:
        points.append(inverse[0])
        inverse = inverse[inverse[0] :]
    return points if len(set(points)) > 1 else None


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as e:
        raise Refused(f"{file} is not a whole .safetensors file ({quote(e, 200)}); copy or download it again") from None


def read_official(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Read the weights of an official checkpoint, the averaged ones (EMA), else the model's; and what else it tells.

    Raises:
        Refused: If the file is damaged, runs code, or holds no weights.
    """
    try:
        content: Any = load_checkpoint(file, map_location="cpu", weights_only=True)
    except Exception as e:
        raise Refused(f"{file} cannot be opened: {quote(e, 300)}") from None
    if isinstance(content, dict) and isinstance(content.get("ema"), dict):
        tensors = content["ema"].get("module", content["ema"])
    else:
        tensors = content.get("model", content) if isinstance(content, dict) else None
        if tensors is not content:
            LOGGER.info(f"{file} has no averaged weights (EMA); the model's own are taken")
    if not (isinstance(tensors, dict) and tensors and all(isinstance(t, torch.Tensor) for t in tensors.values())):
        raise Refused(f"{file} holds no weights of a detector; {FITS}")
    told = content.get(SETTINGS_KEY)
    return tensors, told if isinstance(told, dict) else {}


def build_detector(tensors: dict[str, torch.Tensor], settings: DecoderSettings, name: str) -> nn.Module:
    """Build the model whose weights these are.

    Args:
        tensors: Under their official names.
        settings: What no shape tells.
        name: What to call it.

    Raises:
        Refused: If it is another model, or a tensor is missing or has no place.
    """
    from ultralytics.nn.tasks import RTDETRDetectionModel

    check_settings(settings, name)
    for other, signs in OTHERS.items():
        if any(sign in key for key in tensors for sign in signs):
            raise Refused(f"{name} is a {other}, not an RT-DETR; {FITS}")
    try:
        rows = read_detector({key: tuple(t.shape) for key, t in tensors.items()}, settings)
    except (KeyError, IndexError, ValueError) as e:
        raise Refused(f"{name} has no tensor {quote(e, 100)}: it is not a whole RT-DETR; {FITS}") from None
    rows["yaml_file"] = f"{Path(name).stem}.yaml"
    build: Any = RTDETRDetectionModel
    model: Any = build(rows, nc=rows["nc"], verbose=False)
    modules = [row[2] for row in (*rows["backbone"], *rows["head"])]
    own = model.state_dict()
    official = map_names(own, modules, len(rows["backbone"]))
    found, used = {}, set()
    for key, theirs in official.items():
        if key.endswith("num_batches_tracked"):
            found[key] = own[key]
            continue
        tensor = tensors.get(theirs)
        if tensor is None:
            raise Refused(f"{name} has no tensor {theirs}: it is not a whole RT-DETR; {FITS}")
        if theirs == CLASS_EMBEDDING and len(tensor) == rows["nc"] + 1:
            tensor = tensor[:-1]  # the last row stands for padding
        if tensor.shape != own[key].shape:
            raise Refused(
                f"{name}: {theirs} is {list(tensor.shape)}; an RT-DETR of its size has {list(own[key].shape)}"
            )
        found[key] = tensor.to(own[key].dtype)
        used.add(theirs)
    if unused := tensors.keys() - used:
        raise Refused(f"{name} has a tensor {min(unused)}, which no RT-DETR has; {FITS}")
    model.load_state_dict(found)
    if settings.names and sorted(settings.names) != list(range(rows["nc"])):
        raise Refused(f"{name} has {len(settings.names)} names of classes, but scores of {rows['nc']}")
    model.names = settings.names or name_classes(rows["nc"])
    model.args, model.task, model.pt_path = dict(DEFAULT_CFG_DICT), "detect", place_exports(name)
    return model


def check_settings(settings: DecoderSettings, name: str) -> None:
    """Raise `Refused` for a setting that no decoder can have."""
    whole = {"num_queries": (settings.num_queries, 1), "decoder_attention_heads": (settings.heads, 1)}
    for key, (value, least) in whole.items():
        if type(value) is not int or not least <= value <= MAX_QUERIES:
            raise Refused(
                f"{name}: `{key}` is {quote(value, 80)}; expected a whole number from {least} to {MAX_QUERIES}"
            )
    last, scale = settings.eval_idx, settings.offset_scale
    if last is not None and type(last) is not int:
        raise Refused(f"{name}: `eval_idx` is {quote(last, 80)}; expected a whole number")
    if type(scale) not in (int, float) or not 0 < scale < MAX_QUERIES:
        raise Refused(f"{name}: `decoder_offset_scale` is {quote(scale, 80)}; expected a number above 0")
    if settings.sampling not in METHODS.values() or not isinstance(settings.names, dict):
        raise Refused(f"{name}: its sampling is {quote(settings.sampling, 80)}, or its classes have no names by number")


def place_exports(name: str) -> str:
    """Give the path beside which exports are put, as beside a checkpoint: of a folder, one of its name."""
    path = Path(name)
    if path.is_file():
        return str(path)
    return f"{path}.pt" if path.is_dir() else f"{path.name}.pt"


def name_classes(nc: int) -> dict[int, str]:
    """Name the classes of a file that does not: COCO's, if there are as many."""
    if nc == 80:
        return dict(yaml.safe_load(COCO.read_text(encoding="utf-8", errors="ignore"))["names"])
    return {i: f"class{i}" for i in range(nc)}


def fetch_folder(name: str) -> Path:
    """Find a repository of Hugging Face's among the weights or in the library's cache, or fetch it.

    Raises:
        Refused: If the name is not one of a repository.
        ConnectionError: If it is not on this machine and cannot be fetched.
    """
    repository = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise Refused(f"{name}: expected {PREFIX}ORGANISATION/NAME")
    place = Path(SETTINGS["weights_dir"], repository.replace("/", "--"))
    if (place / CONFIG).is_file():
        return place
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repository, allow_patterns=[CONFIG, "*.safetensors"], local_files_only=not ONLINE)
        return Path(found)
    except Exception as e:
        raise mark_as_plain(
            ConnectionError(
                f"{name}: it is not on this machine and could not be fetched ({type(e).__name__}); put {CONFIG} and "
                f"{WEIGHTS} of {repository} into {place}, or into any folder and name that"
            )
        ) from None
