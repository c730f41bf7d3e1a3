"""Write an export's metadata again after the export was verified, and read them without the export's runtime."""

from __future__ import annotations

import io
import json
import secrets
import zipfile
from pathlib import Path

import torch

from ultralytics import utils  # not YAML from it: older releases have functions in its place
from ultralytics.fork.atomic_write import write_atomically
from ultralytics.fork.export.seals import (
    METADATA_FILE,
    SEAL_KEY,
    SEAL_PREFIX,
    fill_seal,
    find_archive_start,
    format_seal,
    sha256,
)

RTDETR_HEAD = "RTDETRDecoder"
MNN_SPARE = 4000  # characters of an MNN file's metadata that are left for what is found after it was written


def write_metadata(file: Path, metadata: dict) -> None:
    """Replace the metadata in an export, and seal it; an export of another kind stays as it is."""
    writer = WRITERS.get(file.suffix)
    if writer:
        writer(file, metadata)
    elif (file / METADATA_FILE).is_file():
        write_folder_metadata(file, metadata)


def write_onnx_metadata(file: Path, metadata: dict) -> None:
    """Replace the properties of an ONNX model."""
    import onnx

    model, placeholder = onnx.load(file), secrets.token_hex(32)
    del model.metadata_props[:]
    properties = {**metadata, SEAL_KEY: format_seal(placeholder)}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in properties.items()})
    write_atomically(file, fill_seal(model.SerializeToString(), placeholder))


def write_torchscript_metadata(file: Path, metadata: dict) -> None:
    """Replace the extra file of a TorchScript archive."""
    torch.jit.load(file, map_location="cpu").save(str(file), _extra_files={"config.txt": json.dumps(metadata)})


def write_tflite_metadata(file: Path, metadata: dict) -> None:
    """Replace the archive that stands behind a LiteRT model."""
    data = file.read_bytes()[: find_archive_start(file)]
    buffer = io.BytesIO(data)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:  # stored as it is: the seal is found in the bytes
        archive.writestr("metadata.json", json.dumps({**metadata, SEAL_KEY: format_seal(sha256(data))}))
    write_atomically(file, buffer.getvalue())


def write_mnn_metadata(file: Path, metadata: dict) -> None:
    """Replace the metadata of an MNN model: first by conversion to itself, later in the spare room that this leaves."""
    placeholder = secrets.token_hex(32)
    text, data = json.dumps({**metadata, SEAL_KEY: format_seal(placeholder)}), file.read_bytes()
    begin, end = find_mnn_metadata(data)
    if SEAL_PREFIX.encode() in data[begin:end] and len(text) <= end - begin:
        padded = text.ljust(end - begin).encode()
        return write_atomically(file, fill_seal(data[:begin] + padded + data[end:], placeholder))
    from MNN.tools import mnnconvert

    part = file.with_name(f".{file.stem}.part.mnn")
    code = text.ljust(len(text) + MNN_SPARE)
    mnnconvert.convert(["", "-f", "MNN", "--modelFile", str(file), "--MNNModel", str(part), "--bizCode", code])
    data = part.read_bytes()
    part.unlink()
    return write_atomically(file, fill_seal(data, placeholder))


def write_folder_metadata(folder: Path, metadata: dict) -> None:
    """Replace the metadata beside the other files of an export; the seal comes first, so that a cut is seen."""
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != METADATA_FILE)
    digests = {p.relative_to(folder).as_posix(): sha256(p.read_bytes()) for p in others}
    placeholder = secrets.token_hex(32)
    utils.YAML.save(str(folder / METADATA_FILE), {SEAL_KEY: {METADATA_FILE: placeholder, **digests}, **metadata})
    write_atomically(folder / METADATA_FILE, fill_seal((folder / METADATA_FILE).read_bytes(), placeholder))


WRITERS = {
    ".onnx": write_onnx_metadata,
    ".torchscript": write_torchscript_metadata,
    ".tflite": write_tflite_metadata,
    ".mnn": write_mnn_metadata,
}


def read_mnn_metadata(file: Path) -> dict:
    """Read the metadata of an MNN model without MNN."""
    data = file.read_bytes()
    begin, end = find_mnn_metadata(data)
    return json.loads(data[begin:end]) if end else {}


def find_mnn_metadata(data: bytes) -> tuple[int, int]:
    """Find the [start, end) of the metadata in an MNN model: the JSON text and the blanks behind it; else 0, 0.

    The JSON text begins as the exporter's does.
    """
    begin = data.rfind(b'{"description": ')
    if begin < 0:
        return 0, 0
    text = data[begin:].decode("latin-1")
    end = json.JSONDecoder().raw_decode(text)[1]
    return begin, begin + end + len(text[end:]) - len(text[end:].lstrip(" "))


def model_stem(model: str | Path) -> str:
    """Give the name by which the command `yolo` tells what a model is; for an export, its head decides.

    Upstream takes a model for an RT-DETR if its file's name says so.
    """
    from ultralytics.nn.backends.base import BaseBackend

    name = Path(model).stem.lower()
    head = "" if Path(model).suffix in {".pt", ".yaml", ".yml"} else BaseBackend.read_metadata(model).get("head", "")
    if head == RTDETR_HEAD:
        return "rtdetr"
    return "yolo" if head and "rtdetr" in name else name


def keeps_fp32(metadata: dict) -> bool:
    """Whether a runtime must keep fp32 for a model: an RT-DETR that was exported in fp32.

    OpenVINO would take bf16 where a processor has it, MNN half precision; a score would be off by up to 0.04 (measured
    on an AMD EPYC with AVX-512 BF16).
    """
    return metadata.get("head") == RTDETR_HEAD and metadata.get("args", {}).get("quantize") in {None, 32}
