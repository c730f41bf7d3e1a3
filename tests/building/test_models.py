"""The shipped models: published rows, strides, gradients; forward loops; vanilla models as upstream builds them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import MODELS, ROOT, TINY, load_file, mark_nightly

from _upstream.pin import Pin
from _upstream.queue.release_trees import write_untouched_tree
from _upstream.verify.build_models import list_vanilla_models, read_expected_parameters
from ultralytics import YOLO
from ultralytics.fork.building.row_graph import RowGraph
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, WorldModel, YOLOEModel
from ultralytics.utils.torch_utils import get_flops

reproduce = load_file(ROOT / "scripts" / "reproduce.py")
HONEST_GFLOPS = {  # measured when the modules were written; 640 px, one class
    "rtdetr-l-FLA": 112.8,
    "rtdetr-l-HGBlock_FLA": 152.2,
    "rtdetr-l-Biformer": 124.1,
    "rtdetr-l-HGBlock_Biformer": 151.5,
    "rtdetr-l-EMO": 66.3,
    "rtdetr-ResNetLayer_MQA": 961.8,
}


@pytest.mark.parametrize("name", mark_nightly(reproduce.PUBLISHED, {"rtdetr-l-FLA"}))
def test_published_summary(name):
    model, rows = reproduce.build_model(name)
    counts = reproduce.count_totals(model)
    assert reproduce.list_differences(name, rows, counts) == []
    assert round(counts["gflops"], 1) == HONEST_GFLOPS[name]


def test_a_difference_from_the_published_summary_is_seen():
    name = "rtdetr-l-EMO"
    _model, rows = reproduce.build_model(name)
    counts = {"parameters": 22_863_235, "gradients": 22_863_235}
    assert reproduce.list_differences(name, rows, counts) == []
    assert len(reproduce.list_differences(name, rows[:-1], counts)) == 1
    assert len(reproduce.list_differences(name, [rows[0], rows[2], *rows[2:]], counts)) == 1
    assert len(reproduce.list_differences(name, rows, {**counts, "gradients": 1})) == 1


def test_the_command_fails_on_a_difference(monkeypatch, capsys):
    """The published six pass but for the one whose figures are falsified; its difference is on stderr."""
    name = "rtdetr-l-EMO"
    monkeypatch.setattr(reproduce, "PUBLISHED", {name: {**reproduce.PUBLISHED[name], "parameters": 1}})
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    out, err = capsys.readouterr()
    assert stop.value.code and "| differ |" in out and "parameters 22,863,235, published are 1" in err


@pytest.mark.parametrize("name", MODELS)
def test_shipped_model(name):
    """Parameters, the stride of each decoder input, boxes in eval mode and a loss with gradients in training."""
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
    assert sum(p.numel() for p in model.parameters()) == read_expected_parameters(ROOT)[name]
    model.nc = model.yaml["nc"]
    inputs = []
    model.model[-1].register_forward_pre_hook(lambda _, args: inputs.extend(args[0]))
    with torch.no_grad():
        predictions = model.eval()(torch.rand(2, 3, 128, 96))[0]
    sizes = [(16, 12), (8, 6), (4, 3)]
    if name.endswith("-p2"):
        sizes.insert(0, (32, 24))
    assert [tuple(x.shape[2:]) for x in inputs] == sizes
    queries = min(model.model[-1].num_queries, sum(h * w for h, w in sizes) * model.nc)
    assert predictions.shape == (2, queries, 6)
    assert predictions.isfinite().all() and ((predictions[..., :4] >= 0) & (predictions[..., :4] <= 1)).all()
    if name in TINY:
        batch = {
            "img": torch.rand(2, 3, 96, 128),
            "batch_idx": torch.tensor([0.0, 1, 1]),
            "cls": torch.tensor([[0.0], [1], [2]]),
            "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.1, 0.2]]),
        }
        loss, _ = model.train()(batch)
        loss.backward()
        assert loss.isfinite()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


OFFICIAL_SIZES = {"r18": (20, 60), "r34": (31, 92), "r50m": (36, 100), "r50": (42, 136), "r101": (76, 259)}
OFFICIAL_SIZES |= {"l": (32, 110), "x": (67, 234)}  # parameters in millions and GFLOPs at 640, as published
OFFICIAL_NAMES = [name for name in MODELS if re.fullmatch(r"rtdetr(v2)?-(r\d+m?|[lx])(-dsp)?", name)]


@pytest.mark.parametrize("name", mark_nightly(OFFICIAL_NAMES, {"rtdetr-r18", "rtdetr-r50m", "rtdetrv2-r34-dsp"}))
def test_official_models_have_the_published_size(name):
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
    parameters, gflops = OFFICIAL_SIZES[name.split("-")[1]]
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - parameters) < 1
    assert abs(get_flops(model, 640) - gflops) < 1
    norms = {(m.eps, m.momentum) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert norms == {(1e-5, 0.1)}


def test_official_models_cover_the_published_ones():
    assert {name.split("-")[1] for name in OFFICIAL_NAMES} == OFFICIAL_SIZES.keys()
    assert len(OFFICIAL_NAMES) == 16


@pytest.mark.parametrize("key", ["norm_eps", "norm_momentum"])
@pytest.mark.parametrize("value", [0, 1, -1e-5, "small", True, float("nan")])
def test_norms_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match=f"`{key}: .*expected a number between 0 and 1"):
        RTDETRDetectionModel({**multi_output_yaml(), key: value}, verbose=False)


def multi_output_yaml(*head, **keys) -> dict:
    """A model file with EMO_1M and projections of three maps, which `head` takes from layers 6, 8 and 10."""
    return {
        "nc": 2,
        **keys,
        "backbone": [[-1, 1, "EMO_1M", []]],
        "head": [
            [2, 1, "Conv", [32, 1]],
            [-1, 1, "Conv", [32, 3]],
            [3, 1, "Conv", [32, 1]],
            [-1, 1, "Conv", [32, 3]],
            [4, 1, "Conv", [32, 1]],
            [-1, 1, "Conv", [32, 3]],
            *head,
        ],
    }


def indexed(model, x: torch.Tensor) -> list[torch.Tensor]:
    """What layers 6, 8 and 10 must give: the maps of strides 8, 16 and 32, through their projections."""
    maps, layers = model.model[0](x), model.model
    return [layers[i + 1](layers[i](feature)) for i, feature in zip((1, 3, 5), maps[1:])]


@pytest.mark.parametrize(
    "cls, head",
    [
        (DetectionModel, [[6, 8, 10], 1, "Detect", ["nc"]]),
        (WorldModel, [[6, 8, 10], 1, "WorldDetect", ["nc", 512, False]]),
        (YOLOEModel, [[6, 8, 10], 1, "YOLOEDetect", ["nc", 512, True]]),
        (RTDETRDetectionModel, [[6, 8, 10], 1, "RTDETRDecoder", ["nc", 32, 20, 4, 4, 1, 64]]),
    ],
)
def test_every_forward_loop_runs_a_multi_output_backbone(cls, head):
    model = cls(multi_output_yaml(head), ch=3, nc=2, verbose=False).eval()
    assert [m.i for m in model.model] == [4, 5, 6, 7, 8, 9, 10, 11]
    seen = []
    model.model[-1].register_forward_pre_hook(lambda _, args: seen.extend(args[0][:3]))
    x = torch.rand(1, 3, 64, 96)
    kwargs = {"tpe": torch.rand(1, 2, 512)} if cls is YOLOEModel else {}
    with torch.no_grad():
        model(x, **kwargs)
        expected = indexed(model, x)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_strides_of_a_detect_head_on_a_multi_output_backbone():
    assert DetectionModel(multi_output_yaml([[6, 8, 10], 1, "Detect", ["nc"]]), verbose=False).stride.tolist() == [
        8,
        16,
        32,
    ]


def test_embedding_and_profile_of_a_multi_output_backbone():
    model = DetectionModel(multi_output_yaml([[6, 8, 10], 1, "Detect", ["nc"]]), verbose=False).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        (embedding,) = model.predict(x, embed=[4])
        torch.testing.assert_close(embedding, model.model[0](x)[-1].mean((2, 3))[0])
        model.predict(x, profile=True)


@pytest.mark.parametrize("name, channels", [("rtdetr-tiny-EMO", 96), ("rtdetr-tiny", 96)])
def test_embed_takes_the_layer_before_the_head(name, channels):
    """Its index is not its place in the list behind a multi-output backbone."""
    (embedding,) = YOLO(f"{name}.yaml").embed(torch.rand(1, 3, 64, 64), verbose=False)
    assert embedding.shape == (channels,)


# One of each head, and of each kind of row that the patches of parse_model touch; the others at night
SUITE = "rtdetr-l.yaml", "yolo26n-seg.yaml", "yolov8s-worldv2.yaml", "yoloe-11s.yaml"


def test_vanilla_models_are_upstreams_to_the_bit(tmp_path, often):
    """As `scripts/upstream.py check` sees it, but in the environment that the project is installed in."""
    repo = ROOT / ".upstream" / "repo"
    if not repo.is_dir():
        pytest.skip("set-up has left no scratch repository: this is no checkout")
    write_untouched_tree(repo, Pin.read(ROOT).release, tmp_path)
    names = list_vanilla_models(tmp_path)
    names = often([name for name in names if name in SUITE], names)
    assert len(names) >= len(SUITE)
    theirs, ours = fingerprints(tmp_path, names), fingerprints(ROOT, names)
    assert theirs.pop("ultralytics")["file"] == str(tmp_path / "ultralytics" / "__init__.py")
    assert ours.pop("ultralytics")["file"] == str(ROOT / "ultralytics" / "__init__.py")
    assert list(ours) == names and not any("error" in found for found in ours.values())
    assert ours == theirs


def fingerprints(tree: Path, names: list[str]) -> dict[str, dict]:
    """Build models in a process that imports ultralytics from `tree`."""
    command = [sys.executable, str(ROOT / "scripts" / "_upstream" / "verify" / "model_probe.py"), "vanilla", *names]
    done = subprocess.run(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in re.findall(r"(?m)^PROBE(.*)$", done.stdout)]
    return {data.pop("name", "ultralytics"): data for data in found[1:]}


def test_files_state_their_rows_plainly():
    """The layer index in each row's comment is the one that the row gets."""
    for name in MODELS:
        text = (ROOT / "cfg_custom" / "models" / f"{name}.yaml").read_text(encoding="utf-8")
        written = [int(line.rpartition("#")[2].split()[0]) for line in text.splitlines() if line.startswith("  - [")]
        graph = RowGraph(yaml.safe_load(text))
        assert graph.list_rows() and written == [row.index for row in graph.rows], name
