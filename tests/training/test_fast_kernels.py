"""Fast kernels: a step that differs by rounding only, and checkpoints that lie as upstream's do."""

import copy

import pytest
import torch
from torch import nn

from tests.training.test_activation_checkpoints import TINY, build
from tests.training.test_norm_recomputation import run_in_double
from ultralytics import YOLO
from ultralytics.fork.errors import Refused
from ultralytics.fork.training import cpu_memory
from ultralytics.fork.training.fast_kernels import AttentionWithoutWeights, HeadOfContiguousTokens, use_fast_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])
@pytest.mark.parametrize("name", TINY)
def test_a_step_differs_by_rounding(name, capability, monkeypatch):
    plain = build(name).double()
    for m in plain.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0  # other kernels draw other numbers
    fast = copy.deepcopy(plain)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    use_fast_kernels(fast, CPU)
    filters = [p for p in fast.parameters() if p.dim() == 4 and min(p.shape) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) == (capability == "AVX512") for p in filters)
    assert sum(isinstance(m, AttentionWithoutWeights) for m in fast.modules()) >= 2
    torch.testing.assert_close(run_in_double(plain), run_in_double(fast), rtol=1e-9, atol=0)
    whole = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    other = torch.cat([p.grad.contiguous().flatten() for p in fast.parameters() if p.grad is not None])
    assert torch.linalg.vector_norm(whole - other) < 1e-8 * torch.linalg.vector_norm(whole)


def test_evaluation_and_copies_are_those_of_the_model(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = build("rtdetr-tiny").double()
    plain = copy.deepcopy(model).eval()
    use_fast_kernels(model, CPU)
    mixins = AttentionWithoutWeights, HeadOfContiguousTokens
    assert any(isinstance(m, mixins) for m in model.modules())
    x = torch.rand(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x)[0], plain(x)[0], rtol=1e-9, atol=1e-12)
    assert not any(isinstance(m, mixins) for m in copy.deepcopy(model).modules())


def test_large_buffers_are_mapped_unless_the_user_has_chosen(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, *arguments):
            calls.append(arguments)

    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda name: Library())
    for libc, chosen in (("glibc", None), ("glibc", "1048576"), ("", None)):
        monkeypatch.setattr(cpu_memory.platform, "libc_ver", lambda libc=libc: (libc, ""))
        monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
        if chosen:
            monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", chosen)
        cpu_memory.map_large_buffers()
    assert calls == [(cpu_memory.M_MMAP_THRESHOLD, cpu_memory.LARGE)]


def test_another_model_is_refused():
    with pytest.raises(Refused, match="fast_kernels=True is for RT-DETR"):
        use_fast_kernels(YOLO("yolo11n.yaml").model, CPU)
