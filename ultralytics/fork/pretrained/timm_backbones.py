"""Load backbones pretrained on ImageNet from timm: `pretrained=timm/hgnetv2_b4`, or a file of such weights.

PP-HGNetV2's B4, B5 and B6 are the backbones of RT-DETR, block by block (RT-DETR, arXiv 2304.08069, starts from them),
and so are the bottleneck ResNets. The weights become rows of upstream's, which `alignment` then aligns with any model
like those of a checkpoint. What differs follows the weights: eps is 1e-5 in timm, 1e-3 upstream; ResNet's activation
is ReLU in timm, SiLU upstream.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultralytics.fork.errors import Refused
from ultralytics.fork.pretrained.timm_rows import create_bare_model
from ultralytics.fork.pretrained.timm_weights import PREFIX, SUFFIXES, fetch_tensors, find_file, read_tensors

SAME_COMPUTATION = r"hgnetv2_b\d|(wide_)?resnet\d+(_\d)?"  # others, with anti-aliasing for one, may have equal tensors
CLASSIFIER = "head.", "fc.", "classifier."
MAX_NAMES = 2**26  # bytes that are searched for names of tensors
TIMM_EPS = 1e-5  # of timm's batch norms


class Misfit(Refused):
    """A backbone of timm has other blocks than upstream's rows."""


def is_timm_weights(weights: Any) -> bool:
    """Whether weights are named, or are a file, of timm's kind."""
    if not isinstance(weights, (str, Path)):
        return False
    file = Path(weights)
    return str(weights).startswith(PREFIX) or ((file.suffix in SUFFIXES or has_timm_backbone(file)) and file.is_file())


def has_timm_backbone(file: Path) -> bool:
    """Whether a .pt file is the state dict of a timm backbone, by the keys in it; nothing is unpickled."""
    pickled = read_pickled_names(file) if file.suffix == ".pt" else b""
    return any(key.encode() in pickled for key in FAMILIES) and b"ultralytics" not in pickled


def read_pickled_names(file: Path) -> bytes:
    """Read the pickle in an archive of `torch.save`, in which the names of tensors stand; nothing is unpickled.

    torch compresses nothing, so that an entry that is compressed, and may be of any size, is not one of its own.
    """
    try:
        if not zipfile.is_zipfile(file):
            return b""
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            stored = [e for e in entries if e.compress_type == zipfile.ZIP_STORED and e.file_size <= MAX_NAMES]
            return b"".join(map(archive.read, stored))
    except Exception:  # a damaged file can raise any; what opens it says what is wrong
        return b""


def load_timm_backbone(weights: str | Path, device: torch.device | None = None) -> tuple[nn.Module, dict]:
    """Give a timm backbone as a model of upstream's rows, as `load_checkpoint` gives a checkpoint.

    A backbone of other blocks than upstream's comes without layers: `place_in` gives them for a model with a Timm row.

    Args:
        weights: `timm/` and a model's name, with or without a tag, or a file of its weights, with or without `timm/`.
        device: Where to put it.

    Returns:
        The model, which has no head, and a checkpoint of it.

    Raises:
        ValueError: For a name that timm does not know, or a file that is not of tensors.
        FileNotFoundError: For a file that is not there.
        ConnectionError: If the weights are not on this machine and cannot be fetched.
    """
    name = str(weights).removeprefix(PREFIX)
    file = find_file(name)
    model: Any
    try:
        if file is None:
            check_name(name)
        model = build_rows(read_tensors(file) if file else fetch_tensors(name), str(file or weights))
    except Misfit as e:
        layer: Any = nn.Identity()
        model = make_model([])
        layer.i, layer.f = 0, -1  # as of a row
        model.model, model.save, model.misfit = nn.Sequential(layer), [], e
    model.names, model.pt_path, model.timm = {}, str(file or weights), Path(name).stem
    return model.to(device).eval(), {"model": model}


def place_in(source: Any, target: Any) -> Any:
    """Give the weights of a timm backbone the layers that a model has for them.

    Args:
        source: What `load_timm_backbone` has given; any other model is given back.
        target: The model that the weights are for.

    Raises:
        Refused: If the target has neither a Timm row of the backbone nor blocks that its weights fit.
    """
    if not getattr(source, "timm", None) or "backbone" not in (getattr(source, "yaml", None) or {}):
        return source
    backbone: Any = target.model[0] if len(target.model) else None
    if type(backbone).__name__ != "Timm":
        if misfit := getattr(source, "misfit", None):
            raise misfit
        return source
    options = {**backbone.options, "pretrained": source.pt_path, "strides": list(backbone.strides)}
    model = make_model([[-1, 1, "Timm", [backbone.name, options]]])
    from ultralytics.nn.tasks import parse_model

    model.model, model.save = parse_model(copy.deepcopy(model.yaml), backbone.mean.shape[1], verbose=False)
    model.names, model.pt_path, model.timm = {}, source.pt_path, source.timm
    return model.eval()


def make_model(rows: list[list], activation: str | None = None) -> Any:
    """Make a model of upstream's that has the rows of a backbone, and no layers yet."""
    from ultralytics.nn.tasks import BaseModel

    model: Any = BaseModel()
    model.yaml = {"backbone": rows, "head": [], "nc": 0, "activation": activation}
    return model


def check_name(name: str) -> None:
    """Raise an error for a model whose weights do not fit upstream's blocks, before they are fetched."""
    import timm

    if not timm.is_model(name):
        known = [*timm.list_models("hgnetv2*"), *timm.list_models("resnet*")]
        near = difflib.get_close_matches(name.partition(".")[0], known, n=3) or ["hgnetv2_b4", "resnet50"]
        raise Refused(f"timm has no model {name!r}; did you mean {' or '.join(near)}? (or a file that does not exist)")
    try:
        bare = create_bare_model(name)
    except RuntimeError as e:  # a tag that the model has not
        raise Refused(f"timm/{name}: {e}") from None
    build_rows(bare.state_dict(), PREFIX + name)
    if not re.fullmatch(SAME_COMPUTATION, name.partition(".")[0]):
        raise misfit_error(PREFIX + name, "its tensors have their shapes, but it computes something else with them")


def build_rows(tensors: dict[str, torch.Tensor], name: str) -> nn.Module:
    """Build the rows of upstream's that timm's tensors are the weights of, and put them in.

    Args:
        tensors: The state dict of a timm model, on the meta device to see only whether it would fit.
        name: What to call it in errors and in the report.
    """
    from ultralytics.nn.tasks import parse_model

    tensors = {key: t for key, t in tensors.items() if not key.startswith(CLASSIFIER)}
    family = next((rows for key, rows in FAMILIES.items() if key in tensors), None)
    if family is None:
        raise misfit_error(name, "it is neither a PP-HGNetV2 nor a ResNet")
    rows, names, activation = family({key: tuple(t.shape) for key, t in tensors.items()})
    model = make_model(rows, activation)
    with torch.device("meta"):
        model.model, model.save = parse_model(copy.deepcopy(model.yaml), 3, verbose=False)
    wanted = model.state_dict()
    found = {key: torch.tensor(0) for key in wanted if key.endswith(".num_batches_tracked")}  # old files have none
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        renamed = key.replace(prefix, names[prefix], 1) if prefix else None
        if renamed not in wanted or wanted[renamed].shape != tensor.shape:
            raise misfit_error(name, f"{key} has no place")
        found[renamed] = tensor
    missing = next((key for key in wanted if key not in found), None)
    if missing:
        raise misfit_error(name, f"it has nothing for {missing}")
    model.load_state_dict(found, assign=True)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = TIMM_EPS
    return model


def misfit_error(name: str, why: str) -> Misfit:
    """Say that a model has other blocks than upstream's."""
    fits = "expected hgnetv2_b4, b5 or b6, a bottleneck ResNet such as resnet50, or a model whose first row is Timm"
    return Misfit(f"{name} does not fit the blocks of RT-DETR's backbones: {why}; {fits}")


# Rows, timm's prefixes to ours, an activation that is not upstream's
Rows = tuple[list[list], dict[str, str], str | None]


def read_hgnet_rows(shape: dict[str, tuple[int, ...]]) -> Rows:
    """Read the rows of a PP-HGNetV2 off the shapes of its tensors."""
    rows: list[list] = [[-1, 1, "HGStem", [shape["stem.stem1.conv.weight"][0], shape["stem.stem4.conv.weight"][0]]]]
    names = {"stem.": "model.0."}
    for stage in list_numbered(shape, "stages."):
        down = shape.get(f"{stage}.downsample.conv.weight")
        if down:
            names[f"{stage}.downsample."] = f"model.{len(rows)}."
            rows.append([-1, 1, "DWConv", [down[0], 3, 2, 1, False]])
        for i, block in enumerate(list_numbered(shape, f"{stage}.blocks.")):
            for theirs, ours in (("layers", "m"), ("aggregation.0", "sc"), ("aggregation.1", "ec")):
                names[f"{block}.{theirs}."] = f"model.{len(rows)}.{ours}."
            layers = list(list_numbered(shape, f"{block}.layers."))
            light = f"{layers[0]}.conv1.conv.weight" in shape
            cm, *_, k = shape[f"{layers[0]}.conv2.conv.weight" if light else f"{layers[0]}.conv.weight"]
            c2 = shape[f"{block}.aggregation.1.conv.weight"][0]
            rows.append([-1, len(layers), "HGBlock", [cm, c2, k, light, i > 0]])
    return rows, names, None


def read_resnet_rows(shape: dict[str, tuple[int, ...]]) -> Rows:
    """Read the rows of a bottleneck ResNet off the shapes of its tensors."""
    rows: list[list] = [[-1, 1, "ResNetLayer", [3, shape.get("conv1.weight", (64,))[0], 1, True, 1]]]
    names = {"conv1.": "model.0.layer.0.conv.", "bn1.": "model.0.layer.0.bn."}
    for i, stage in enumerate(list_numbered(shape, "layer", first=1)):
        blocks = list(list_numbered(shape, f"{stage}."))
        for b, block in enumerate(blocks):
            place = f"model.{len(rows)}.layer.{b}."
            names |= {f"{block}.conv{n}.": f"{place}cv{n}.conv." for n in (1, 2, 3)}
            names |= {f"{block}.bn{n}.": f"{place}cv{n}.bn." for n in (1, 2, 3)}
            names |= {f"{block}.downsample.{n}.": f"{place}shortcut.0.{part}." for n, part in enumerate(("conv", "bn"))}
        cm, c1 = shape[f"{stage}.0.conv1.weight"][:2]
        expansion = shape.get(f"{stage}.0.conv3.weight", (cm,))[0] // cm
        rows.append([-1, 1, "ResNetLayer", [c1, cm, 2 if i else 1, False, len(blocks), expansion]])
    return rows, names, "torch.nn.ReLU()"


def list_numbered(keys: Iterable[str], prefix: str, first: int = 0) -> Iterator[str]:
    """Give the numbered names that begin with `prefix`, as long as there are such keys."""
    numbers = itertools.takewhile(lambda n: any(k.startswith(f"{prefix}{n}.") for k in keys), itertools.count(first))
    return (f"{prefix}{n}" for n in numbers)


FAMILIES: dict[str, Callable] = {"stem.stem1.conv.weight": read_hgnet_rows, "layer1.0.conv1.weight": read_resnet_rows}
