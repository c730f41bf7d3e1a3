"""A model file that is empty, cut or changed is one line that names it, whatever would have opened it."""

import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from conftest import ROOT

from ultralytics import RTDETR, YOLO
from ultralytics.fork.export.integrity import find_damage
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import ASSETS

SUFFIXES = ".pt", ".torchscript", ".onnx", ".mnn"
DAMAGE = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-200],
    "another middle": lambda data: data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :],
    "another begin": lambda data: b"\x07" * 300 + data[300:],
    "zeros": lambda data: bytes(len(data)),
    "pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "page": lambda data: b"<!DOCTYPE html><html><body>Not found</body></html>",
}


def use(file: Path) -> None:
    YOLO(file).predict(ASSETS / "zidane.jpg", imgsz=96, verbose=False)


def refused(file: Path) -> str:
    """Use a file, and give the line."""
    with pytest.raises((ValueError, ImportError, OSError)) as e:
        use(file)
    assert e.value.plain and str(file) in str(e.value) and "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_files(exported, tmp_path, suffix, kind):
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(DAMAGE[kind](exported[suffix].read_bytes()))
    line = refused(file)
    expected = {"empty": "is empty", "pointer": "git lfs pull", "page": "is a web page"}
    assert expected.get(kind, "") in line and ("export it again" in line) == (suffix != ".pt")


@pytest.mark.parametrize("part", ["*.xml", "*.bin", "metadata.yaml"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_folders(exported, tmp_path, part, kind):
    folder = tmp_path / "bad_openvino_model"
    shutil.copytree(exported["_openvino_model"], folder)
    file = next(folder.glob(part))
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    assert file.name in refused(folder)


def test_what_is_missing_from_a_folder(exported, tmp_path):
    folder = tmp_path / "bad_openvino_model"
    for part in ("*.xml", "*.bin"):
        shutil.copytree(exported["_openvino_model"], folder, dirs_exist_ok=True)
        next(folder.glob(part)).unlink()
        assert "is missing" in refused(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    assert "has not the files" in refused(folder)
    shutil.copytree(exported["_openvino_model"], folder, dirs_exist_ok=True)
    (folder / "metadata.yaml").unlink()
    assert "has no metadata.yaml" in refused(folder)


def test_a_name_that_tells_no_format(exported, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(exported["_openvino_model"], folder)
    assert "rename it" in (line := refused(folder)) and "_openvino_model" in line
    shutil.copy(exported[".onnx"], tmp_path / "noext")
    assert "rename it" in (line := refused(tmp_path / "noext")) and ".pt, .onnx" in line


def test_a_fixed_size_is_said(exported, capsys, caplog):
    AutoBackend(str(exported[".onnx"]))
    assert "takes images of 96x96 only" in capsys.readouterr().out + caplog.text


def test_one_changed_byte_anywhere(exported, tmp_path):
    """It would be read as another weight."""
    for suffix in SUFFIXES:
        data = exported[suffix].read_bytes()
        begin = data.rfind(b"RTDETRDecoder")  # in the metadata, but of those which a .pt has not
        about = range(begin - 700, begin + 700, 31) if begin > 0 else ()
        for place in (*(len(data) * part // 8 for part in range(1, 8)), *about):
            file = tmp_path / f"bad{suffix}"
            file.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            if suffix in {".pt", ".torchscript"} and not changed(exported[suffix], file):
                continue  # it was between the records of the archive
            assert "damaged" in refused(file)


def changed(one: Path, other: Path) -> bool:
    """Whether the records of two archives differ."""
    a, b = (torch._C.PyTorchFileReader(str(file)) for file in (one, other))
    return any(a.get_record(name) != b.get_record(name) for name in a.get_all_records())


def test_whole_files_pass(exported, tmp_path):
    assert [find_damage(file) for file in exported.values()] == [None] * 5
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.ones(2)}, tmp_path / "without.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert find_damage(tmp_path / "old.pt") is find_damage(tmp_path / "without.pt") is None


def test_metadata_may_be_edited_without_its_seal(exported, tmp_path):
    folder = tmp_path / "edited_openvino_model"
    shutil.copytree(exported["_openvino_model"], folder)
    file = folder / "metadata.yaml"
    text = file.read_text(encoding="utf-8").replace("  0: '0'\n", "  0: person\n")
    file.write_text(text, encoding="utf-8")
    assert "take `sha256` out" in (line := refused(folder)) and "metadata.yaml" in line
    lines = text.splitlines(keepends=True)
    file.write_text("".join(lines[4:]), encoding="utf-8")
    assert lines[0] == "sha256:\n" and lines[4].startswith("description")
    model = YOLO(folder)
    model.predict(ASSETS / "zidane.jpg", imgsz=96, verbose=False)
    assert type(model) is RTDETR and model.names[0] == "person"


def test_another_program_may_change_an_export(exported, tmp_path):
    """The line says what lets it pass."""
    file = tmp_path / "changed.onnx"
    model = onnx.load(exported[".onnx"])
    model.metadata_props.add(key="note", value="mine")
    onnx.save(model, file)
    assert "take `sha256` out of its metadata" in refused(file)
    (seal,) = (entry for entry in model.metadata_props if entry.key == "sha256")
    seal.value = "none"
    model.metadata_props.remove(seal)
    onnx.save(model, file)
    use(file)


def test_line_ends_of_another_system(exported, tmp_path):
    folder = tmp_path / "windows_openvino_model"
    shutil.copytree(exported["_openvino_model"], folder)
    file = folder / "metadata.yaml"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert find_damage(folder) is None


def test_a_runtime_that_is_not_installed_is_named(tmp_path):
    (tmp_path / "x_paddle_model").mkdir()
    assert "package paddle" in refused(tmp_path / "x_paddle_model")


def test_the_command_shows_one_line(tmp_path):
    file = tmp_path / "best.onnx"
    file.write_bytes(b"")
    command = [str(Path(sys.executable).with_name("yolo")), "predict", f"model={file}", f"source={ASSETS}/zidane.jpg"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 1
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith(f"{file} is empty") and "export it again" in line
