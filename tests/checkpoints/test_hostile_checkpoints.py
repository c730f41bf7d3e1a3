"""A checkpoint of a stranger does nothing but become a model, or is refused."""

import collections
import json
import math
import os
import random
import re
import subprocess
import sys
import zipfile
from copy import deepcopy
from itertools import product
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, ROOT, TINY, mark_nightly

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import entrypoint, get_cfg
from ultralytics.fork.checkpoints.load import load_checkpoint
from ultralytics.fork.errors import Refused
from ultralytics.fork.instance_mixin import InstanceMixin, mix_into
from ultralytics.nn.tasks import torch_safe_load
from ultralytics.utils import LOGGER

VANILLA = "yolov8n.yaml", "yolov10n.yaml", "yolo11n-seg.yaml", "yolo11n-pose.yaml", "yolov8-world.yaml", "rtdetr-l.yaml"
PICKLES = sorted((ROOT / "tests" / "golden" / "tutorial_pickles").glob("*.pt"))


def open_all(folder: Path) -> dict[str, dict]:
    """Open all files of a folder in a process of its own; gives what became of each."""
    environment = {key: value for key, value in os.environ.items() if key != "ULTRALYTICS_SAFE_LOAD"}
    command = [sys.executable, "-B", hostile.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {result["file"]: result for result in results}


def test_hostile_checkpoints(tmp_path):
    """Each is one line that names the file; nothing is written, started or connected to, no memory is taken."""
    files = {f"{i:03d}.pt": title for i, title in enumerate(hostile.CASES)}
    for name, title in files.items():
        hostile.CASES[title](tmp_path / name)
    results = open_all(tmp_path)
    assert set(results) == set(files) and len(files) >= 40
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    for name, result in results.items():
        assert result["plain"] and "\n" not in result["line"], (files[name], result)
        assert result["line"].startswith(str(tmp_path / name)), (files[name], result)
        assert not result["events"] and result["MiB"] < 256, (files[name], result)
        if files[name].startswith("calls ") and "." in files[name]:
            called = files[name].removeprefix("calls ").replace("__builtin__", "builtins")
            assert called in result["line"] and "ULTRALYTICS_SAFE_LOAD=0" in result["line"], (files[name], result)


def test_the_corpus_would_do_harm(tmp_path):
    """Opened as Python does, the first of them runs its command: what is refused is no blank."""
    file = tmp_path / "evil.pt"
    hostile.CASES["calls os.system"](file)
    code = f"from ultralytics.utils.patches import torch_load; torch_load({str(file)!r})"
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / hostile.MARK).exists()


def test_cut_at_every_boundary(tmp_path):
    """A checkpoint that is cut before, in or behind any of its parts is refused."""
    for title, data in hostile.truncated(PICKLES[0].read_bytes()):
        (tmp_path / f"{title}.pt").write_bytes(data)
    results = open_all(tmp_path)
    assert len(results) > 100
    for result in results.values():
        assert result["plain"] and not result["events"] and ".pt" in result["line"], result


def test_changed_at_random(tmp_path, often):
    """A pickle with bytes changed is a model or one line, and does nothing else."""
    draw = random.Random(0)
    pickles = [hostile.program(hostile.layer(weight=hostile.tensor((4,), (1,)))), hostile.GOOD]
    with zipfile.ZipFile(ROOT / "tests/golden/tutorial_pickles/bra.pt") as archive:
        pickles.append(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
    for i in range(often(150, 5000)):
        data = bytearray(draw.choice(pickles))
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.choice([draw.randrange(256), *b"RbcQQst(.)\x81\x93"])
        (tmp_path / f"{i:05d}.pt").write_bytes(hostile.archive(bytes(data)))
    results = open_all(tmp_path)
    assert len(results) == often(150, 5000)
    for result in results.values():
        assert (result["plain"] or result["line"].startswith("opened")) and not result["events"], result
    lines = [result["line"] for result in results.values()]
    for outcome in ("is damaged", " names ", "holds no model"):  # by Python's unpickler, by ours, by what came out
        assert any(outcome in line for line in lines), outcome


LARGE = [(name, False) for name in MODELS if name not in TINY]
SMALL = list(product([*TINY, *VANILLA], [False, True]))


@pytest.mark.parametrize("name, fused", mark_nightly([*LARGE, *SMALL], [*SMALL, ("rtdetr-l-EMO", False)]))
def test_models_open(tmp_path, name, fused):
    """What a training or a `save` writes of a model comes back, weights and all."""
    model = (RTDETR if name.startswith("rtdetr") else YOLO)(name if name.endswith(".yaml") else f"{name}.yaml").model
    has_loss = name in ("yolov8n.yaml", "rtdetr-tiny")  # which a model keeps once it has computed it
    model.nc = getattr(model.model[-1], "nc", 3)
    model.criterion = model.init_criterion() if has_loss else None
    model = deepcopy(model).eval().fuse(verbose=False) if fused else model
    torch.save({"model": model, "best_fitness": np.float64(0.5), "train_args": {}}, tmp_path / "x.pt")
    checkpoint = load_checkpoint(tmp_path / "x.pt", map_location="cpu")
    before, after = model.state_dict(), checkpoint["model"].state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert checkpoint["best_fitness"] == 0.5


@pytest.mark.parametrize(
    "layer",
    [torch.nn.LSTM(4, 6, 2, bidirectional=True, proj_size=2), torch.nn.GRU(4, 6), torch.nn.RNN(4, 6, 3, bias=False)],
)
def test_recurrent_layers_open(tmp_path, layer):
    torch.save({"model": layer}, tmp_path / "x.pt")
    x = torch.randn(3, 2, 4)
    assert torch.equal(load_checkpoint(tmp_path / "x.pt")["model"](x)[0], layer(x)[0])


@pytest.mark.parametrize(
    "act", [torch.sigmoid, torch.tanh, F.relu, F.gelu, F.silu, F.softplus], ids=lambda act: act.__name__
)
def test_activations_open(tmp_path, act):
    """A layer of torch's keeps one."""
    layer = torch.nn.TransformerEncoderLayer(4, 2, activation=act).eval()
    torch.save({"model": layer}, tmp_path / "x.pt")
    x = torch.randn(3, 2, 4)
    assert torch.equal(load_checkpoint(tmp_path / "x.pt")["model"](x), layer(x))


def test_a_module_whose_file_is_missing_is_asked_for(tmp_path):
    body = hostile.layer("ultralytics.nn.AddModules.Gate.Gate")
    (tmp_path / "x.pt").write_bytes(hostile.archive(hostile.program(body)))
    with pytest.raises(Refused, match=r"x.pt names ultralytics.nn.AddModules.Gate.Gate.*Gate.*AddModules") as e:
        YOLO(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(e.value) and "ULTRALYTICS_SAFE_LOAD=0 does not help" in str(e.value)


def test_a_state_dict_is_told(tmp_path):
    torch.save(YOLO("yolov8n.yaml").model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(TypeError, match="x.pt .*state dict") as e:
        YOLO(tmp_path / "x.pt")
    assert e.value.plain and "export it" not in str(e.value)


def test_marks_of_parameters_stay(tmp_path):
    layer = torch.nn.Linear(2, 2)
    layer.weight.no_decay = True
    torch.save({"model": layer}, tmp_path / "x.pt")
    weight = load_checkpoint(tmp_path / "x.pt")["model"].weight
    assert weight.no_decay and weight.requires_grad and torch.equal(weight, layer.weight)


def test_layers_that_processes_share_open(tmp_path):
    """Several processes extend a norm, which is saved as `object.__new__` of its class."""
    norm = torch.nn.BatchNorm2d(4)
    mix_into(norm, type("Shared", (InstanceMixin,), {}))
    torch.save({"model": norm}, tmp_path / "x.pt")
    assert type(load_checkpoint(tmp_path / "x.pt")["model"]) is torch.nn.BatchNorm2d


def test_a_distillation_opens(tmp_path, shapes):
    """Its teacher and student keep hooks that take their layers' outputs."""
    YOLO("yolo11n.yaml").save(tmp_path / "teacher.pt")
    model = YOLO("yolo11n.yaml")
    teacher, project = tmp_path / "teacher.pt", tmp_path / "runs"
    model.train(
        data=shapes, distill_model=teacher, epochs=1, imgsz=64, batch=4, project=project, plots=False, workers=0
    )
    # As another process opens it: this one trusts what it has written
    found = load_checkpoint(model.trainer.best, map_location="cpu", weights_only=True)["model"].state_dict()
    expected = YOLO(model.trainer.best).model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key].float(), expected[key]) for key in found)


def list_tensors(value: object) -> list[torch.Tensor]:
    """List the tensors of a checkpoint, by their place in it."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, (dict, list, tuple)):
        return [x for part in (value.values() if isinstance(value, dict) else value) for x in list_tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize("file", PICKLES, ids=lambda file: file.stem)
def test_tutorial_pickles_open(file, monkeypatch):
    """As Python's own unpickler opens them."""
    found = list_tensors(load_checkpoint(file, map_location="cpu"))
    monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", "0")
    expected = list_tensors(load_checkpoint(file, map_location="cpu"))
    assert len(found) == len(expected) > 0 and all(map(torch.equal, found, expected))


def test_the_format_before_1_6(tmp_path):
    model = YOLO("yolov8n.yaml").model
    torch.save({"model": model}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(YOLO(tmp_path / "old.pt").model.model[0].conv.weight, model.model[0].conv.weight)


def test_an_open_file(tmp_path):
    """Not only paths can be given."""
    torch.save({"x": torch.arange(3)}, tmp_path / "x.pt")
    with open(tmp_path / "x.pt", "rb") as f:
        assert load_checkpoint(f)["x"].tolist() == [0, 1, 2]


class Mine(torch.nn.Module):
    """A class of the user's own."""


@pytest.mark.parametrize("value, opens", [("0", True), ("false", True), ("1", False), ("", False), (None, False)])
def test_the_opt_out(tmp_path, monkeypatch, value, opens):
    torch.save({"model": Mine()}, tmp_path / "mine.pt")
    monkeypatch.delenv("ULTRALYTICS_SAFE_LOAD", raising=False)
    if value is not None:
        monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", value)
    if opens:
        assert isinstance(torch_safe_load(tmp_path / "mine.pt")[0]["model"], Mine)
        with pytest.raises(Refused):  # what is asked for in code stays restricted
            load_checkpoint(tmp_path / "mine.pt", weights_only=True)
        return
    with pytest.raises(Refused, match=rf"mine.pt names {__name__}.Mine.*ULTRALYTICS_SAFE_LOAD=0"):
        torch_safe_load(tmp_path / "mine.pt")


def test_a_data_set_by_an_address_is_forgotten(tmp_path):
    """`yolo val` without data= would fetch it."""
    model = YOLO("yolov8n.yaml").model
    torch.save(
        {"model": model, "train_args": {"data": "https://example.invalid/x.yaml", "imgsz": 64}}, tmp_path / "x.pt"
    )
    opened = YOLO(tmp_path / "x.pt")
    assert opened.overrides["data"] is None and opened.overrides["imgsz"] == 64
    torch.save({"model": model, "train_args": {"data": "coco8.yaml"}}, tmp_path / "x.pt")
    assert YOLO(tmp_path / "x.pt").overrides["data"] == "coco8.yaml"
    (tmp_path / "x.pt").write_bytes(hostile.archive(hostile.shared_lists()))
    assert YOLO(tmp_path / "x.pt").model.args["data"] is None  # and is not written out, which would take for ever


def test_class_names_stay_in_their_folder(tmp_path):
    """`save_crop` makes a folder of each."""
    model = YOLO("yolov8n.yaml").model
    names = ["/etc/x", "../../y", "traffic light/red", "a\\..\\b", "..", "C:evil", Path("/etc/z")]
    for model.names in (names, dict(enumerate(names))):
        torch.save({"model": model}, tmp_path / "x.pt")
        found = YOLO(tmp_path / "x.pt").names
        assert [*found.values()] == ["_etc_x", ".._.._y", "traffic light/red", "a_.._b", "_", "C_evil", "_etc_z"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("names", 5),
        ("names", {"a": "b"}),
        ("names", {1: "b"}),
        ("stride", 5),
        ("stride", torch.tensor([1e9])),
        ("stride", torch.tensor([math.nan])),
        ("task", [1]),
        ("yaml", [1]),
        ("save", None),
        ("save", ["x"]),
    ],
    ids=str,
)
def test_what_upstream_computes_with_is_of_its_kind(key, value, tmp_path):
    model = YOLO("yolov8n.yaml").model
    setattr(model, key, value)
    torch.save({"model": model}, tmp_path / "x.pt")
    with pytest.raises(TypeError, match="x.pt holds no model") as e:
        YOLO(tmp_path / "x.pt")
    assert e.value.plain


def test_a_size_that_no_image_has_is_forgotten(tmp_path):
    """`predict` would make one of it."""
    torch.save({"model": YOLO("yolov8n.yaml").model, "train_args": {"imgsz": 60_000}}, tmp_path / "x.pt")
    assert "imgsz" not in YOLO(tmp_path / "x.pt").overrides


def test_a_run_whose_checkpoints_name_more_says_so_before_it_begins(tmp_path, shapes):
    """A layer of the user's own may keep anything; the run itself opens what it has written."""
    model, said, begun = YOLO("yolo11n.yaml"), [], []

    def keep(trainer):
        for one in (trainer.model, trainer.ema.ema):
            one.model[0].seen = collections.Counter()

    model.add_callback("on_pretrain_routine_end", keep)
    model.add_callback("on_train_start", lambda _: begun.append(len(said)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOGGER, "warning", lambda line: said.append(line))
        model.train(data=shapes, epochs=1, imgsz=64, batch=4, project=tmp_path, plots=False, workers=0)
    lines = [line for line in said if "refused by other processes" in line]
    assert lines and lines[0] in said[: begun[0]]
    assert re.search(r"model\.0 \(Conv\).*`seen`, a collections\.Counter.*`def seen\(self\)", lines[0])
    with pytest.raises(Refused, match="names collections.Counter"):  # as another process does, or after another write
        load_checkpoint(model.trainer.best, weights_only=True)
    Path(model.trainer.best).write_bytes(Path(model.trainer.best).read_bytes())
    with pytest.raises(Refused, match="names collections.Counter"):
        YOLO(model.trainer.best)


def test_a_model_that_cannot_be_saved_is_not_trained(tmp_path, shapes):
    """Python cannot pickle a lambda: upstream ends in its error when the first epoch is over."""
    model = YOLO("yolo11n.yaml")

    def keep(trainer):
        trainer.model.model[3].scale = lambda x: 2 * x

    model.add_callback("on_pretrain_routine_end", keep)
    model.add_callback("on_train_start", lambda _: pytest.fail("it was trained"))
    with pytest.raises(Refused, match=r"model\.3 \(Conv\).*`scale`, a function.*`def scale\(self, x\)"):
        model.train(data=shapes, epochs=1, imgsz=64, batch=4, project=tmp_path, plots=False, workers=0)
    model = YOLO("yolo11n.yaml")
    model.model.model[3].scale = lambda x: 2 * x
    with pytest.raises(Refused, match=r"x\.pt.*model\.3 \(Conv\).*`scale`"):
        model.save(tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_a_resumed_file_chooses_no_folder(tmp_path):
    """A checkpoint outside of a run's folder does not say where the run goes on, nor what is fetched for it."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    model = YOLO("yolov8n.yaml").model
    args = {**vars(get_cfg()), "model": "yolov8n.yaml", "data": "coco8.yaml", "save_dir": str(tmp_path / "elsewhere")}
    torch.save({"model": model, "optimizer": {}, "epoch": 0, "train_args": args}, tmp_path / "x.pt")
    trainer = DetectionTrainer.__new__(DetectionTrainer)
    trainer.args = get_cfg(overrides={"resume": str(tmp_path / "x.pt")})
    trainer.check_resume({"resume": str(tmp_path / "x.pt")})
    assert trainer.args.save_dir is None and trainer.args.project is None
    torch.save(
        {"model": model, "optimizer": {}, "train_args": {**args, "distill_model": "https://x/y.pt"}}, tmp_path / "x.pt"
    )
    with pytest.raises(Refused, match="x.pt names https://x/y.pt.*distill_model="):
        trainer.check_resume({"resume": str(tmp_path / "x.pt")})


def test_torchs_own_switch_is_named(tmp_path, monkeypatch):
    torch.save({"x": 1}, tmp_path / "x.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(Refused, match="TORCH_FORCE_WEIGHTS_ONLY_LOAD.*unset"):
        load_checkpoint(tmp_path / "x.pt")


def test_upstreams_note_to_its_processes(tmp_path, monkeypatch):
    """A training on several GPUs hands its callbacks over in a pickle, in the user's own folder."""
    monkeypatch.setattr("ultralytics.fork.checkpoints.own_checkpoints.USER_CONFIG_DIR", tmp_path)
    (tmp_path / "DDP").mkdir()
    torch.save({"trainer": Mine}, tmp_path / "DDP" / "x.pt")
    assert load_checkpoint(tmp_path / "DDP" / "x.pt", map_location="cpu")["trainer"] is Mine


@pytest.mark.parametrize("mode", ["predict", "val", "train", "export"])
def test_each_command_refuses_it(tmp_path, monkeypatch, mode):
    file = tmp_path / "evil.pt"
    hostile.CASES["calls os.system"](file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="evil.pt names os.system.*ULTRALYTICS_SAFE_LOAD=0"):
        entrypoint(f"yolo {mode} model={file} data=shapes.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


def test_the_command_says_it_in_one_line(tmp_path):
    file = tmp_path / "evil.pt"
    hostile.CASES["calls os.system"](file)
    command = [str(Path(sys.executable).with_name("yolo")), "predict", f"model={file}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{file} names os.system")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]
