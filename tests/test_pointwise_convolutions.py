"""Convolutions of one pixel by oneDNN on one thread: where, with what result, and how to turn it off."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from ultralytics import ASSETS, RTDETR
from ultralytics.fork.errors import Refused
from ultralytics.fork.pointwise_convolutions import OneThreadConv, use_onednn_on_one_thread

IMAGE = ASSETS / "zidane.jpg"


@pytest.fixture
def threads():
    """Give a function that sets the number of threads, which is as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def list_kernels(model: nn.Module, x: torch.Tensor) -> set[str]:
    """List the kernels that compute a model's convolutions."""
    with torch.profiler.profile() as profiler, torch.no_grad():
        model(x)
    return {event.key for event in profiler.key_averages() if "conv2d_forward" in event.key or "mkldnn" in event.key}


def test_kernels_and_results(threads):
    conv = nn.Sequential(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, stride=2))
    fast, x = copy.deepcopy(conv), torch.randn(2, 16, 9, 7)
    use_onednn_on_one_thread(fast)
    for count in (1, 2):
        threads(count)
        assert torch.allclose(conv(x), fast(x), atol=1e-5)
    assert torch.equal(conv(x), fast(x))  # on two threads these are the same kernels
    threads(1)
    if torch.backends.mkldnn.is_available():
        assert "aten::mkldnn_convolution" in list_kernels(fast, x)
        assert not any("slow" in name for name in list_kernels(fast, x)) and len(list_kernels(conv, x)) > 1
    grads = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (conv, fast)]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*grads, strict=True))
    assert not any(isinstance(m, OneThreadConv) for m in copy.deepcopy(fast).modules())
    use_onednn_on_one_thread(fast, is_used=False)
    assert all(type(m) is nn.Conv2d for m in fast)


def test_other_convolutions_stay():
    others = nn.ModuleList(
        [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, padding=1, padding_mode="reflect"), nn.Conv1d(4, 4, 1)]
    )
    kinds = [type(m) for m in others]
    use_onednn_on_one_thread(others)
    assert [type(m) for m in others] == kinds


def test_predictions_differ_by_rounding_and_a_switch_turns_it_off(tmp_path):
    model = RTDETR("rtdetr-tiny-FLA.yaml")
    found, mixed = [], []
    for switch in (None, True, False):
        (result,) = model.predict(IMAGE, imgsz=64, conf=0.0, verbose=False, device="cpu", fast_kernels=switch)
        found.append(result.boxes.data)
        mixed.append(sum(isinstance(m, OneThreadConv) for m in model.predictor.model.model.modules()))
    assert mixed[0] == mixed[1] > 10 and mixed[2] == 0
    assert torch.equal(found[0], found[1])
    scores = [boxes[:, 4].sort().values for boxes in found]
    assert torch.allclose(scores[0], scores[2], atol=1e-5)
    model.save(tmp_path / "saved.pt")
    assert not any(isinstance(m, OneThreadConv) for m in RTDETR(tmp_path / "saved.pt").model.modules())
    with pytest.raises(Refused, match="fast_kernels='maybe': expected True or False"):
        model.predict(IMAGE, imgsz=64, fast_kernels="maybe")


@pytest.mark.slow
def test_another_model_computes_as_upstream_does():
    code = (
        "from ultralytics import ASSETS, YOLO\n"
        "model = YOLO('yolo11n.yaml')\n"
        "model.predict(ASSETS / 'zidane.jpg', imgsz=64, verbose=False)\n"
        "print({type(m).__mro__[1].__name__ for m in model.predictor.model.model.modules() "
        "if 'Conv2d' in str(type(m))})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "{'_ConvNd'}"
