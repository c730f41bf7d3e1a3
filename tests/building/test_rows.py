"""How a YAML row becomes a layer, the errors of rows that cannot, and a new module by dropping in a file."""

import copy
import re
import shutil
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT
from torch import nn

from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.AddModules import registry
from ultralytics.nn.AddModules.registry import RowError, keeps_channels, register
from ultralytics.nn.tasks import DetectionModel, parse_model

STEM = [-1, 1, "Conv", [32, 3, 2]]


def parse(*rows, **keys):
    """Build the layers of a model file with these rows."""
    d = {"nc": 1, "yaml_file": "mine.yaml", "backbone": [list(row) for row in rows], "head": [], **keys}
    return parse_model(copy.deepcopy(d), ch=3, verbose=False)


@pytest.mark.parametrize(
    "row, attributes, c2",
    [
        ([-1, 1, "FocusedLinearAttention", [64]], {"dim": 32, "num_heads": 8}, 32),
        ([-1, 1, "FocusedLinearAttention", [64, 4]], {"num_heads": 4}, 32),
        ([-1, 1, "FocusedLinearAttention", []], {"dim": 32}, 32),
        ([-1, 1, "BiLevelRoutingAttention_nchw", [32]], {"num_heads": 1, "topk": 4}, 32),
        ([-1, 1, "BiLevelRoutingAttention_nchw", [32, 8, 5, None, 2]], {"num_heads": 8, "n_win": 5, "topk": 2}, 32),
        ([-1, 1, "BiLevelRoutingAttention_nchw", []], {"num_heads": 1}, 32),
        (
            [-1, 1, "MultiQueryAttentionLayerWithDownSampling", [2, 16, 8, 1, 1, 2]],
            {"num_heads": 2, "kv_strides": 2},
            32,
        ),
        ([-1, 2, "HGBlock_FLA", [16, 64, 3]], {"add": False}, 64),
        ([-1, 2, "HGBlock_FLA", [16, 64]], {"add": False}, 64),
        ([-1, 4, "HGBlock_Biformer", [16, 32, 5, True, True]], {"add": True}, 32),
        ([-1, 1, "ResNetLayer_MQA", [32, 16, 2, False, 2]], {"is_first": False}, 64),
        ([-1, 1, "ResNetLayer_MQA", [32, 16, 2, False, 2, 2, 2]], {"is_first": False}, 32),
        ([-1, 1, "ResNetLayer_MQA", [32, 48, 1, True, 1]], {"is_first": True}, 48),
    ],
)
def test_a_row_reads_as_its_decorator_says(row, attributes, c2):
    model, _ = parse(STEM, row, [-1, 1, "nn.Identity", []], [-1, 1, "Conv", [8, 1]])
    layer = model[1]
    assert {key: getattr(layer, key) for key in attributes} == attributes
    assert model[3].conv.in_channels == c2
    assert model(torch.zeros(1, 3, 64, 64)).shape[1] == 8


def test_biformer_heads_have_32_channels_by_default():
    for width, heads in ((64, 2), (1024, 32), (80, 2), (112, 2), (24, 1)):
        model, _ = parse([-1, 1, "Conv", [width, 3, 2]], [-1, 1, "BiLevelRoutingAttention_nchw", [width]])
        assert model[1].num_heads == heads


def test_repeats():
    model, _ = parse(STEM, [-1, 3, "FocusedLinearAttention", [32]], [-1, 5, "HGBlock_FLA", [16, 64, 3]])
    assert isinstance(model[1], nn.Sequential) and len(model[1]) == 3
    assert len(model[2].m) == 5


def test_a_backbone_takes_five_indices():
    model, save = parse(
        [-1, 1, "EMO_1M", []], [-1, 1, "Conv", [8, 1]], [2, 1, "Conv", [8, 1]], [[-2, -1, 3], 1, "Concat", [1]]
    )
    assert [m.i for m in model] == [4, 5, 6, 7]
    assert [m.conv.in_channels for m in model[1:3]] == [168, 48]
    assert save == [2, 3, 5]


ERRORS = {
    "unknown name": (
        [-1, 1, "FocusedLinearAtention", [32]],
        "no module is named 'FocusedLinearAtention'; did you mean FocusedLinearAttention",
    ),
    "unknown name of nn": ([-1, 1, "nn.Rleu", []], "no module is named 'nn.Rleu'"),
    "a name unlike any": ([-1, 1, "Qqqq", []], "no module is named 'Qqqq'"),
    "too many arguments": (
        [-1, 1, "FocusedLinearAttention", [1] * 12],
        "too many positional arguments; expected FocusedLinearAttention(dim, num_patches=64",
    ),
    "too few arguments": (
        [-1, 1, "MultiQueryAttentionLayerWithDownSampling", [2, 8]],
        "missing a required argument: 'value_dim'",
    ),
    "too few for a block": ([-1, 1, "HGBlock_FLA", [16]], "expected [cm, c2, k, lightconv, shortcut]"),
    "too few for a stage": ([-1, 1, "ResNetLayer_MQA", [32, 16]], "expected [c1, c2, s, is_first, n]"),
    "upstream's, wrong count": (
        [-1, 1, "SPPF", [32, 5, 1, 1, 1, 1, 1, 1]],
        "expected the arguments of SPPF(c1, c2, k=5",
    ),
    "channels do not divide": ([-1, 1, "FocusedLinearAttention", [32, 5]], "num_heads=5 does not divide dim=32"),
    "other channels": ([-1, 1, "BiLevelRoutingAttention_nchw", [64]], "c2=64 where 32 channels come in; expected [32]"),
    "other channels of a stage": ([-1, 1, "ResNetLayer_MQA", [64, 16, 1, False, 1]], "c1=64 where 32 channels come in"),
    "upstream's, too few": (
        [-1, 1, "HGBlock", [32]],
        "list index out of range; expected the arguments of HGBlock(c1, cm",
    ),
    "no blocks": ([-1, 1, "ResNetLayer_MQA", [32, 16, 1, False, 0]], "n=0 blocks; expected at least 1"),
    "repeats that do not fit": (
        [-1, 3, "ResNetLayer_MQA", [32, 16, 1, False, 1]],
        "3 repeats of a layer that does not keep its channels; expected 1",
    ),
    "a backbone in row 1": ([-1, 1, "EMO_1M", []], "expected in row 0"),
    "a layer that does not exist": (
        [7, 1, "Conv", [8]],
        "'from' names layer 7, which does not exist here; layers 0 to 0 are before",
    ),
    "one too far back": ([-2, 1, "Conv", [8]], "'from' names layer -2, which does not exist"),
    "no index": (["a", 1, "Conv", [8]], "'from' is 'a', expected a layer index"),
    "several inputs for one": (
        [[-1, 0], 1, "FocusedLinearAttention", [32]],
        "'from' is [-1, 0]; expected one layer index",
    ),
    "one input for several": ([-1, 1, "Concat", [1]], "expected a list of layer indices as 'from'"),
    "several inputs for a Conv": ([[-1, 0], 1, "Conv", [8]], "expected one layer index as 'from'"),
    "no repeats": ([-1, 0, "FocusedLinearAttention", [8]], "repeats are 0"),
    "no row": ([-1, "Conv", [8]], "expected [from, repeats, module, arguments]"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_row_names_file_row_and_remedy(case):
    row, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError, IndexError)) as error:
        parse(STEM, row)
    text = str(error.value)
    assert text.startswith("mine.yaml, row 1 (`backbone:` row 1) [")
    assert message in text
    assert "\n" not in text


def test_rows_of_the_head_are_counted_on():
    with pytest.raises(RowError, match=r"row 2 \(`head:` row 1\)"):
        parse(STEM, head=[[-1, 1, "Conv", [8]], [-1, 1, "Cnov", [8]]])


def test_the_empty_index_of_a_backbone():
    with pytest.raises(RowError, match="layer 0, which EMO_1M leaves empty; its maps are 1 to 4"):
        parse([-1, 1, "EMO_1M", []], [0, 1, "Conv", [8, 1]])
    with pytest.raises(RowError, match="layer 5, which does not exist"):
        parse([-1, 1, "EMO_1M", []], [5, 1, "Conv", [8, 1]])


def test_a_backbone_is_not_repeated():
    with pytest.raises(RowError, match="2 repeats of a layer that does not keep its channels; expected 1"):
        parse([-1, 2, "EMO_1M", []])


def test_a_backbone_takes_the_image():
    with pytest.raises(RowError, match=r"EMO_1M: 'from' is \[-1\]; expected -1, the image"):
        parse([[-1], 1, "EMO_1M", []])
    model, _ = parse_model({"nc": 1, "backbone": [[-1, 1, "EMO_1M", []]], "head": []}, ch=4, verbose=False)
    assert model(torch.zeros(1, 4, 64, 64))[0].shape == (1, 32, 16, 16)


@pytest.mark.parametrize("widths", [[8] * 6, [], 8, None])
def test_a_backbone_of_other_maps_is_refused(monkeypatch, widths):
    cls = type("ManyMaps", (nn.Module,), {"width_list": widths})
    monkeypatch.setitem(registry.NAMES, "ManyMaps", cls)
    monkeypatch.setitem(registry.READERS, cls, registry.backbone)
    monkeypatch.setitem(vars(tasks), "ManyMaps", cls)
    with pytest.raises(RowError, match=r"width_list=.*; expected the channels of 1 to 5 maps"):
        parse([-1, 1, "ManyMaps", []])


@pytest.mark.parametrize("maps", [1, 2, 3, 4, 5])
def test_a_backbone_of_one_to_five_maps(monkeypatch, maps):
    """The last one is layer 4; what is before the first one is empty, and no row comes from it."""

    def forward(self, x):
        sizes = [2 ** (i + 1) for i in range(5 - maps, 5)]
        return [torch.nn.functional.avg_pool2d(x, k)[:, :1].repeat(1, c, 1, 1) for k, c in zip(sizes, self.width_list)]

    cls = type("SomeMaps", (nn.Module,), {"width_list": [4 * i + 4 for i in range(maps)], "forward": forward})
    monkeypatch.setitem(registry.NAMES, "SomeMaps", cls)
    monkeypatch.setitem(registry.READERS, cls, registry.backbone)
    monkeypatch.setitem(vars(tasks), "SomeMaps", cls)
    first = 5 - maps
    rows = [[-1, 1, "SomeMaps", []], [first, 1, "Conv", [8, 1]], [4, 1, "Conv", [8, 1]], [[5, first], 1, "Concat", [1]]]
    text = {
        "nc": 3,
        "backbone": rows[:1],
        "head": [*rows[1:], [[4, -1], 1, "Detect", ["nc"]]],
        "yaml_file": "mine.yaml",
    }
    model, save = tasks.parse_model(copy.deepcopy(text), 3, verbose=False)
    assert [m.i for m in model] == [4, 5, 6, 7, 8] and {first, 4, 5} <= set(save)
    assert model[1].conv.in_channels == 4 and model[2].conv.in_channels == 4 * maps
    for wrong in range(first):
        text["head"][0][0] = wrong
        with pytest.raises(RowError, match=rf"mine.yaml, row 1 .*names layer {wrong}, which SomeMaps leaves empty"):
            tasks.parse_model(copy.deepcopy(text), 3, verbose=False)


def test_channels_scale_with_the_model(monkeypatch):
    """`changes_channels` reads c2 as upstream's Conv does: at most max_channels, times the width."""
    cls = type("Scaled", (nn.Conv2d,), {"__init__": lambda self, c1, c2: nn.Conv2d.__init__(self, c1, c2, 1)})
    monkeypatch.setitem(registry.NAMES, "Scaled", cls)
    monkeypatch.setitem(registry.READERS, cls, registry.changes_channels)
    monkeypatch.setitem(vars(tasks), "Scaled", cls)
    for scale in ([1.0, 0.25, 512], [1.0, 0.33, 1024]):
        rows = [-1, 1, "Conv", [1000, 1]], [-1, 1, "Scaled", [1000]]
        model, _ = parse(*rows, scales={"s": scale}, scale="s")
        assert model[1].out_channels == model[0].conv.out_channels < 1000


def test_files_without_sections(tmp_path):
    with pytest.raises(RowError, match="mine.yaml: no `backbone:`"):
        parse_model({"nc": 1, "yaml_file": "mine.yaml", "head": []}, ch=3)
    (tmp_path / "mine.yaml").write_text("nc: 1\nbackbon: []\nhead: []\n")
    with pytest.raises(RowError, match="mine.yaml: no `backbone:`"):
        YOLO(tmp_path / "mine.yaml")


def test_a_file_without_classes():
    with pytest.raises(RowError, match=r"row 1 \(`head:` row 0\) .* no `nc:`"):
        parse(STEM, nc=None, head=[[[0], 1, "Detect", ["nc"]]])


@pytest.mark.parametrize(
    "arguments, reader",
    [
        ("dim, heads=4", "keeps_channels"),
        ("c1, c2, k=3", "changes_channels"),
        ("in_channels, out_channels", "changes_channels"),
        ("kernel_size=7", "keeps_channels"),
        ("inc_list, fusion=1", "joins_maps"),
        ("incs, fusion=1", "joins_maps"),
    ],
)
def test_a_class_without_its_decorator(monkeypatch, arguments, reader):
    """The line has the reader that fits the signature, and what to write."""
    module = types.ModuleType("ultralytics.nn.AddModules.Forgotten")
    module.Forgot = type("Forgot", (nn.Module,), {"__init__": eval(f"lambda self, {arguments}: None")})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    line = rf"class of that name in .*Forgotten has no decorator.*@register\({reader}\)\n    class Forgot\(Module"
    with pytest.raises(RowError, match=f"(?s){line}"):
        parse([-1, 1, "Forgot", []])


def test_an_error_of_upstreams_keeps_its_type():
    with pytest.raises(TypeError, match=re.escape("[[0], 1, 'Detect', [None]]: Detect: unsupported operand")):
        DetectionModel({"nc": 1, "backbone": [STEM], "head": [[[0], 1, "Detect", [None]]]}, verbose=False)


@pytest.mark.parametrize("name", ["HGBlock", "Conv", "ReLU", "FocusedLinearAttention"])
def test_a_taken_name_is_refused(name):
    with pytest.raises(ValueError, match=f"the name {name} is taken by"):
        register(keeps_channels)(type(name, (nn.Module,), {}))


def test_a_name_of_tasks_is_refused(monkeypatch):
    """Names that stand in tasks.py but are no modules, such as LOGGER, are known when a model is built."""
    monkeypatch.setitem(registry.NAMES, "LOGGER", type("LOGGER", (nn.Module,), {}))
    with pytest.raises(RowError, match="tasks.py has the name LOGGER"):
        parse(STEM)


def test_register_takes_a_reader_and_a_module():
    with pytest.raises(TypeError, match="takes a row reader"):
        register(nn.Identity)
    with pytest.raises(TypeError, match="only nn.Module classes"):
        register(keeps_channels)(len)


def test_no_upstream_name_is_shadowed():
    """What tasks.py imports from upstream's modules is still theirs after our names were installed."""
    from ultralytics.nn import modules

    for name in modules.__all__:
        assert getattr(tasks, name, getattr(modules, name)) is getattr(modules, name)


DROPPED = '''
"""A module of a newcomer's."""

import torch
from torch import nn

from ultralytics.nn.AddModules.registry import changes_channels, keeps_channels, register

__all__ = "NewcomersGate", "NewcomersConv"


@register(keeps_channels)
class NewcomersGate(nn.Module):
    def __init__(self, dim: int, power: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, 1, 1))
        self.power = power

    def forward(self, x):
        return x * self.weight**self.power


@register(changes_channels)
class NewcomersConv(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k)

    def forward(self, x):
        return self.conv(x)
'''

USE = """
import torch
from ultralytics.nn.AddModules import NewcomersGate
from ultralytics.nn.tasks import parse_model
d = {"nc": 1, "width_multiple": 0.5, "backbone": [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "NewcomersGate", [2.0]],
     [-1, 1, "NewcomersConv", [60, 1]]], "head": []}
model, _ = parse_model(d, ch=3)
assert type(model[1]) is NewcomersGate and model[1].power == 2.0
assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 16, 16)  # 60 * 0.5, up to a multiple of 8
from ultralytics.nn import AddModules, tasks
dropped = [name for name in vars(AddModules) if name.startswith("Dropped")]
assert len(dropped) == DROPPED, dropped
assert tasks.DetectionModel("yolo11n.yaml", verbose=False).eval()(torch.zeros(1, 3, 64, 64))
torch.save(model, "model.pt")
torch.load("model.pt", weights_only=False)
"""


def fork_names() -> set[str]:
    """List the names of every room and file of fork/."""
    fork = ROOT / "ultralytics" / "fork"
    found = [*fork.rglob("*.py"), *(folder for folder in fork.rglob("*") if folder.is_dir())]
    return {path.stem for path in found} - {"__init__", "__pycache__"}


def test_a_new_module_is_one_new_file(tmp_path):
    """In a copy of the package, dropping files in is all that it takes, whatever their names."""
    package = tmp_path / "ultralytics"
    shutil.copytree(ROOT / "ultralytics", package, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (package / "assets").mkdir()
    (package / "nn" / "AddModules" / "Newcomer.py").write_text(DROPPED)
    names = sorted(fork_names() - {"registry"})
    for i, name in enumerate(names):  # a user's file may have the name of any room or file of fork/
        (package / "nn" / "AddModules" / f"{name}.py").write_text(DROPPED.replace("Newcomers", f"Dropped{i}"))
    use = USE.replace("DROPPED", str(2 * len(names)))
    done = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ultralytics.nn.AddModules.Newcomer.NewcomersGate" in done.stdout + done.stderr

    (package / "nn" / "AddModules" / "Another.py").write_text(
        DROPPED.replace("Newcomers", "Another").replace("AnotherConv", "EMO_1M")
    )
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "the name EMO_1M is taken by" in done.stderr
