"""The readers of rows put channels where a constructor takes them, and into no other argument."""

import pytest
import torch
from torch import nn

from ultralytics import RTDETR
from ultralytics.fork.building.upstream_layers import lend_names
from ultralytics.nn import tasks
from ultralytics.nn.AddModules import registry
from ultralytics.nn.AddModules.registry import RowError, changes_channels, joins_maps, keeps_channels

lend_names()
STEM = [-1, 1, "Conv", [24, 3, 4]]


def make(signature: str, name: str = "Mine") -> type[nn.Module]:
    """Make a module with a constructor of this signature, which keeps its arguments."""
    code = f"""
class {name}(nn.Module):
    def __init__(self{", " if signature else ""}{signature}):
        given = {{**locals()}}
        super().__init__()
        del given["self"], given["__class__"]
        self.given = given

    def forward(self, x):
        return x
"""
    scope = {"nn": nn}
    exec(code, scope)
    return scope[name]


@pytest.fixture
def build(monkeypatch):
    """Give a function that builds a row of a class with a reader behind a layer of 24 channels; and its channels."""

    def registered(cls, reader):
        monkeypatch.setitem(registry.NAMES, cls.__name__, cls)
        monkeypatch.setitem(registry.READERS, cls, reader)

    def build(cls, reader, args, n=1, f=-1, before=(STEM,), settings=None):
        registered(cls, reader)
        rows = [*map(list, before), [f, n, cls.__name__, list(args)]]
        d = {"nc": 3, "yaml_file": "mine.yaml", "backbone": rows, "head": [], **(settings or {})}
        return tasks.parse_model(d, 3, verbose=False)[0][len(before)]

    return build


@pytest.mark.parametrize(
    "signature, args, expected",
    [
        ("dim, num_heads=8", [4], {"dim": 24, "num_heads": 4}),
        ("c1, kernel_size=7", [3], {"c1": 24, "kernel_size": 3}),
        ("in_channels, reduction=16", [], {"in_channels": 24, "reduction": 16}),
        ("channel=512, reduction=16", [8], {"channel": 24, "reduction": 8}),
        ("nIn, d=1", [2], {"nIn": 24, "d": 2}),
        ("whatever, d=1", [2], {"whatever": 24, "d": 2}),  # required, and not known to be something else
        ("", [], {}),
        ("e_lambda=1e-4", [], {"e_lambda": 1e-4}),
        ("e_lambda=1e-4", [1e-5], {"e_lambda": 1e-5}),
        ("kernel_size=7", [3], {"kernel_size": 3}),
        ("kernel_size=3, dim=64", [5], {"kernel_size": 5, "dim": 24}),
        ("kernel_size, in_channels", [5], {"kernel_size": 5, "in_channels": 24}),
        ("reduction=16, *, channels", [8], {"reduction": 8, "channels": 24}),
        ("*, dim, heads=2", [], {"dim": 24, "heads": 2}),
        ("mode='x', ch=None, s=1", ["y", 2], {"mode": "y", "ch": 24, "s": 2}),
        ("*args", [2], {"args": (24, 2)}),
        ("dim, **kwargs", [], {"dim": 24, "kwargs": {}}),
        ("height=7, width=7", [5], {"height": 5, "width": 7}),
    ],
)
def test_keeps_channels(build, signature, args, expected):
    assert build(make(signature), keeps_channels, args).given == expected


@pytest.mark.parametrize(
    "signature, n, args, expected",
    [
        ("c1, c2, k=1, s=1", 1, [40, 3, 2], {"c1": 24, "c2": 40, "k": 3, "s": 2}),
        ("inp, oup, stride", 1, [40, 2], {"inp": 24, "oup": 40, "stride": 2}),
        ("c1, c2, n=1, e=0.5", 3, [40, 0.25], {"c1": 24, "c2": 40, "n": 3, "e": 0.25}),
        ("c1, c2, n=1, shortcut=False", 1, [40, True], {"c1": 24, "c2": 40, "n": 1, "shortcut": True}),
        ("dim, dim_out=None, k=3", 1, [40], {"dim": 24, "dim_out": 40, "k": 3}),
        ("inplanes, planes, stride=1", 1, [40], {"inplanes": 24, "planes": 40, "stride": 1}),
        ("out_channels, in_channels, k=1", 1, [40, 3], {"out_channels": 40, "in_channels": 24, "k": 3}),
        ("*, in_channels, out_channels, k=1", 1, [40], {"in_channels": 24, "out_channels": 40, "k": 1}),
        ("k, in_channels, out_channels", 1, [40, 5], {"k": 5, "in_channels": 24, "out_channels": 40}),
        ("in_dim, hidden_dim, out_dim", 1, [40, 96], {"in_dim": 24, "hidden_dim": 96, "out_dim": 40}),
        ("x, y, k=1", 1, [40], {"x": 24, "y": 40, "k": 1}),
        ("*args", 1, [40, 3], {"args": (24, 40, 3)}),
    ],
)
def test_changes_channels(build, signature, n, args, expected):
    assert build(make(signature), changes_channels, args, n).given == expected


@pytest.mark.parametrize(
    "reader, signature, args, named",
    [
        (keeps_channels, "window, dropout=0.0", [], "its first argument is `window`"),
        (keeps_channels, "num_heads", [], "its first argument is `num_heads`"),
        (keeps_channels, "start=64", [], "`start=64`, may be the channels"),
        (keeps_channels, "embed, channels", [1], "its first argument is `embed`"),
        (changes_channels, "dim, kernel_size=3", [40], "its second argument is `kernel_size`"),
        (changes_channels, "dim", [40], "its second argument is missing"),
        (changes_channels, "e_lambda=1e-4", [40], "none of its arguments"),
        (changes_channels, "c1, c2", ["wide"], "'wide' where the output's channels"),
        (joins_maps, "channels, c2", [], "takes the channels of its output as `c2`"),
    ],
)
def test_a_signature_that_does_not_tell_is_refused_with_the_reader_to_write(build, reader, signature, args, named):
    f = -1 if reader is not joins_maps else [0, 0]
    with pytest.raises(RowError, match=r"mine\.yaml, row 1 .*Mine: ") as e:
        build(make(signature), reader, args, f=f)
    assert named in str(e.value) and ("@register(lambda row: Layer(" in str(e.value) or "wide" in named)


TWO = STEM, [-1, 1, "Conv", [40, 3, 2]]


@pytest.mark.parametrize(
    "signature, args, expected, c2",
    [
        ("channels, mode='sum'", ["max"], {"channels": [24, 40], "mode": "max"}, 24),
        ("inc, ouc, k=1", [64, 3], {"inc": [24, 40], "ouc": 64, "k": 3}, 64),
        ("low_channels, high_channels", [], {"low_channels": 24, "high_channels": 40}, 24),
        ("c1, c2", [64], {"c1": [24, 40], "c2": 64}, 64),
        ("dim_a, dim_b, out_channels, k=1", [64], {"dim_a": 24, "dim_b": 40, "out_channels": 64, "k": 1}, 64),
        ("dimension=1", [], {"dimension": 1}, 24),
        ("in_channels_list", [], {"in_channels_list": [24, 40]}, 24),
    ],
)
def test_joins_maps(build, signature, args, expected, c2):
    cls = make(signature)
    assert build(cls, joins_maps, args, f=[0, 1], before=TWO).given == expected
    row = registry.Row(cls, 2, [0, 1], 1, list(args), [24, 40])
    assert joins_maps(row).c2 == c2


def test_a_module_without_a_constructor(build):
    cls = type("Swish", (nn.Module,), {"forward": lambda self, x: x * x.sigmoid()})
    assert type(build(cls, keeps_channels, [])) is cls


def test_one_map_where_several_are_read_names_the_reader(build):
    with pytest.raises(RowError, match=r"row 2 .*'from' is \[0, 1\].*joins_maps"):
        build(make("dim"), keeps_channels, [], f=[0, 1], before=TWO)


class Splits(nn.Module):
    def __init__(self, c1, c2s):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c1, c, 1, 2**i) for i, c in enumerate(c2s))

    def forward(self, x):
        return [conv(x) for conv in self.convs]


class Joins(nn.Module):
    def __init__(self, channels, c2):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, c2, 1) for c in channels)

    def forward(self, x):
        maps = [conv(each) for conv, each in zip(self.convs, x)]
        return sum(nn.functional.interpolate(each, maps[0].shape[2:]) for each in maps)


def test_several_maps_in_the_middle_of_a_model(monkeypatch, tmp_path):
    """A module gives them, `Index` picks one, and another module takes all."""
    for cls, reader in ((Splits, registry.splits_into_maps), (Joins, joins_maps)):
        monkeypatch.setitem(registry.NAMES, cls.__name__, cls)
        monkeypatch.setitem(registry.READERS, cls, reader)
    file = tmp_path / "mine.yaml"
    file.write_text("""
nc: 3
backbone:
  - [-1, 1, Conv, [24, 3, 8]]
  - [-1, 1, Splits, [[16, 32]]]
head:
  - [1, 1, Index, [32, 1]]
  - [1, 1, Joins, [40]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [[3, 4, 2], 1, RTDETRDecoder, [nc, 64, 20, 4, 4, 1]]
""")
    model = RTDETR(file).model.eval()
    assert [conv.in_channels for conv in model.model[3].convs] == [16, 32]
    assert model(torch.rand(1, 3, 64, 64))[0].shape == (1, 20, 6)
    file.write_text(file.read_text().replace("[-1, 1, Conv, [32, 3, 2]]", "[1, 1, Conv, [32, 3, 2]]"))
    with pytest.raises(RowError, match="mine.yaml, row 4"):
        RTDETR(file)


def test_upstreams_layers_without_a_branch(tmp_path):
    lent = {
        cls: reader for cls, reader in registry.READERS.items() if cls.__module__.startswith("ultralytics.nn.modules.")
    }
    names = {cls.__name__ for cls in lent}
    assert {"CBAM", "ChannelAttention", "SpatialAttention", "LightConv", "Conv2", "RepConv"} <= names
    given = {"ABlock": [2], "PSABlock": [0.5, 2], "Attention": [2], "AAttn": [2], "TransformerBlock": [32, 2, 1]}
    wide = {"changes_channels", "changes_channels_once_named", "widens_by_expansion"}
    for cls, reader in lent.items():
        args = given.get(cls.__name__) or ([32] if reader.__name__ in wide else [])
        file = tmp_path / "mine.yaml"
        file.write_text(
            f"nc: 3\nbackbone:\n  - [-1, 1, Conv, [32, 3, 8]]\n  - [-1, 1, {cls.__name__}, {args}]\n"
            "  - [-1, 1, Conv, [32]]\nhead:\n  - [[-1], 1, RTDETRDecoder, [nc, 64, 20, 4, 4, 1]]\n"
        )
        model = RTDETR(file).model.eval()
        assert type(model.model[1]) is cls
        assert model(torch.rand(1, 3, 64, 64))[0].shape == (1, 20, 6)


@pytest.mark.parametrize("name", ["Conv2", "RepConv"])
def test_arguments_as_they_had_to_be_before_are_not_misread(name, build):
    """A row of these could be named before with the input's channels first, which would be a kernel now."""
    d = {"nc": 3, "yaml_file": "m.yaml", "backbone": [STEM, [-1, 1, name, [24, 24, 3]]], "head": []}
    with pytest.raises(RowError, match=r"expected \[c2, k, ...\].*\[24, 3\]"):
        tasks.parse_model(d, 3, verbose=False)


def test_a_class_of_the_name_of_one_that_upstream_lends():
    """The most written module has the name of upstream's CBAM, which no YAML of upstream's can mean."""
    lent = registry.NAMES["CBAM"]
    try:
        mine = registry.register(keeps_channels)(make("dim", "CBAM"))
        d = {"nc": 3, "backbone": [STEM, [-1, 1, "CBAM", []]], "head": []}
        assert type(tasks.parse_model(d, 3, verbose=False)[0][1]) is mine
    finally:
        registry.NAMES["CBAM"] = lent
    with pytest.raises(ValueError, match="the name C2f is taken"):
        registry.register(keeps_channels)(make("dim", "C2f"))


# What the parser writes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["i", "f", "type", "np"])
@pytest.mark.parametrize("what", ["nn.Conv2d(dim, dim, 1)", "3", "nn.Parameter(torch.zeros(1))"])
def test_a_module_keeps_its_own_attributes(build, name, what):
    if name == "type" and what != "3":
        pytest.skip("torch has a method of that name")
    scope = {"nn": nn, "torch": torch}
    lines = (
        "class Named(nn.Module):",
        " def __init__(self, dim):",
        f"  super().__init__(); self.{name} = {what}",
        " def forward(self, x):",
        "  return x * 2",
    )
    exec("\n".join(lines), scope)
    layer = build(scope["Named"], keeps_channels, [])
    assert isinstance(layer, nn.Sequential) and layer.i == 1 and layer.f == -1
    assert (
        isinstance(getattr(layer[0], name), (nn.Conv2d, int, nn.Parameter)) and getattr(layer[0], name) is not layer.i
    )
    assert torch.equal(layer(torch.ones(1)), 2 * torch.ones(1))


def test_a_backbone_with_such_an_attribute_is_refused_by_name(build):
    cls = make("")
    cls.width_list = [8] * 4
    cls.f = 3
    with pytest.raises(RowError, match=r"row 0 .*its attribute `f` is one that the parser"):
        build(cls, registry.backbone, [], before=())
