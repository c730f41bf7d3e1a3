"""The parts of RT-DETR that the variants stand on: AIFI, the cross-scale fusion, RepC3, and no NMS anywhere."""

import math
import sys
from types import FunctionType

import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import TINY
from modules.test_fuse import with_statistics
from torch import nn

from ultralytics import YOLO
from ultralytics.nn.modules import AIFI, RepC3
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import ASSETS, nms

MAPS = [(1, 1), (5, 5), (3, 8), (8, 3), (1, 7), (20, 13)]
LADDER = ["rtdetr-l", *TINY]


# AIFI -----------------------------------------------------------------------------------------------------------------
def position(y: int, x: int, dim: int) -> list[float]:
    """Sines and cosines of a position, rows first: the textbook's, in Python's own numbers."""
    rates = [10000 ** (-i / (dim // 4)) for i in range(dim // 4)]
    return [f(p * rate) for p in (y, x) for f in (math.sin, math.cos) for rate in rates]


@pytest.mark.parametrize("height, width", MAPS)
def test_positions_of_aifi_are_in_the_order_of_its_tokens(height, width):
    """Token y * width + x has row y and column x; a grid the other way round fails on maps that are not square."""
    found = AIFI.build_2d_sincos_position_embedding(width, height, 16, like=torch.zeros(1))
    expected = [position(y, x, 16) for y in range(height) for x in range(width)]
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("height, width", MAPS)
def test_aifi_is_the_textbook_s_encoder_layer(height, width):
    """Softmax attention over positions, head by head, then a feed-forward: norms behind both residuals."""
    m = AIFI(16, 24, num_heads=4).eval()
    for p in m.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 16, height, width)
    results = []
    for image in x:
        tokens = torch.stack([image[:, y, x] for y in range(height) for x in range(width)])  # (H*W, 16)
        where = torch.tensor([position(y, x, 16) for y in range(height) for x in range(width)])
        weights = m.ma.in_proj_weight.view(3, 4, 4, 16)
        biases = m.ma.in_proj_bias.view(3, 4, 4)
        heads = []
        for h in range(4):
            sources = tokens + where, tokens + where, tokens
            q, k, v = (t @ w[h].T + b[h] for t, w, b in zip(sources, weights, biases))
            heads.append((q @ k.T / math.sqrt(4)).softmax(1) @ v)
        tokens = tokens + m.ma.out_proj(torch.cat(heads, 1))
        tokens = F.layer_norm(tokens, (16,), m.norm1.weight, m.norm1.bias)
        tokens = tokens + m.fc2(F.gelu(m.fc1(tokens)))
        results.append(F.layer_norm(tokens, (16,), m.norm2.weight, m.norm2.bias))
    expected = torch.stack(results).mT.reshape(2, 16, height, width)
    with torch.no_grad():
        torch.testing.assert_close(m(x), expected, atol=1e-5, rtol=1e-4)


def test_aifi_turns_with_its_map():
    """A map on its side gives the result on its side, where what the weights see of rows and columns is swapped."""
    m, x = AIFI(16, 24, num_heads=4).eval(), torch.randn(1, 16, 4, 7)
    swapped = m.build_2d_sincos_position_embedding

    def columns_first(*args, **kwargs):
        rows, columns = swapped(*args, **kwargs).chunk(2, dim=2)
        return torch.cat([columns, rows], 2)

    with torch.no_grad():
        upright = m(x)
        m.build_2d_sincos_position_embedding = columns_first
        torch.testing.assert_close(m(x.mT).mT, upright, atol=1e-5, rtol=1e-4)
        assert (m(x) - upright).abs().max() > 1e-3


# The cross-scale fusion -----------------------------------------------------------------------------------------------
class Probe:
    """A model's neck, run with its three backbone maps as leaves of the graph of gradients.

    Attributes:
        maps: What the backbone gives the neck, by stride.
        outputs: What the neck gives the decoder, by stride.
        encoded: What AIFI gives.
        fused: The pairs of maps that are put together, in their order.
    """

    def __init__(self, name: str, height: int, width: int, attend: bool = True):
        self.maps, self.outputs, self.fused = {}, {}, []
        model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).eval()
        for p in model.parameters():
            p.requires_grad = False
        backbone = len(model.yaml["backbone"])
        first = model.model[backbone].i
        for m in model.model[backbone:]:
            sources = [m.i + f if f < 0 else f for f in ([m.f] if isinstance(m.f, int) else m.f)]
            if sources[0] < first:
                m.register_forward_pre_hook(lambda _, args: (self.leaf(args[0], height),))
            if type(m).__name__ == "Concat":
                m.register_forward_pre_hook(lambda _, args: self.fused.append(args[0]))
        encoder = next(m for m in model.model if isinstance(m, AIFI))
        if not attend:
            encoder.forward = lambda x: x
        encoder.register_forward_hook(lambda _, args, out: setattr(self, "encoded", out))
        model.model[-1].register_forward_pre_hook(
            lambda _, args: self.outputs.update({height // x.shape[2]: x for x in args[0]})
        )
        model(torch.rand(1, 3, height, width))

    def leaf(self, x: torch.Tensor, height: int) -> torch.Tensor:
        self.maps[height // x.shape[2]] = found = x.detach().requires_grad_()
        return found

    def depends(self, out: torch.Tensor) -> list[int]:
        """Strides of the backbone's maps that a map is computed from."""
        if out.grad_fn is None:
            return []
        found = torch.autograd.grad(out.sum(), list(self.maps.values()), retain_graph=True, allow_unused=True)
        return sorted(stride for stride, grad in zip(self.maps, found) if grad is not None and grad.any())


@pytest.mark.parametrize("name", LADDER)
def test_fusion_takes_every_level_to_every_stride(name):
    """Down from stride 32 and up again: what is put together, of what size, and what it is computed from."""
    probe = Probe(name, 96, 160)
    assert {stride: tuple(x.shape[2:]) for stride, x in probe.maps.items()} == {8: (12, 20), 16: (6, 10), 32: (3, 5)}
    assert [(stride, tuple(x.shape[2:])) for stride, x in probe.outputs.items()] == [
        (8, (12, 20)),
        (16, (6, 10)),
        (32, (3, 5)),
    ]
    assert len({x.shape[1] for x in probe.outputs.values()}) == 1
    assert probe.depends(probe.encoded) == [32]
    pairs = [[(tuple(x.shape[2:]), probe.depends(x)) for x in pair] for pair in probe.fused]
    assert [sorted(pair) for pair in pairs] == [
        [((6, 10), [16]), ((6, 10), [32])],  # the encoded map, up, beside P4
        [((12, 20), [8]), ((12, 20), [16, 32])],  # that, up, beside P3
        [((6, 10), [8, 16, 32]), ((6, 10), [16, 32])],  # F3, down, beside what went up
        [((3, 5), [8, 16, 32]), ((3, 5), [32])],  # F4, down, beside the encoded map
    ]
    assert [probe.depends(x) for x in probe.outputs.values()] == [[8, 16, 32]] * 3


@pytest.mark.parametrize("name", LADDER)
def test_fusion_keeps_places(name):
    """What a corner of an output is computed from lies about that corner of every level; rows are no columns.

    Without AIFI, which looks everywhere.
    """
    probe = Probe(name, 256, 512, attend=False)
    for out in probe.outputs.values():
        for y, x in ((0, -1), (-1, 0)):
            grads = torch.autograd.grad(out[:, :, y, x].square().sum(), list(probe.maps.values()), retain_graph=True)
            for grad in grads:
                weight = grad[0].abs().sum(0)
                top, left = (weight.sum(d).cumsum(0) / weight.sum() for d in (1, 0))  # share of what is before a line
                half_down, half_right = top[len(top) // 2 - 1], left[len(left) // 2 - 1]
                assert (half_down > 0.5) == (y == 0) and (half_right > 0.5) == (x == 0)


# RepC3 ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LADDER)
def test_repc3_gives_fused_what_it_gives_apart(name):
    """Each one of a model's neck, with statistics that folding has to carry over."""
    model = with_statistics(RTDETRDetectionModel(f"{name}.yaml", verbose=False))
    seen = {}

    def note(m, args, out):
        seen.setdefault(m.i, []).append((args[0], out))

    layers = [m for m in model.model if isinstance(m, RepC3)]
    assert len(layers) == 4
    for m in layers:
        m.register_forward_hook(note)
    with torch.no_grad():
        model(torch.rand(1, 3, 96, 64))
        model.fuse(verbose=False)
        for m in layers:
            m(seen[m.i][0][0])
    for m in layers:
        (_, apart), (_, fused) = seen[m.i]
        assert [part for part in m.modules() if isinstance(part, nn.BatchNorm2d)] == []
        assert (apart - fused).abs().max() <= 1e-4 * max(1, apart.abs().max())
        assert apart.std() > 1e-2  # a map of zeros would be equal too


# No NMS ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def no_nms(monkeypatch):
    """Make every non-maximum suppression of upstream's and torchvision's raise, wherever its name was taken to."""

    def raising(*_, **__):
        raise AssertionError("NMS ran")

    suppressors = {nms.non_max_suppression, torchvision.ops.nms, torchvision.ops.batched_nms}
    for key in vars(nms.TorchNMS):
        if "nms" in key:
            monkeypatch.setattr(nms.TorchNMS, key, staticmethod(raising))
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("ultralytics", "torchvision"):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value in suppressors:
                monkeypatch.setattr(module, key, raising)


def test_the_trap_works(no_nms):
    with pytest.raises(AssertionError, match="NMS ran"):
        YOLO("yolov8n.yaml").predict(ASSETS / "bus.jpg", imgsz=64, conf=0.0, verbose=False)


def test_predict_and_val_run_without_nms(no_nms, shapes, tmp_path):
    model = YOLO("rtdetr-tiny-FLA.yaml")
    (result,) = model.predict(ASSETS / "bus.jpg", imgsz=96, conf=0.0, verbose=False)
    assert len(result.boxes) == 60  # all queries: nothing was suppressed
    metrics = model.val(data=shapes, imgsz=96, project=tmp_path, name="val", plots=False, verbose=False)
    assert "metrics/mAP50-95(B)" in metrics.results_dict


def test_an_exported_graph_has_no_nms(no_nms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = YOLO("rtdetr-tiny.yaml")
    file = model.export(format="onnx", imgsz=64, nms=True)  # which only a warning answers
    nodes = {node.op_type for node in onnx.load(file).graph.node}
    assert "TopK" in nodes and "NonMaxSuppression" not in nodes
    file = model.export(format="torchscript", imgsz=64)
    assert "nms" not in str(torch.jit.load(file).inlined_graph)
