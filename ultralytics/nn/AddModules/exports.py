"""Exports that are proven: each runs in its own runtime and finds what the PyTorch model finds, or is removed."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ultralytics.nn.AddModules.checkpoints import write
from ultralytics.nn.AddModules.decoder import head_of
from ultralytics.nn.AddModules.errors import Refused
from ultralytics.nn.AddModules.parity import BOUNDS, Bounds, compare, inputs, ties
from ultralytics.utils import LOGGER, YAML

__all__ = ()

# What upstream exports to, and RT-DETR does not run in
CANNOT = {"ncnn": "NCNN has no top-k, with which RT-DETR chooses its queries; format=mnn is for the same devices"}
BITS = {16: 16, 8: 8, "w8a16": 8, "w8a32": 8}  # by `quantize=`


def verified(export: Callable, form: str) -> Callable:
    """Wrap an exporter's method; where another format goes on from its file, nothing is verified here."""

    @functools.wraps(export)
    def to_file(self: Any, *args: Any, **kwargs: Any) -> Any:
        if form == "mnn":  # or MNN's tools would send what they do to their makers, and install what they need for it
            sys.modules.setdefault("MNN.tools.utils.log", None)
        asked = self.args.verify
        if not isinstance(asked, bool):
            raise Refused(f"verify={asked!r}: expected True or False")
        if not asked or self.args.format != form or head_of(self.model) is None:
            return export(self, *args, **kwargs)
        if form in CANNOT:
            raise Refused(f"format={form}: {CANNOT[form]}. verify=False exports it all the same")
        file = export(self, *args, **kwargs)
        verify(self, Path(file))
        return file

    return to_file


def verify(exporter: Any, file: Path) -> None:
    """Run an export in its own runtime, compare what it finds with the PyTorch model, and say so in its metadata.

    Args:
        exporter: Upstream's, with the model that it has exported.
        file: The file or folder.

    Raises:
        Refused: If it does not run, or finds something else. It is removed.
    """
    try:
        backend = load(file, exporter)
    except (ImportError, OSError) as e:
        LOGGER.warning(f"{file} is not verified: its runtime is not on this machine ({' '.join(str(e).split())[:200]})")
        return
    bounds = BOUNDS[BITS.get(exporter.args.quantize, 32)]
    found = []
    try:
        for name, x in tried(exporter).items():
            expected, tied = reference(exporter.model, x.to(exporter.im), bounds)
            y = backend(x.to(exporter.im.device))
            y = torch.as_tensor(y[0] if isinstance(y, (list, tuple)) else y)
            found.append(compare(name, expected, y, tuple(x.shape[2:]), bounds, tied))
    except Exception as e:
        remove(file)
        raise Refused(
            f"{file} does not run in its own runtime ({type(e).__name__}: {' '.join(str(e).split())[:300]}), and is "
            "removed. verify=False exports it all the same"
        ) from e
    for parity in found:
        LOGGER.info(f"{exporter.args.format} against PyTorch, {parity}")
    wrong = next((parity for parity in found if not parity.holds(bounds)), None)
    if wrong:
        remove(file)
        raise Refused(
            f"{file} does not find what the PyTorch model finds ({wrong}; expected {bounds.share:.0%} within "
            f"{bounds.box:g} px and {bounds.score:g}), and is removed. verify=False exports it all the same"
        )
    exporter.metadata["parity"] = {"bounds": vars(bounds), "inputs": [parity.record() for parity in found]}
    write_metadata(file, exporter.metadata)


def load(file: Path, exporter: Any) -> Any:
    """Open an export as `yolo predict` does."""
    from ultralytics.nn.autobackend import AutoBackend

    half = exporter.args.quantize == 16
    return AutoBackend(str(file), device=exporter.device, fp16=half, verbose=False)


def tried(exporter: Any) -> dict[str, torch.Tensor]:
    """Give the inputs: of the exported size, and of another size and batch where the export takes any."""
    batch, channels, *size = exporter.im.shape
    found = inputs(batch, tuple(size), channels)
    if exporter.args.dynamic:
        other = tuple(max(side // 64 * 32, 32) for side in size[::-1])
        more = inputs(batch + 1, other, channels)["photograph"]
        found[f"photograph of {other[0]}x{other[1]}, batch {batch + 1}"] = more
    return found


def reference(model: torch.nn.Module, x: torch.Tensor, bounds: Bounds) -> tuple[torch.Tensor, int]:
    """Give what the PyTorch model finds, and how many of its queries rounding has chosen."""
    head, seen = head_of(model)[1], []
    hook = head.enc_score_head.register_forward_hook(lambda m, _, y: seen.append(y.max(-1).values))
    try:
        with torch.no_grad():
            y = model(x)
    finally:
        hook.remove()
    return y[0] if isinstance(y, (list, tuple)) else y, ties(seen[-1], head.num_queries, bounds)


def remove(file: Path) -> None:
    """Remove an export."""
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


# Metadata -------------------------------------------------------------------------------------------------------------
def write_metadata(file: Path, metadata: dict) -> None:
    """Put metadata in place of that which an export holds. What is neither known nor a folder stays as it is."""
    writer = WRITERS.get(file.suffix)
    if writer:
        writer(file, metadata)
    elif (file / "metadata.yaml").is_file():
        YAML.save(file / "metadata.yaml", metadata)


def write_onnx(file: Path, metadata: dict) -> None:
    """Replace the properties of an ONNX model."""
    import onnx

    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    write(file, model.SerializeToString())


def write_torchscript(file: Path, metadata: dict) -> None:
    """Replace the extra file of a TorchScript archive."""
    module = torch.jit.load(file, map_location="cpu")
    module.save(str(file), _extra_files={"config.txt": json.dumps(metadata)})


def write_tflite(file: Path, metadata: dict) -> None:
    """Replace the archive that stands behind a LiteRT model."""
    with zipfile.ZipFile(file) as archive:
        begin = min(entry.header_offset for entry in archive.infolist())
    data = file.read_bytes()[:begin]
    write(file, data)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", json.dumps(metadata))


def write_mnn(file: Path, metadata: dict) -> None:
    """Convert an MNN model to itself, which is the way to its metadata."""
    from MNN.tools import mnnconvert

    part = file.with_name(f".{file.stem}.part.mnn")
    code = json.dumps(metadata)
    mnnconvert.convert(["", "-f", "MNN", "--modelFile", str(file), "--MNNModel", str(part), "--bizCode", code])
    write(file, part.read_bytes())
    part.unlink()


WRITERS = {".onnx": write_onnx, ".torchscript": write_torchscript, ".tflite": write_tflite, ".mnn": write_mnn}


def read_mnn(file: Path) -> dict:
    """Read the metadata of an MNN model without MNN: it is the JSON text that begins as the exporter's does."""
    data = file.read_bytes()
    begin = data.rfind(b'{"description": ')
    return json.JSONDecoder().raw_decode(data[begin:].decode("utf-8", errors="ignore"))[0] if begin >= 0 else {}


def precision(metadata: dict) -> dict[str, Any]:
    """Give OpenVINO's configuration for an RT-DETR in fp32, which it would run in bf16 where a processor has that.

    A score would be off by up to 0.04 (measured on an AMD EPYC with AVX-512 BF16).
    """
    exact = metadata.get("head") == "RTDETRDecoder" and metadata.get("args", {}).get("quantize") in {None, 32}
    return {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
