"""A model file of a stranger is a model, or one line with file and row; it runs nothing."""

import subprocess
import sys
from collections import Counter

import pytest
import torch  # noqa: F401 - a test evaluates what names it
import torchvision
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from untrusted_yaml import STEM, no_hang, parse

from ultralytics import RTDETR, YOLO
from ultralytics.fork.building.memory_limit import MAX_BYTES
from ultralytics.fork.building.model_yaml import find_class, list_module_names
from ultralytics.nn import tasks
from ultralytics.nn.AddModules.registry import NAMES, RowError
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import parse_model
from ultralytics.utils import YAML


# What a row can name --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        *("parse_model", "torch_safe_load", "yaml_model_load", "check_requirements", "YAML", "LOGGER", "torch", "Path"),
        *("DetectionModel", "RTDETRDetectionModel", "BaseModel", "Ensemble", "v8DetectionLoss", "__builtins__"),
        *("nn.functional", "nn.init.uniform_", "nn.Module.register_forward_hook", "nn.utils", "nn.__loader__", "nn."),
        *("nn.parallel.DataParallel", "nn.Parameter", "nn.modules.Conv2d", "torchvision.ops.nms", "torchvision.ops."),
        *("torchvision.ops.misc.Conv2dNormActivation", "torchvision.models.resnet18", "os.system", "", ".", "nn"),
        *("torch.nn.Conv2d", "Conv.__init__", "Conv.default_act", "__import__", "globals", "x" * 10000),
    ],
)
def test_only_layers_can_be_named(name):
    with pytest.raises(
        RowError, match=r"^strange.yaml, row 1 \(`backbone:` row 1\) .*(is no layer|no module is named)"
    ):
        parse([-1, 1, name, []])


@pytest.mark.parametrize(
    "name", ["d", "ch", "layers", "save", "args", "scales", "default_act", "verbose", "m", "i", "a"]
)
def test_variables_of_the_parser_cannot_be_named(name):
    with pytest.raises(RowError, match=f"row 1 .* the argument '{name}' is a variable of parse_model"):
        parse([-1, 1, "Conv", [name]])


def test_variables_of_the_file_can_be_named():
    assert parse([-1, 1, "Conv", ["nc"]])[1].conv.out_channels == 8  # 2, up to a multiple of 8
    assert parse([[-1], 1, "Pose", ["nc", "kpt_shape"]], kpt_shape=[17, 3])[1].kpt_shape == [17, 3]
    with pytest.raises(RowError, match="the file has no `kpt_shape:`"):
        parse([[-1], 1, "Pose", ["nc", "kpt_shape"]])


@pytest.mark.parametrize(
    "argument",
    [
        {"a": 1},
        {1, 2},
        b"x",
        object(),
        len,
        float("nan"),
        float("inf"),
        10**400,
        2**40,
        "x" * 1000,
        "(" * 150,
        "1 +",
        "[" + "9" * 100 + "]",
        "{'a': 1}",
        "{[]: 1}",
        [[[[[[[[[[1]]]]]]]]]],
        list(range(2000)),
    ],
    ids=lambda argument: type(argument).__name__,
)
def test_only_literals_are_arguments(argument):
    with pytest.raises(RowError, match=r"^strange.yaml, row 1 "):
        parse([-1, 1, "Conv", [16, argument]])


def test_a_list_in_itself():
    row = [-1, 1, "Conv", []]
    row[3].append(row)
    with pytest.raises(RowError, match="lists in lists in lists"):
        parse(row)


@pytest.mark.parametrize("spec", ["nn.SiLU()", "torch.nn.LeakyReLU(0.1)", " nn.Hardtanh(min_val=-2.0, max_val=2) "])
def test_activations(spec):
    assert type(parse(activation=spec)[0].act) is type(eval(spec.strip()))
    assert isinstance(Conv.default_act, nn.SiLU)


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('touch evil')",
        "nn.SiLU(__import__('os').system('touch evil'))",
        "[nn.SiLU(), __import__('os').system('touch evil')][0]",
        "nn.SiLU",
        "nn.functional.silu(1)",
        "nn.modules.activation.SiLU()",
        "nn.SiLU(**{'inplace': True})",
        "nn.SiLU(*[True])",
        "LOGGER.warning('x')",
        "(lambda: nn.SiLU())()",
        "nn.Module.register_forward_hook(1)",
        "nn.ReLU('x' * 10**9)",
        "nn.ReLU(" + "(" * 5000,
        "torch.nn.LeakyReLU(0.1).__class__()",
        "nn.ReLU(9**9**9)",
        "nn.LSTM(1, 1, 16777216)",
        "nn.Linear(9999999, 9999999)",
        "nn.MultiheadAttention(99999999, 1)",
        7,
        ["nn.ReLU()"],
    ],
    ids=lambda spec: str(spec)[:40],
)
def test_activations_that_are_none(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RowError, match=r"^strange.yaml: `activation: .* expected a class of torch.nn"):
        parse(activation=spec)
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_the_activation_of_the_process():
    with pytest.raises(RowError):
        parse([-1, 1, "Conv", ["x"]], activation="nn.ReLU()")
    assert isinstance(Conv.default_act, nn.SiLU)


SETTINGS = {
    "channels": [0, "x", 10**7],
    "nc": [-1, "x", 1.5, True, 10**10, [1], 100_001],
    "reg_max": [0, "x"],
    "kpt_shape": [17, [17], ["a", 3], [10**9, 3]],
    "end2end": ["x", 7],
    "scales": [[1, 2, 3], {"n": [1, 2]}, {"n": [0, 1, 1]}, {"n": ["a", 1, 1]}, {"n": [float("nan"), 1, 1]}, {"n": 1}],
    "depth_multiple": ["x", 0, float("inf")],
    "width_multiple": [-1],
    "scale": ["z"],
    "backbone": [7, [[]], "x"],
    "head": [None, {}],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in SETTINGS.items() for value in values], ids=str)
def test_settings_of_the_file(key, value):
    scales = {"scales": {"n": [1, 1, 64]}} if key == "scale" else {}
    with pytest.raises(RowError, match="^strange.yaml.*(expected|no `|has no)"):
        parse(**scales, **{key: value})


def test_no_more_rows_than_a_file_has():
    with pytest.raises(RowError, match="2001 rows"):
        parse(*[[-1, 1, "nn.Identity", []]] * 2000)


# What is named in errors ----------------------------------------------------------------------------------------------
def test_the_first_image_names_the_row(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "nc: 2\nbackbone: [[-1, 1, Conv, [16, 3, 2]], [0, 1, Conv, [16, 3, 2]], [[0, 1], 1, Concat, [1]]]\n"
        "head: [[[2], 1, Detect, [nc]]]\n"
    )
    with pytest.raises(RowError, match=r"mine.yaml, row 2 .*Sizes of tensors must match") as error:
        YOLO(tmp_path / "mine.yaml")
    assert isinstance(error.value, RuntimeError)


@pytest.mark.parametrize("typo, meant", [("Ture", "True"), ("Flase", "False"), ("Fasle", "False"), ("Nonee", "None")])
def test_a_typo_in_a_literal_is_no_text(typo, meant):
    """A text is true, whatever it says."""
    with pytest.raises(RowError, match=rf"'{typo}' is a text; did you mean {meant}\?"):
        parse([-1, 1, "Conv", [16, 1, 1, "None", 1, 1, typo]])


HEADS = {
    "Conv, [16, 3, 2]": r"row 1 \(`head:` row 0\) .*expected the head of a task, such as RTDETRDecoder or Detect",
    "Classify, [nc]": "`nc: 0`, expected the number of classes",
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_tells_its_task(head, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"nc: 0\nbackbone: [[-1, 1, Conv, [16, 3, 2]]]\nhead: [[-1, 1, {head}]]\n")
    with pytest.raises(RowError, match=rf"mine.yaml.*{HEADS[head]}"):
        YOLO(tmp_path / "mine.yaml")


def test_an_rtdetr_has_its_head(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "nc: 2\nbackbone: [[-1, 1, Conv, [16, 3, 2]]]\nhead: [[[0], 1, Detect, [nc]]]\n"
    )
    with pytest.raises(RowError, match="mine.yaml: the last row of an RTDETR is RTDETRDecoder"):
        RTDETR(tmp_path / "mine.yaml")


# The YAML itself ------------------------------------------------------------------------------------------------------
ROWS = "nc: 1\nbackbone: [[-1, 1, Conv, [16]]]\nhead: []\n"
BOMBS = {
    "aliases": "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60)) + ROWS,
    "merges": "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}\n" for i in range(60)) + ROWS,
    "an alias in itself": "nc: 1\nbackbone: &b [[-1, 1, Conv, *b]]\nhead: []\n",
    "keys of one hash": f"x: {{{', '.join(f'{(2**61 - 1) * i}: 0' for i in range(1, 5000))}}}\n" + ROWS,
    "keys of one hash in hex": f"x: {{{', '.join(f'{(2**61 - 1) * i:#x}: 0' for i in range(1, 5000))}}}\n" + ROWS,
    "deep": "x: &x 1\nnc: " + "[" * 5000 + "]" * 5000 + "\n",
    "to the base of sixty": "nc: 1" + ":1" * 10**6 + "\n",
    "a list": "- 1\n",
    "no YAML": "nc: [1\n",
    "objects": "nc: !!python/object/apply:os.system ['touch evil']\n",
    "empty": "",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMBS[kind])
    with no_hang(300), pytest.raises(ValueError) as error:
        YOLO(file)
    assert error.value.plain and str(file) in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.yaml"]


def test_aliases_as_they_are_meant(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "c: &c [16, 3, 2]\nnc: 1\nbackbone: [[-1, 1, Conv, *c], [-1, 1, Conv, *c]]\nhead: [[[1], 1, Detect, [nc]]]"
    )
    assert len(YOLO(file).model.model) == 3


# Rows at random -------------------------------------------------------------------------------------------------------
LAYERS = sorted({*list_module_names(vars(tasks)), *NAMES})
TORCH = sorted(f"nn.{name}" for name, cls in vars(nn).items() if isinstance(cls, type) and issubclass(cls, nn.Module))
VISION = sorted(f"torchvision.ops.{name}" for name in torchvision.ops.__all__)
PUBLISHED = [
    row
    for file in sorted(
        [*(ROOT / "cfg_custom/models").glob("*.yaml"), *(ROOT / "ultralytics/cfg/models").rglob("*.yaml")]
    )
    for section in ("backbone", "head")
    for row in (YAML.load(file).get(section) or [])
]
NOTHING = "parse_model", "nn.functional", "DetectionModel", "os.system", "", "nn.", "Qqq", "torch", "locals", "eval"

numbers = st.one_of(
    st.integers(-2, 9),
    st.sampled_from([16, 32, 64, 100, 256, 1024, 65536, 2**24, 2**24 + 1, 2**31, 2**63, 10**30, -(2**31)]),
    st.floats(),
    st.booleans(),
    st.none(),
)
texts = st.one_of(
    st.sampled_from(["nc", "None", "nearest", "bilinear", "True", "[1, 2]", "kpt_shape", "d", "ch", "1e400", "bn_2d"]),
    st.sampled_from(
        ["gelu", "resnet18", "zeros", "mean", "same", "__import__('os')", "nn.SiLU()", "9" * 50, "((((", "a b"]
    ),
    st.text(max_size=8),
)
plain = st.one_of(st.integers(1, 64), st.sampled_from([1, 2, 3, 4, 8, 16, 32]), numbers, texts)
arguments = st.lists(st.one_of(plain, plain, st.lists(plain, max_size=4)), max_size=7)
sources = st.one_of(st.just(-1), st.just(-1), st.integers(-4, 6), st.lists(st.integers(-2, 4), max_size=4), plain)
modules = st.one_of(
    st.sampled_from(LAYERS),
    st.sampled_from(sorted(NAMES)),
    st.sampled_from(TORCH),
    st.sampled_from(VISION),
    st.sampled_from(NOTHING),
    st.text(max_size=6),
)
repeats = st.one_of(st.just(1), st.integers(-1, 4), st.sampled_from([10**3, 10**4, 10**9]), numbers, texts)


@st.composite
def published(draw, keep: bool = False):
    """Draw a row of a published model file, on the layer before it, or with a source and an argument changed."""
    f, n, name, args = draw(st.sampled_from(PUBLISHED))
    f = [-1] if isinstance(f, list) else -1
    if not keep and draw(st.booleans()):
        f = draw(sources)
    args = list(args)
    if args and not keep and draw(st.booleans()):
        args[draw(st.integers(0, len(args) - 1))] = draw(plain)
    return [f, n, name, args]


rows = st.one_of(
    published(),
    published(),
    st.tuples(sources, repeats, modules, arguments).map(list),
    st.tuples(st.just(-1), st.just(1), st.sampled_from(LAYERS + TORCH), st.lists(st.integers(1, 40), max_size=6)).map(
        list
    ),
    st.lists(plain, max_size=5),
)
strange = st.fixed_dictionaries(
    {},
    optional={
        "nc": numbers,
        "scales": st.one_of(st.just({"n": [0.5, 0.25, 1024]}), st.dictionaries(st.text(max_size=2), plain), plain),
        "activation": st.one_of(st.sampled_from(["nn.ReLU()", "nn.Linear(99999, 99999)"]), texts),
        "depth_multiple": plain,
        "reg_max": plain,
        "kpt_shape": st.one_of(st.just([17, 3]), plain, st.lists(plain, max_size=3)),
        "end2end": plain,
    },
)
usual = st.sampled_from([{}, {"kpt_shape": [17, 3]}, {"scales": {"n": [0.5, 0.25, 1024]}}, {"activation": "nn.ReLU()"}])


@st.composite
def files(draw):
    """Draw a file of a few rows: strange in its rows, or beside them, or both."""
    odd = draw(st.integers(0, 3))
    row = published(keep=True) if odd == 0 else rows
    d = {"backbone": [STEM, *draw(st.lists(row, max_size=4))], "head": draw(st.lists(row, max_size=1))}
    return {**d, **draw(strange if odd == 1 else usual)}


def fuzz(count: int) -> Counter:
    """Parse files at random; gives how many rows became what."""
    outcomes = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(files())
    def parse_any(d):
        outcomes["rows"] += len(d["backbone"]) + len(d["head"])
        with no_hang(300):
            try:
                model, save = parse_model({"nc": 2, **d, "yaml_file": "strange.yaml"}, ch=3, verbose=False)
            except RowError as e:
                line = str(e)
                assert line.startswith("strange.yaml") and "\n" not in line and len(line) < 3000, line
                assert ", row " in line or "`" in line, line
                outcomes["refused"] += 1
            else:
                assert isinstance(model, nn.Sequential) and save == sorted(save)
                outcomes["built"] += 1
        assert isinstance(Conv.default_act, nn.SiLU)

    parse_any()
    return outcomes


def test_rows_at_random(often):
    """20,000 rows and more by night. In a process of its own, whose largest size is its own."""
    count = often(100, 9000)
    lines = (
        *("import sys", "sys.path[:0] = ['tests', 'tests/building']", "import test_model_yaml as t"),
        *("from untrusted_yaml import peak", "before = peak()"),
        f"print(dict(t.fuzz({count})), (peak() - before) // 2**20)",
    )
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-5000:]
    counts, _, mebibytes = done.stdout.splitlines()[-1].rpartition(" ")
    outcomes = eval(counts)
    print(outcomes, f"{mebibytes} MiB")
    assert outcomes["rows"] >= often(200, 20000) and outcomes["built"] and outcomes["refused"]
    assert int(mebibytes) < MAX_BYTES / 2**20 * 1.2


def test_every_layer_is_drawn():
    for name in LAYERS + TORCH:
        assert find_class(name, vars(tasks)) is not None, name
