"""What a user has built, trained and saved here opens here again, in the next process and without a switch."""

import functools
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, load_module
from torch import nn

from ultralytics import YOLO
from ultralytics.fork.checkpoints.load import load_checkpoint
from ultralytics.fork.checkpoints.model_to_save import find_problem
from ultralytics.fork.errors import Refused
from ultralytics.nn.AddModules.registry import READERS

FILES = sorted((ROOT / "tests" / "modules").glob("users_*.py"))
OWN = [load_module(f"ultralytics.nn.AddModules.{file.stem}", file) for file in FILES]
USERS = SimpleNamespace(
    **{n: cls for file in OWN for n, cls in vars(file).items() if getattr(cls, "__module__", "") == file.__name__}
)
MODULES = sorted(name for name, cls in vars(USERS).items() if cls.__class__ is type and cls in READERS)
OPEN = """
import sys
sys.path.insert(0, {tests!r})
from conftest import ROOT, load_module
for file in sorted((ROOT / "tests" / "modules").glob("users_*.py")):
    load_module("ultralytics.nn.AddModules." + file.stem, file)
import torch
from ultralytics import YOLO
model = YOLO({file!r}).model.eval()
torch.manual_seed(1)
with torch.no_grad():
    torch.save(model(torch.rand(1, 3, 64, 64))[0], {out!r})
"""


def test_there_are_forty():
    assert len(MODULES) >= 40


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_and_computes_the_same(name, tmp_path):
    cls = getattr(USERS, name)
    layer, x = cls(32).eval(), torch.rand(2, 32, 9, 8)
    with torch.no_grad():
        expected = layer(x)  # it may keep something of its first image
    torch.save({"model": layer}, tmp_path / "x.pt")
    opened = load_checkpoint(tmp_path / "x.pt", map_location="cpu", weights_only=True)["model"]
    with torch.no_grad():
        assert torch.equal(opened.eval()(x), expected)
    assert vars(opened).keys() == vars(layer).keys()
    for key, value in vars(layer).items():
        if isinstance(value, functools.partial):
            assert (value.func, value.args, value.keywords) == (vars(opened)[key].func, value.args, value.keywords)
        elif callable(value) and not isinstance(value, nn.Module):
            assert getattr(vars(opened)[key], "__func__", vars(opened)[key]) is getattr(value, "__func__", value)


def test_a_model_of_all_of_them_opens_in_the_next_process(tmp_path):
    rows = "".join(f"  - [-1, 1, {name}, []]\n" for name in MODULES)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "nc: 3\nbackbone:\n  - [-1, 1, Conv, [32, 3, 8]]\n"
        f"{rows}head:\n  - [[-1], 1, RTDETRDecoder, [nc, 64, 20, 4, 4, 1]]\n"
    )
    model = YOLO(file)
    model.model.nc = 3  # as the trainer does
    model.model.criterion = model.model.init_criterion()  # as a model that has computed its loss once
    torch.manual_seed(1)
    with torch.no_grad():
        model.model.eval()(torch.rand(1, 3, 64, 64))
        model.save(tmp_path / "mine.pt")
        torch.manual_seed(1)
        expected = model.model.half().float()(torch.rand(1, 3, 64, 64))[0]
    out = tmp_path / "out.pt"
    code = OPEN.format(tests=str(ROOT / "tests"), file=str(tmp_path / "mine.pt"), out=str(out))
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.allclose(torch.load(out), expected, atol=1e-3)  # of which the anchors are rounded


class Elsewhere(nn.Module):
    """A class of a script, which another process does not find."""

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "spoil, what",
    [
        (
            lambda m: setattr(m, "act", lambda x: x),
            r"model\.1 \(MyECA\): its attribute `act`, a function.*`def act\(self",
        ),
        (lambda m: setattr(m, "log", open), r"`log`, a builtin_function_or_method: names .*open.*`def log\(self"),
        (lambda m: setattr(m, "inner", Elsewhere()), r"the class of model\.1\.inner \(Elsewhere\).*AddModules"),
        (lambda m: m.register_forward_hook(print), r"`_forward_hooks`.*Give MyECA a method"),
        (lambda m: setattr(m, "seen", {1: (2, [slice(3), re.compile("x")])}), r"`seen`, a dict: .*`def seen\(self\)"),
    ],
)
def test_what_cannot_be_kept_is_said_when_it_is_saved(spoil, what, tmp_path, monkeypatch):
    (tmp_path / "m.yaml").write_text(
        "nc: 3\nbackbone:\n  - [-1, 1, Conv, [32, 3, 8]]\n  - [-1, 1, MyECA, []]\nhead:\n  - [[-1], 1, Detect, [nc]]\n"
    )
    model, said = YOLO(tmp_path / "m.yaml"), []
    spoil(model.model.model[1])
    monkeypatch.setattr("ultralytics.fork.checkpoints.model_to_save.LOGGER.warning", said.append)
    try:
        model.save(tmp_path / "m.pt")
    except Refused as e:
        said.append(str(e))
        assert not (tmp_path / "m.pt").exists()
    (line,) = said
    assert "\n" not in line and "m.pt" in line
    assert re.search(what, line), line


def test_the_layer_that_is_wrong_is_named_and_no_other():
    """Some layers cannot be pickled while they are empty."""
    from ultralytics.fork.checkpoints.model_to_save import describe_problem

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LSTM(2, 2), USERS.MixerBlock(4))
    model[0].act = lambda x: x
    line = describe_problem(model, find_problem(model))
    assert line.startswith("0 (Conv2d): its attribute `act`, a function") and "LSTM" not in line


def test_nothing_is_said_of_a_model_that_can_be_saved():
    assert find_problem(YOLO("rtdetr-tiny-EMO.yaml").model) is None
