"""What an exported file says of itself: written again after it has been tried, read without its runtime, and sealed.

The seal is a SHA-256 in the metadata: of each other file of a folder; of a single file as it is with 64 zeros for the
digest. There it stands twice and is found in the bytes, not by parsing them, so that damage to the metadata is seen,
too. TorchScript's archive, like a checkpoint's, has a CRC-32 of each of its records already.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
import zipfile
from pathlib import Path

import torch

from ultralytics import utils  # not YAML from it: releases that only build models have none
from ultralytics.nn.AddModules.checkpoints import write

__all__ = ()

SEAL = "sha256"
MARK = "addmodules-sha256:"  # before the digest of a single file
HEAD = "RTDETRDecoder"
BLANK = b"0" * 64
FOLDER = "metadata.yaml"  # of an export that is a folder
SPARE = 4000  # characters of an MNN file's metadata that are left for what is found after it was written
CHANGED = f"if another program has changed it, take `{SEAL}` out of its metadata"


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
    onnx.helper.set_model_props(model, {key: str(value) for key, value in {**metadata, SEAL: seal(mark)}.items()})
    write(file, sealed(model.SerializeToString(), mark))


def write_torchscript(file: Path, metadata: dict) -> None:
    """Replace the extra file of a TorchScript archive."""
    torch.jit.load(file, map_location="cpu").save(str(file), _extra_files={"config.txt": json.dumps(metadata)})


def write_tflite(file: Path, metadata: dict) -> None:
    """Replace the archive that stands behind a LiteRT model."""
    data = file.read_bytes()[: archive_begin(file)]
    whole = io.BytesIO(data)
    whole.seek(0, io.SEEK_END)
    with zipfile.ZipFile(whole, "a") as archive:  # stored as it is: the seal is found in the bytes
        archive.writestr("metadata.json", json.dumps({**metadata, SEAL: seal(sha256(data))}))
    write(file, whole.getvalue())


def write_mnn(file: Path, metadata: dict) -> None:
    """Replace the metadata of an MNN model: by conversion to itself, from then on in the room that this has left."""
    mark = secrets.token_hex(32)
    text, data = json.dumps({**metadata, SEAL: seal(mark)}), file.read_bytes()
    begin, end = mnn_text(data)
    if MARK.encode() in data[begin:end] and len(text) <= end - begin:
        return write(file, sealed(data[:begin] + text.ljust(end - begin).encode() + data[end:], mark))
    from MNN.tools import mnnconvert

    part = file.with_name(f".{file.stem}.part.mnn")
    code = text.ljust(len(text) + SPARE)
    mnnconvert.convert(["", "-f", "MNN", "--modelFile", str(file), "--MNNModel", str(part), "--bizCode", code])
    data = part.read_bytes()
    part.unlink()
    return write(file, sealed(data, mark))


def write_folder(folder: Path, metadata: dict) -> None:
    """Replace the metadata beside the other files of an export; the seal comes first, so that a cut is seen."""
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FOLDER)
    digests = {p.relative_to(folder).as_posix(): sha256(p.read_bytes()) for p in others}
    mark = secrets.token_hex(32)
    utils.YAML.save(folder / FOLDER, {SEAL: {FOLDER: mark, **digests}, **metadata})
    write(folder / FOLDER, sealed((folder / FOLDER).read_bytes(), mark))


WRITERS = {".onnx": write_onnx, ".torchscript": write_torchscript, ".tflite": write_tflite, ".mnn": write_mnn}


def seal(digest: str) -> str:
    """Write a digest as a single file's metadata hold it."""
    return f"{MARK}{digest} {MARK}{digest}"


def sealed(data: bytes, mark: str) -> bytes:
    """Give data with its digest in place of a mark in it."""
    return data.replace(mark.encode(), sha256(data.replace(mark.encode(), BLANK)).encode())


def broken_file(file: Path) -> str | None:
    """Tell whether a single file is not as it was written, by its seal; None where it is, or has no seal."""
    data = file.read_bytes()
    seals = re.findall(rb"%s([0-9a-f]{64})" % MARK.encode(), data)
    if not seals:
        return None
    try:
        whole = data[: archive_begin(file)] if file.suffix == ".tflite" else data.replace(seals[0], BLANK)
    except zipfile.BadZipFile as e:
        return str(e)
    is_whole = seals == [sha256(whole).encode()] * 2
    return None if is_whole else f"it is not as it was written ({CHANGED})"


def broken_folder(folder: Path, metadata: dict) -> str | None:
    """Tell what of a folder is not as it was written, by its seal; None where all is, or it has no seal."""
    for name, digest in metadata.get(SEAL, {}).items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        data = (folder / name).read_bytes()
        if name == FOLDER:
            data = data.replace(b"\r\n", b"\n").replace(str(digest).encode(), BLANK)
        if sha256(data) != digest:
            return f"{name} is not as it was written ({CHANGED})"
    return None


def archive_begin(file: Path) -> int:
    """Tell where the archive behind a LiteRT model begins."""
    with zipfile.ZipFile(file) as archive:
        if archive.testzip():
            raise zipfile.BadZipFile("the metadata are not as they were written")
        return min(entry.header_offset for entry in archive.infolist())


def read_mnn(file: Path) -> dict:
    """Read the metadata of an MNN model without MNN."""
    data = file.read_bytes()
    begin, end = mnn_text(data)
    return json.loads(data[begin:end]) if end else {}


def mnn_text(data: bytes) -> tuple[int, int]:
    """Find the metadata in an MNN model: the JSON text that begins as the exporter's does, and blanks; else 0, 0."""
    begin = data.rfind(b'{"description": ')
    if begin < 0:
        return 0, 0
    text = data[begin:].decode("latin-1")
    end = json.JSONDecoder().raw_decode(text)[1]
    return begin, begin + end + len(text[end:]) - len(text[end:].lstrip(" "))


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
