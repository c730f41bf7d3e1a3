"""Constructors, keys, outputs and gradients are the tutorials', and what they pickled loads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.fill import fill

from ultralytics import YOLO
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw, HGBlock_Biformer
from ultralytics.nn.AddModules.EMO import EMO_1M, EMO_2M, EMO_5M, EMO_6M
from ultralytics.nn.AddModules.FLA import FocusedLinearAttention, HGBlock_FLA
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling, ResNetLayer_MQA

GOLDEN = Path(__file__).parents[1] / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
STATE_DICTS = json.loads((GOLDEN / "state_dicts.json").read_text())
PICKLES = sorted(file.stem for file in (GOLDEN / "tutorial_pickles").glob("*.pt") if "rtdetr" not in file.stem)
CLASSES = (
    BiLevelRoutingAttention_nchw,
    EMO_1M,
    EMO_2M,
    EMO_5M,
    EMO_6M,
    FocusedLinearAttention,
    HGBlock_Biformer,
    HGBlock_FLA,
    MultiQueryAttentionLayerWithDownSampling,
    ResNetLayer_MQA,
)


def construct(call: str) -> torch.nn.Module:
    """Build a module from its constructor's text in the golden files."""
    return eval(call, {cls.__name__: cls for cls in CLASSES})


def as_list(y) -> list[torch.Tensor]:
    return list(y) if isinstance(y, (list, tuple)) else [y]


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.detach() - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("case", INDEX)
def test_outputs_and_gradients(case):
    module = fill(construct(INDEX[case]["constructor"]), INDEX[case]["phase"])
    for part in module.modules():
        if "tutorial" in case and isinstance(part, MultiQueryAttentionLayerWithDownSampling):
            part.head_dim = part.key_dim // part.num_heads  # what marks a module of a tutorial checkpoint
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{case}.npz").items()}
    x = golden["x"].requires_grad_()
    outputs = as_list(module(x))
    assert [list(y.shape) for y in outputs] == INDEX[case]["outputs"]
    for i, y in enumerate(outputs):
        assert relative_error(y, golden[f"y{i}"]) < 1e-4
    sum((y * golden[f"gy{i}"]).sum() for i, y in enumerate(outputs)).backward()
    assert relative_error(x.grad, golden["grad_x"]) < 1e-4


@pytest.mark.parametrize("call", STATE_DICTS)
def test_keys_shapes_and_counts(call):
    module, facts = construct(call), STATE_DICTS[call]
    ours = [(key, list(tensor.shape)) for key, tensor in module.state_dict().items()]
    assert ours == list(facts["state_dict"].items())
    assert sum(p.numel() for p in module.parameters()) == facts["parameters"]
    assert len(list(module.modules())) == facts["modules"]
    assert getattr(module, "width_list", None) == facts.get("channels")


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_modules_keep_their_outputs(name, tmp_path):
    saved = torch.load(GOLDEN / "tutorial_pickles" / f"{name}.pt", weights_only=False)
    torch.save(saved["module"], tmp_path / "again.pt")
    for module in (saved["module"], torch.load(tmp_path / "again.pt", weights_only=False)):
        for ours, theirs in zip(as_list(module(saved["x"])), as_list(saved["y"]), strict=True):
            assert relative_error(ours, theirs) < 1e-4


def test_tutorial_mqa_is_not_ours():
    """The two arithmetics differ, so that the tests above see which one ran."""
    saved = torch.load(GOLDEN / "tutorial_pickles" / "resnetlayer_mqa.pt", weights_only=False)
    for part in saved["module"].modules():
        part.__dict__.pop("head_dim", None)
    assert relative_error(saved["module"](saved["x"]), saved["y"]) > 1e-3


def test_pickled_checkpoint_predicts_as_it_did():
    """All of its encoder scores are tied, so that rounding decides which anchors become the 60 queries.

    Most queries are the same, and those must agree; of each the class scores, equal for all anchors, must.
    """
    model = YOLO(GOLDEN / "tutorial_pickles" / "rtdetr-tiny-FLA.pt").model.float().eval()
    io = torch.load(GOLDEN / "tutorial_pickles" / "rtdetr-tiny-FLA.io.pt")
    with torch.no_grad():
        boxes, scores = model(io["x"])[1][:2]
    ours, theirs = torch.cat([boxes[0, 0], scores[0, 0].sigmoid()], dim=-1), io["y"][0]
    distance = (ours[:, None] - theirs[None]).abs().amax(dim=-1)
    assert (distance.amin(dim=1) < 1e-3).sum() >= 45
    torch.testing.assert_close(ours[:, 4:].sort(dim=0).values, theirs[:, 4:].sort(dim=0).values, atol=2e-4, rtol=0)
