"""Write a model as a folder without a pickle, `yolo export format=safetensors`, and read it again.

The folder holds `model.safetensors`, the tensors, and `model.yaml`, the model file with the classes' names. Neither can
run anything, so that a model can be shared with people who open no stranger's checkpoint.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ultralytics.fork.building.yaml_limits import load_within_limits
from ultralytics.fork.errors import Refused, quote
from ultralytics.fork.pretrained.timm_weights import weights_follow
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

FORMAT = "safetensors"
WEIGHTS, MODEL = "model.safetensors", "model.yaml"
SUFFIX = "_safetensors"  # of the folder's name, behind the checkpoint's
NORMS = "norms"  # eps and momentum of the batch norms that have others than most
OWN = {"names", "task", "imgsz", NORMS}  # keys of the file that are not a model YAML's


def is_own_folder(weights: Any) -> bool:
    """Whether a path is a folder that `export_folder` has written."""
    if not isinstance(weights, (str, Path)):
        return False
    folder = find_folder(weights)
    return (folder / WEIGHTS).is_file() and (folder / MODEL).is_file()


def find_folder(weights: str | Path) -> Path:
    """Give the folder, where it or its tensors' file is named."""
    return Path(weights).parent if Path(weights).name == WEIGHTS else Path(weights)


def export_folder(exporter: Any, model: nn.Module) -> str:
    """Write a model's tensors and its model file into a folder, and read them again to see that they are the same.

    Args:
        exporter: Upstream's exporter.
        model: The model.

    Returns:
        The folder.

    Raises:
        Refused: For a model whose layers are fused, or one that is not what its model file builds.
    """
    refuse_arguments(exporter.args)
    source = Path(getattr(model, "pt_path", None) or getattr(model, "yaml_file", None) or "model.pt")
    folder = source.with_name(source.stem + SUFFIX)
    with tempfile.TemporaryDirectory(dir=source.parent if source.parent.is_dir() else Path.cwd()) as scratch:
        write_folder(model, Path(scratch), getattr(exporter.args, "imgsz", None))
        check_folder(model, Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, MODEL):
            shutil.move(Path(scratch, name), folder / name)
    size = (folder / WEIGHTS).stat().st_size / 1e6
    LOGGER.info(
        f"Export complete: {folder} ({size:.1f} MB), tensors and model file. Predict: yolo predict model={folder}"
    )
    return str(folder)


def refuse_arguments(args: Any) -> None:
    """Raise `Refused` for an argument that would change the model: the folder holds it as it is."""
    keys = "decoder_layers", "num_queries", "half", "int8", "quantize", "dynamic", "nms"
    given = {key: getattr(args, key, None) for key in keys}
    named = [f"{key}={value}" for key, value in given.items() if value not in (None, False, DEFAULT_CFG_DICT.get(key))]
    if named:
        raise Refused(f"{' '.join(named)}: format=safetensors writes the model as it is; leave this out")


def write_folder(model: Any, folder: Path, imgsz: Any = None) -> None:
    """Write `model.safetensors` and `model.yaml` into a folder."""
    from safetensors.torch import save_file

    if not isinstance(getattr(model, "yaml", None), dict):
        raise Refused("format=safetensors: this model was not built from a model file, which the folder would hold")
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    rows = {key: value for key, value in model.yaml.items() if key not in OWN}
    rows |= {"task": getattr(model, "task", "detect"), "names": dict(model.names)}
    if isinstance(imgsz, int):
        rows["imgsz"] = imgsz
    built = build_model(rows)
    if built.state_dict().keys() != tensors.keys():
        raise Refused("format=safetensors: the layers of this model are fused; open it anew, and export before predict")
    usual = {name: (m.eps, m.momentum) for name, m in built.named_modules() if isinstance(m, nn.BatchNorm2d)}
    others = {name: [m.eps, m.momentum] for name, m in norms.items() if usual.get(name) != (m.eps, m.momentum)}
    if others:
        rows[NORMS] = others
    (folder / MODEL).write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), encoding="utf-8")


def check_folder(model: Any, folder: Path) -> None:
    """Raise `Refused` unless a folder gives the model back: its tensors, and what it computes with them."""
    again, _ = read_own_folder(folder)
    ours, theirs = model.state_dict(), again.state_dict()
    parameter = next(model.parameters())
    image = torch.rand(1, model.yaml.get("channels", 3), 64, 64, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    with torch.no_grad():
        results = [read_output(m.eval()(image)) for m in (model, again.to(image))]
    model.train(was_training)
    if ours.keys() != theirs.keys() or not torch.equal(*results):
        raise Refused(
            "format=safetensors: this model computes something else than its model file builds, such as another "
            "activation; save it as a checkpoint instead"
        )


def read_output(output: Any) -> torch.Tensor:
    """Give the first tensor of a model's output."""
    while isinstance(output, (list, tuple)):
        output = output[0]
    return output if isinstance(output, torch.Tensor) else read_output(next(iter(output.values())))


def read_own_folder(folder: str | Path, device: torch.device | None = None) -> tuple[nn.Module, dict]:
    """Read a folder that `export_folder` has written, as `load_checkpoint` reads a checkpoint.

    Raises:
        Refused: If a file is damaged, or the tensors are not those of the model file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = find_folder(folder)
    rows = load_within_limits(read_yaml, folder / MODEL)
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as e:
        raise Refused(f"{folder / WEIGHTS} is not whole ({quote(e, 200)}); copy or download it again") from None
    model: Any = build_model({**rows, "yaml_file": str(folder / MODEL)})
    modules, wanted = dict(model.named_modules()), model.state_dict()
    wrong = [key for key, t in wanted.items() if key not in tensors or tensors[key].shape != t.shape]
    wrong += [key for key in tensors if key not in wanted]
    if wrong:
        raise Refused(f"{folder / WEIGHTS}: {wrong[0]} is not a tensor of the model in {MODEL}, or is missing")
    model.load_state_dict(tensors)
    for name, values in (rows.get(NORMS) or {}).items():
        norm = modules.get(name)
        if not (isinstance(norm, nn.BatchNorm2d) and len(values) == 2 and all(0 < x < 1 for x in values)):
            raise Refused(f"{folder / MODEL}: `{NORMS}: {quote(name, 80)}` is not a batch norm with eps and momentum")
        norm.eps, norm.momentum = values
    arguments = {"imgsz": rows["imgsz"]} if isinstance(rows.get("imgsz"), int) else {}
    model.args, model.pt_path = {**DEFAULT_CFG_DICT, **arguments}, f"{folder}.pt"  # beside which exports are put
    return model.to(device).eval(), {"model": model, "train_args": arguments}


def read_yaml(file: Path) -> dict:
    """Read a YAML file.

    Raises:
        Refused: If it is not one, or not a mapping.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise Refused(f"{file} is not YAML ({quote(e, 200)})") from None
    if not isinstance(content, dict):
        raise Refused(f"{file} is not a model file")
    return content


def build_model(content: dict) -> nn.Module:
    """Build the model of a model file that also names its task and classes."""
    from ultralytics import RTDETR, YOLO
    from ultralytics.fork.building.model_class import find_head_kind

    rows = {key: value for key, value in content.items() if key not in OWN}
    task, names = content.get("task", "detect"), content.get("names")
    kind = RTDETR if find_head_kind(rows["head"][-1][2]) == "RTDETRDecoder" else YOLO
    table = object.__new__(kind).task_map
    if task not in table:
        raise Refused(f"{MODEL}: `task: {quote(task, 80)}`, expected one of {', '.join(table)}")
    with weights_follow():
        model = table[task]["model"](rows, ch=rows.get("channels", 3), nc=rows.get("nc"), verbose=False)
    if names and sorted(names) != list(range(content.get("nc") or len(names))):
        raise Refused(f"{MODEL}: {len(names)} `names:` for {content.get('nc')} classes; expected as many, from 0")
    model.task, model.names = task, dict(names) if names else model.names
    return model
