"""Nothing is sent or fetched that nobody asked for: commands run without a network, and are watched for sockets."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import ImageFont
from watched_workplace import apart, traced, workplace  # noqa: F401 - a fixture

from ultralytics import utils
from ultralytics.cfg import entrypoint, get_cfg
from ultralytics.fork.errors import Refused
from ultralytics.fork.hooks.exporter import verify_what_it_writes
from ultralytics.fork.hooks.utils import install_settings
from ultralytics.fork.privacy.downloads import find_font_on_disk, require_local_data, require_names
from ultralytics.fork.privacy.packages import name_missing_packages
from ultralytics.fork.privacy.telemetry import OPT_OUT_VARIABLES
from ultralytics.fork.training.mixed_precision import is_half_precision_accurate
from ultralytics.utils import ASSETS, checks
from ultralytics.utils.plotting import Annotator


def test_the_watch_sees_what_goes_out(workplace):
    code = "import socket, subprocess, sys\n"
    code += (
        "for f in (lambda: socket.create_connection(('192.0.2.1', 9), 0.1), lambda: socket.getaddrinfo('a.invalid', 9),"
    )
    code += " lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.2', 9))):\n"
    code += "    try: f()\n    except OSError: pass\n"
    child = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('192.0.2.3', 9))"
    code += f"subprocess.run([sys.executable, '-c', {child!r}], stderr=-3)\n"
    code += "server = socket.create_server(('127.0.0.1', 0)); socket.create_connection(server.getsockname())\n"
    workplace.python("-c", code)
    seen = workplace.seen()
    for host in ("192.0.2.1", "a.invalid", "192.0.2.2", "192.0.2.3"):
        assert any(host in line for line in seen), (host, seen)
    assert not any("127.0.0.1" in line for line in seen)


@pytest.mark.skipif(not traced(), reason="needs strace, and to be allowed to use it")
def test_the_watch_sees_native_code(workplace):
    code = "import ctypes, socket, struct\n"
    code += "s = socket.socket(); a = struct.pack('=H', 2) + struct.pack('!H4s8x', 9, bytes([192, 0, 2, 9]))\n"
    code += "s.settimeout(0.1); ctypes.CDLL(None).connect(s.fileno(), a, len(a))"
    workplace.python("-c", code)
    assert [line for line in workplace.seen() if "192.0.2.9" in line and "connect(" in line]


@pytest.mark.skipif(not apart(), reason="needs to be allowed to make a network namespace")
def test_there_is_no_network(workplace):
    found = workplace.python("-c", "import socket; print(socket.if_nameindex())")
    assert "'lo'" in found and found.count("(") == 1


def test_yolo_on_local_files(workplace, shapes, often):
    """What the README begins with, in one process, its children with it."""
    photographs = workplace.folder / "photographs"
    photographs.mkdir()
    for name in ("bus.jpg", "zidane.jpg"):
        shutil.copy(ASSETS / name, photographs)
    run = f"project={workplace.folder / 'runs'} name=run exist_ok=True"
    best = "model=runs/run/weights/best.pt imgsz=64"
    printed = workplace.yolo(
        "version",
        "checks",
        "settings",
        f"train model=rtdetr-tiny.yaml data={shapes} epochs=1 imgsz=64 batch=4 workers=2 {run}",
        f"val {best} data={shapes} plots=True save_json=True",
        f"predict {best} source=photographs/bus.jpg save=True",
        f"predict {best} source=photographs save=True save_txt=True conf=0.01",
        f"track {best} source=photographs save=True conf=0.01",
        *(f"export {best} format={form}" for form in ("torchscript", "onnx", "openvino", "mnn")),
        *often([], [f"export {best} format={form} quantize=8 data={shapes}" for form in ("openvino", "onnx")]),
        "predict model=runs/run/weights/best.onnx imgsz=64 source=photographs/bus.jpg",
        "settings runs_dir=runs",
    )
    assert (workplace.folder / "runs" / "run" / "labels.jpg").is_file() and "best.mnn" in printed
    assert workplace.seen() == []
    assert "WARNING" not in "".join(
        line for line in printed.splitlines(True) if re.search("font|glyph|install", line, re.I)
    )
    assert not list(workplace.settings.parent.rglob("*.ttf"))
    assert json.loads(workplace.settings.read_text())["sync"] is False


@pytest.mark.nightly
def test_a_study(workplace, shapes):
    study = ["--models", "rtdetr-tiny.yaml", "--data", shapes, "--seeds", 0, "--epochs", 1, "--out", "study"]
    workplace.python(ROOT / "scripts" / "compare.py", *study, "imgsz=64", "batch=4", "workers=0")
    assert (workplace.folder / "study" / "report.html").is_file()
    assert workplace.seen() == []


@pytest.mark.nightly
def test_explanations_and_several_processes(workplace, shapes):
    explain = ROOT / "scripts" / "explain.py", "rtdetr-tiny-FLA.yaml", ASSETS / "bus.jpg"
    workplace.python(*explain, "--what", "cam", "focusing", "--imgsz", 64)
    command = f"yolo train model=rtdetr-tiny.yaml data={shapes} epochs=1 imgsz=64 batch=4 device=cpu project=runs"
    assert workplace.seen() == []
    workplace.python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "yolo", command)
    # The launcher and gloo ask for the name and the address of the machine that they are on, and for nothing else
    own = re.compile(rf"gethostbyaddr {re.escape(socket.gethostname())} |sin6?_port=htons\(53\)")
    assert [line for line in workplace.seen() if not own.search(line)] == []


# What upstream would fetch --------------------------------------------------------------------------------------------
@pytest.fixture
def no_network(monkeypatch):
    """Fails where anything is fetched."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"asked for {args} {kwargs}")

    for name in ("is_url", "safe_download", "attempt_download_asset"):
        monkeypatch.setattr(checks.downloads, name, refuse)
    monkeypatch.setattr(checks.subprocess, "check_output", refuse)
    for ask in (checks.check_font, find_font_on_disk):
        getattr(ask, "cache_clear", lambda: None)()


@pytest.mark.parametrize(
    "command, missing",
    [
        ("predict source=bus.jpg", "model= is missing.*model=yolo26n.pt"),
        ("segment val", "model= is missing.*model=yolo26n-seg.pt"),
        ("train model=rtdetr-tiny.yaml", "data= is missing.*data=coco8.yaml"),
        ("val model=rtdetr-tiny.yaml", "data= is missing.*data=coco8.yaml"),
        ("val model=yolo11n-cls.yaml", "data= is missing.*data=imagenet10"),
        ("benchmark model=yolo11n.yaml", "data= is missing.*data=coco8.yaml"),
        (
            "export model=yolo11n.yaml format=onnx quantize=8",
            "data= is missing.*data=coco8.yaml",
        ),
    ],
)
def test_what_nobody_names_is_not_fetched(no_network, tmp_path, monkeypatch, command, missing):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=missing):
        entrypoint(f"yolo {command}")


def test_what_is_there_need_not_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("yolo26n.pt", "coco8"):
        Path(name).touch()
    for arguments in ({"mode": "predict"}, {"mode": "train"}, {"mode": "train", "model": "a.yaml", "data": "b.yaml"}):
        require_names(arguments)
    Path("coco8").unlink()
    require_names({"mode": "train", "resume": True})
    own = tmp_path / "coco8.yaml"
    own.write_text("path: mine\n")
    assert (
        require_local_data(own) == own
        and require_local_data("shapes.yaml") == "shapes.yaml"
        and require_local_data(None) is None
    )
    shutil.copy(ROOT / "ultralytics/cfg/datasets/coco8.yaml", own)
    with pytest.raises(Refused, match="data= is missing.*coco8.yaml"):
        require_local_data(own)


def test_fonts_are_of_this_machine(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "USER_CONFIG_DIR", tmp_path)
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        assert ImageFont.truetype(str(find_font_on_disk(name)), 12)
    image = np.zeros((200, 400, 3), dtype=np.uint8)
    pictures = []
    for text in ("circle", "Ёж"):
        annotator = Annotator(image.copy(), pil=True, font_size=30, example=text)
        annotator.box_label((20, 80, 300, 180), text, (0, 0, 255))
        width, height = annotator.font.getsize(text)
        assert 30 < width < 200 and 20 < height < 45  # load_default() would be of 10
        pictures.append(annotator.result())
    assert not np.array_equal(*pictures)


def test_a_wide_font_is_taken_where_there_is_one(monkeypatch, tmp_path, capsys, caplog):
    from matplotlib import font_manager

    dejavu = find_font_on_disk("Arial.ttf")
    wide = shutil.copy(dejavu, tmp_path / "wide.ttf")
    entry = font_manager.FontEntry(fname=wide, name="WenQuanYi Zen Hei")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    assert find_font_on_disk("Arial.Unicode.ttf") == dejavu
    told = capsys.readouterr().out + caplog.text
    assert "no font of this machine has Chinese, Japanese and Korean" in told and "Arial.Unicode.ttf" in told
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [entry])
    assert find_font_on_disk("Arial.Unicode.ttf") == wide


def test_half_precision_is_checked_without_a_model_to_fetch(no_network, monkeypatch):
    class Model(torch.nn.Linear):
        """Says that it is on a GPU."""

        def parameters(self, recurse=True):
            return iter([type("Parameter", (), {"device": torch.device("meta")})()])

    asked = []
    monkeypatch.setattr(
        "ultralytics.fork.training.mixed_precision.is_half_precision_accurate",
        lambda device: asked.append(device) or True,
    )
    assert checks.check_amp(Model(1, 1)) is True and asked == [torch.device("meta")]


def test_half_precision(monkeypatch):
    state = torch.get_rng_state()
    assert is_half_precision_accurate(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    forward = torch.nn.Conv2d.forward

    def spoil(self, x):
        y = forward(self, x)
        return wrong(y) if torch.is_autocast_enabled("cpu") else y

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spoil)
    for wrong in (lambda y: y * float("nan"), lambda y: y + 0.3 * torch.randn_like(y)):  # noqa: B007, as `spoil` has it
        assert not is_half_precision_accurate(torch.device("cpu"))


def test_packages_are_installed_only_where_asked(no_network, monkeypatch, capsys, caplog):
    assert checks.check_requirements("no-such-package>=1.2", cmds="--no-deps") is False
    told = capsys.readouterr().out + caplog.text
    assert "no-such-package>=1.2 is not installed" in told and "`pip install 'no-such-package>=1.2' --no-deps`" in told
    assert checks.check_requirements("no-such-package", install=False) is False
    assert "no-such-package" not in capsys.readouterr().out
    installed = []
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.setattr(checks, "ONLINE", True)
    monkeypatch.setattr(checks.subprocess, "check_output", lambda argv, **_: installed.append(argv) or "")
    checks.check_requirements("no-such-package")
    assert "no-such-package" in installed[0]


def test_missing_packages_of_an_extra_are_told_with_it(capsys, caplog):
    name_missing_packages(["onnxslim>=0.1.82"])
    assert "`uv run --extra export …` or `pip install 'onnxslim>=0.1.82'`" in capsys.readouterr().out + caplog.text


@pytest.fixture
def names():
    """What `install_settings` takes of the globals of upstream's utils."""
    return {"AUTOINSTALL": True}


@pytest.mark.parametrize("value, installs", [(None, False), ("true", True)])
def test_yolo_autoinstall(names, monkeypatch, value, installs):
    monkeypatch.delenv("YOLO_AUTOINSTALL", raising=False)
    if value:
        monkeypatch.setenv("YOLO_AUTOINSTALL", value)
    install_settings(names)
    assert names["AUTOINSTALL"] is installs


def test_what_others_send_is_off_unless_the_user_has_said_otherwise(names, monkeypatch):
    for name in OPT_OUT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    install_settings(names)
    expected = {**OPT_OUT_VARIABLES, "ORT_DISABLE_TELEMETRY": "0"}
    assert {name: os.environ[name] for name in OPT_OUT_VARIABLES} == expected


def test_importing_asks_nothing_and_turns_off_what_others_send(workplace):
    code = "import os, ultralytics.utils.checks as c; print(c.AUTOINSTALL, os.environ['ORT_DISABLE_TELEMETRY'])"
    assert workplace.python("-c", code).split()[-2:] == ["False", "1"]
    assert workplace.seen() == []


def test_being_online_is_asked_where_it_matters(monkeypatch):
    monkeypatch.setenv("YOLO_OFFLINE", "false")
    asked = []
    monkeypatch.setattr(utils.socket, "getaddrinfo", lambda host, *_: asked.append(host))
    online = utils.is_online()
    assert asked == []
    assert online and asked == ["one.one.one.one"] and utils.ONLINE and len(asked) == 2
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    assert not online and not utils.is_online() and len(asked) == 2


def test_openvino_reports_only_with_consent(workplace):
    """Even where it was imported before, and takes its user's silence for a yes."""
    file = workplace.folder / "intel" / "openvino_telemetry"
    code = "import openvino\nfrom ultralytics.fork.privacy.telemetry import disable_openvino_telemetry as disable\n"
    code += "from openvino_telemetry.main import OptInChecker, Telemetry\n"
    code += "before = Telemetry().consent; disable(); disable(); print(before, Telemetry().consent)\n"
    code += "for consent in '01':\n"
    code += f"    open({str(file)!r}, 'w').write(consent)\n"
    code += "    print(OptInChecker().check(False).name)"
    assert workplace.python("-c", code).split()[-4:] == ["True", "False", "DECLINED", "ACCEPTED"]


def test_an_export_to_openvino_disables_its_telemetry(monkeypatch):
    asked = []
    monkeypatch.setattr("ultralytics.fork.export.verification.disable_openvino_telemetry", lambda: asked.append(1))
    exporter = type("Exporter", (), {"args": get_cfg(overrides={"format": "onnx"}), "model": torch.nn.Identity()})()
    assert verify_what_it_writes(lambda self: "file", "openvino")(exporter) == "file"
    assert asked
