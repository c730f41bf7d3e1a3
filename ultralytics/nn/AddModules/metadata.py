"""What an exported file says of itself: written again after it has been tried, read without its runtime, and sealed.

The seal is a SHA-256 in the metadata: of each other file of a folder; of a single file as it is with 64 zeros for the
digest. TorchScript's archive, like a checkpoint's, has a CRC-32 of each of its records already.
"""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from ultralytics.nn.AddModules.checkpoints import write
from ultralytics.utils import YAML

__all__ = ()

SEAL = "sha256"
HEAD = "RTDETRDecoder"
BLANK = b"0" * 64
FOLDER = "metadata.yaml"  # of an export that is a folder


def sha256(data: bytes) -> str:
    """Give a digest as text."""
    return hashlib.sha256(data).hexdigest()


def write_metadata(file: Path, metadata: dict) -> None:
    """Put metadata in place of that which an export holds, with a seal; what is of no known kind stays as it is."""
    writer = WRITERS.get(file.suffix)
    if writer:
        writer(file, metadata)
    elif (file / FOLDER).is_file():
        write_folder(file, metadata)


def write_onnx(file: Path, metadata: dict) -> None:
    """Replace the properties of an ONNX model."""
    import onnx

    model, mark = onnx.load(file), secrets.token_hex(32)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: str(value) for key, value in {**metadata, SEAL: mark}.items()})
    write(file, sealed(model.SerializeToString(), mark.encode()))


def write_torchscript(file: Path, metadata: dict) -> None:
    """Replace the extra file of a TorchScript archive."""
    module = torch.jit.load(file, map_location="cpu")
    part = file.with_name(f".{file.name}.part")
    module.save(str(part), _extra_files={"config.txt": json.dumps(metadata)})
    part.replace(file)


def write_tflite(file: Path, metadata: dict) -> None:
    """Replace the archive that stands behind a LiteRT model."""
    data = file.read_bytes()[: archive_begin(file)]
    write(file, data)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", json.dumps({**metadata, SEAL: sha256(data)}))


def write_mnn(file: Path, metadata: dict) -> None:
    """Convert an MNN model to itself, which is the way to its metadata."""
    from MNN.tools import mnnconvert

    part, mark = file.with_name(f".{file.stem}.part.mnn"), secrets.token_hex(32)
    code = json.dumps({**metadata, SEAL: mark})
    mnnconvert.convert(["", "-f", "MNN", "--modelFile", str(file), "--MNNModel", str(part), "--bizCode", code])
    data = part.read_bytes()
    part.unlink()
    write(file, sealed(data, mark.encode()))


def write_folder(folder: Path, metadata: dict) -> None:
    """Replace the metadata beside the other files of an export; the seal comes first, so that a cut is seen."""
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FOLDER)
    digests = {p.relative_to(folder).as_posix(): sha256(p.read_bytes()) for p in others}
    mark = secrets.token_hex(32)
    YAML.save(folder / FOLDER, {SEAL: {FOLDER: mark, **digests}, **metadata})
    write(folder / FOLDER, sealed((folder / FOLDER).read_bytes(), mark.encode()))


WRITERS = {".onnx": write_onnx, ".torchscript": write_torchscript, ".tflite": write_tflite, ".mnn": write_mnn}


def sealed(data: bytes, mark: bytes) -> bytes:
    """Give data with its digest in place of a mark in it."""
    return data.replace(mark, sha256(data.replace(mark, BLANK)).encode())


def broken(file: Path, metadata: dict) -> str | None:
    """Tell what of an export is not as it was written, by its seal; None where all is, or it has no seal."""
    seal = metadata.get(SEAL)
    if isinstance(seal, dict):
        for name, digest in seal.items():
            if not (file / name).is_file():
                return f"{name} is missing"
            if sha256((file / name).read_bytes().replace(str(digest).encode(), BLANK)) != digest:
                own = f" (if you have changed it, take out its {SEAL} lines)" if name == FOLDER else ""
                return f"{name} is not as it was written{own}"
    elif seal:
        data = file.read_bytes()
        data = data[: archive_begin(file)] if file.suffix == ".tflite" else data.replace(seal.encode(), BLANK)
        if sha256(data) != seal:
            return "it is not as it was written"
    return None


def archive_begin(file: Path) -> int:
    """Tell where the archive behind a LiteRT model begins."""
    with zipfile.ZipFile(file) as archive:
        return min(entry.header_offset for entry in archive.infolist())


def with_mnn(read_metadata: Callable) -> Callable:
    """Wrap `BaseBackend.read_metadata`: it reads that of MNN files too, without MNN."""

    @functools.wraps(read_metadata)
    def read(file: str | Path) -> dict:
        if Path(file).suffix.lower() != ".mnn":
            return read_metadata(file)
        try:
            return read_mnn(Path(file))
        except (OSError, ValueError):  # as upstream's does for what it cannot read
            return {}

    return read


def read_mnn(file: Path) -> dict:
    """Read the metadata of an MNN model without MNN: it is the JSON text that begins as the exporter's does."""
    data = file.read_bytes()
    begin = data.rfind(b'{"description": ')
    return json.JSONDecoder().raw_decode(data[begin:].decode("utf-8", errors="ignore"))[0] if begin >= 0 else {}


def stem(model: str | Path) -> str:
    """Give the name by which the command `yolo` tells what a model is: for an export, that of the head it has."""
    from ultralytics.nn.backends.base import BaseBackend

    name = Path(model).stem.lower()
    head = "" if Path(model).suffix in {".pt", ".yaml", ".yml"} else BaseBackend.read_metadata(model).get("head", "")
    if head == HEAD:
        return "rtdetr"
    return "yolo" if head and "rtdetr" in name else name


def is_exact(metadata: dict) -> bool:
    """Whether a runtime must keep fp32 for a model: an RT-DETR that was exported so.

    OpenVINO would take bf16 where a processor has it, MNN half precision; a score would be off by up to 0.04 (measured
    on an AMD EPYC with AVX-512 BF16).
    """
    return metadata.get("head") == HEAD and metadata.get("args", {}).get("quantize") in {None, 32}
