"""The command that changes rows: the published variants, comments, what it prints and refuses."""

import sys

import pytest
import yaml
from conftest import ROOT, mark_nightly

import graft
from ultralytics.fork.building.row_graph import RowGraph
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

FLA = ["--before", "9", "FocusedLinearAttention", "1024"]
VARIANTS = {
    "rtdetr-l-FLA": ["rtdetr-l.yaml", *FLA],
    "rtdetr-l-Biformer": [
        *("rtdetr-l.yaml", "--replace", "HGBlock=BiLevelRoutingAttention_nchw", "--rows", "9", "--args", "1024"),
    ],
    "rtdetr-l-HGBlock_FLA": ["rtdetr-l.yaml", "--replace", "HGBlock=HGBlock_FLA", "--rows", "5-7"],
    "rtdetr-l-HGBlock_Biformer": ["rtdetr-l.yaml", "--replace", "HGBlock=HGBlock_Biformer", "--rows", "5-7"],
    "rtdetr-l-EMO": ["rtdetr-l.yaml", "--backbone", "EMO_1M"],
    "rtdetr-ResNetLayer_MQA": ["rtdetr-resnet50.yaml", "--replace", "ResNetLayer=ResNetLayer_MQA"],
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a function that runs the command with arguments and returns the file's text."""

    def run(*arguments, out=tmp_path / "mine" / "my.yaml"):
        monkeypatch.setattr(sys, "argv", ["graft.py", *arguments, "--out", str(out)])
        graft.main()
        return out.read_text(encoding="utf-8")

    return run


@pytest.fixture
def skip_building(monkeypatch):
    """Leave out what takes seconds and is tested elsewhere: building large models."""
    monkeypatch.setattr(graft, "share_of_tensors", lambda *_: (0, 1))


@pytest.mark.parametrize("name", mark_nightly(VARIANTS, {"rtdetr-l-FLA"}))
def test_published_variants(run, name, skip_building):
    """The commands make each of them, row by row, from upstream's files."""
    made = yaml.safe_load(run(*VARIANTS[name]))
    shipped = YAML.load(ROOT / "cfg_custom" / "models" / f"{name}.yaml")
    assert made["backbone"] == shipped["backbone"] and made["head"] == shipped["head"]


def test_comments_stay(run, capsys):
    """All of the file but what changes is as it was; an index in a comment follows its row."""
    source = (ROOT / "cfg_custom" / "models" / "rtdetr-tiny.yaml").read_text(encoding="utf-8").splitlines()
    made = run("rtdetr-tiny.yaml", "--before", "3", "CBAM", "7").splitlines()
    column = next(line.index("#") for line in source if line.lstrip().startswith("- [-1, 1, HG"))
    added = next(i for i, line in enumerate(made) if "CBAM" in line)
    assert made[added].split("#")[0].strip() == "- [-1, 1, CBAM, [7]]" and made[added].index("# 3") == column
    rest = made[:added] + made[added + 1 :]
    assert len(rest) == len(source)
    changed = [(a, b) for a, b in zip(source, rest) if a != b]
    assert all(a.split("#")[0].count("[") == b.split("#")[0].count("[") for a, b in changed)
    assert [line for line in source[:added] if line not in rest] == []
    numbers = [int(line.split("#")[1].split()[0]) for line in rest if line.lstrip().startswith("- [")]
    assert numbers == [n + (n >= 3) for n in range(len(numbers))]
    said = capsys.readouterr().out
    assert (
        "| 3     | [-1, 1, 'CBAM', [7]]" in said and "tensors (9" in said and "checkpoint of rtdetr-tiny.yaml" in said
    )


def test_several_changes(run):
    """Each is made with the indices of the file."""
    made = yaml.safe_load(
        run("rtdetr-r18.yaml", "--wrap", "3", "CBAM", "--remove", "12", "--before", "5", "SPPF", "512")
    )
    assert [row[2] for row in made["backbone"]][3:] == ["ResNetVDStage", "CBAM", "ResNetVDStage"]
    assert [made["head"][0][2], made["head"][5][:3]] == ["SPPF", [4, 1, "Conv"]]
    assert [row[0] for row in made["head"] if row[2] == "Concat"] == [[-2, -1], [-2, -1], [-1, 13], [-1, 9]]


def test_backbone_of_timm(run):
    made = run("rtdetr-r18.yaml", "--backbone", "Timm", "test_resnet", "{drop_path_rate: 0.1}")
    assert "[-1, 1, Timm, [test_resnet, {drop_path_rate: 0.1}]]" in made and "\n\n\n" not in made
    assert "RT-DETR-R18" in made and "# 0 to 4" in made


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--before", "99", "CBAM"], "no layer 99 .* 0 to 28"),
        (["--before", "15", "CBAM"], "layer 15, Concat, reads several layers; wrap one"),
        (["--wrap", "28", "CBAM"], "nothing reads layer 28, RTDETRDecoder"),
        (["--before", "9"], "expected a layer and a module"),
        (["--before", "nine", "CBAM"], "'nine': expected layer indices"),
        (["--replace", "HGBlock"], "expected --replace OLD=NEW"),
        (["--replace", "Gate=CBAM"], "no row is of Gate; there are AIFI, Concat"),
        (["--replace", "HGBlock=HGBlock_FLA", "--rows", "4-7"], "layer 4 is DWConv, not HGBlock"),
        (["--remove", "15"], "layer 15, Concat, reads several"),
    ],
)
def test_refusals(run, tmp_path, arguments, line):
    """One line, and nothing is written."""
    with pytest.raises(SystemExit, match=f"(?s)^graft.py: .*{line}"):
        run("rtdetr-l.yaml", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--backbone", "HGStem"], "HGStem is not a multi-output backbone; there are EMO, .*Timm"),
        (["--backbone", "Timm", "resnett18"], "row 0.*no model 'resnett18'; did you mean .*resnet18"),
        (["--before", "5", "Nope"], "my.yaml, row 5 .*no module is named 'Nope'"),
        (["--before", "5", "nn.Conv2d", "48", "96", "1"], "my.yaml, row 5 .*96 channels"),
    ],
)
def test_what_cannot_be_built(run, tmp_path, arguments, line):
    """Nor is anything written where the changed rows give no model, or one that cannot take an image."""
    with pytest.raises(SystemExit, match=f"(?s)^graft.py: .*{line}"):
        run("rtdetr-tiny.yaml", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_model(run, tmp_path):
    (tmp_path / "data.yaml").write_text("train: images\n")
    with pytest.raises(SystemExit, match="data.yaml: no `backbone:`"):
        run(str(tmp_path / "data.yaml"), *FLA)
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(SystemExit, match="my.yaml exists"):
        run("rtdetr-l.yaml", *FLA, out=tmp_path / "my.yaml")
    assert (tmp_path / "my.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["rtdetr-x", "rtdetr-l-EMO", "rtdetr-r18-p2", "yolo26", "yolo11-seg", "yolov9c"])
def test_unchanged_rows_are_the_rows(name):
    """Whatever the forms of 'from', a file without changes comes out as it is."""
    file = next((ROOT / "cfg_custom" / "models").glob(f"{name}.yaml"), None) or check_yaml(f"{name}.yaml")
    settings = YAML.load(file)
    assert RowGraph(settings).list_rows() == {key: settings[key] for key in ("backbone", "head")}
