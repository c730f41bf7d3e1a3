"""The ways by which the modules are fast give what the plain ways give, and keep as little as they say."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from _bench import naive_formulas
from ultralytics.nn.AddModules import EMO, FLA, MQA, Biformer
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw, Regions, RoutedAttention
from ultralytics.nn.AddModules.FLA import FocusedAttention, FocusedLinearAttention
from ultralytics.nn.AddModules.layers import tokens
from ultralytics.nn.AddModules.layers.execution_mode import one_size
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling
from ultralytics.nn.tasks import RTDETRDetectionModel


@pytest.fixture
def in_pieces(monkeypatch):
    """Make everything that is done in pieces be done in many, the last of them smaller."""
    monkeypatch.setattr(FLA, "CACHED", 200)
    monkeypatch.setattr(FLA, "PART", 1)
    monkeypatch.setattr(Biformer, "GATHERED", {"cpu": 1000})
    monkeypatch.setattr(EMO, "FRESH", 1)
    monkeypatch.setattr(EMO, "PIECE", 1)


CASES = {
    "FLA": (lambda: FocusedLinearAttention(32), (3, 32, 9, 7)),
    "FLA_sr": (lambda: FocusedLinearAttention(32, sr_ratio=2), (3, 32, 9, 7)),
    "BRA": (lambda: BiLevelRoutingAttention_nchw(32, 4), (3, 32, 15, 22)),
    "BRA_by_channel": (lambda: BiLevelRoutingAttention_nchw(16, 16), (3, 16, 15, 22)),
    "BRA_by_channel_even": (lambda: BiLevelRoutingAttention_nchw(16, 16), (3, 16, 14, 28)),
    "iRMB": (
        lambda: EMO.iRMB(24, 32, exp_ratio=3, stride=2, attn_s=False, qkv_bias=True, se_ratio=1),
        (2, 24, 9, 8),
    ),
}


def made(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Give a module in eval mode, its naive form, and an input."""
    build, shape = CASES[name]
    module = build().eval()
    return module, naive_formulas.naive_copy(module), torch.randn(shape)


@pytest.mark.parametrize("name", CASES)
def test_pieces_are_the_whole(name, in_pieces):
    """Forward without and with gradients, and the gradients of input and parameters."""
    module, formula, x = made(name)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = module(a), formula(b)
    weights = torch.randn_like(theirs)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)
    for (key, p), q in zip(module.named_parameters(), formula.parameters()):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")
    for m in list(module.modules()):
        getattr(m, "fuse", lambda: None)()
    with torch.inference_mode():
        torch.testing.assert_close(module(x), theirs.detach(), atol=1e-5, rtol=1e-4)


def test_a_head_a_channel_needs_no_matrix_products(monkeypatch):
    """In eager mode; an export gets the fused attention."""
    module, _, x = made("BRA_by_channel")
    calls, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attention(*a, **k))
    with torch.no_grad():
        module(x)
        assert not calls
        torch.jit.trace(module, x, check_trace=False)
    assert calls


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Conv2d(6, 4, 1)], ids=str)
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_product_of_tokens_and_its_gradients_on_each_processor(layer, capability, monkeypatch):
    """Also the gradients of gradients, and those of a frozen layer; without AVX-512, weights' are matrix products."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    taken, apply = [], tokens.PixelProduct.apply
    monkeypatch.setattr(tokens.PixelProduct, "apply", lambda *args: taken.append(1) or apply(*args))
    x = torch.randn(2, 5, 6, requires_grad=True)
    expected = F.linear(x, layer.weight.flatten(1), layer.bias)
    found = tokens.project(layer, x)
    assert torch.allclose(found, expected, atol=1e-5) and len(taken) == (capability == "AVX2")
    inputs = [x, *layer.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), inputs, create_graph=True) for y in (found, expected)]
    second = [torch.autograd.grad(sum(g.square().sum() for g in each), inputs) for each in gradients]
    for ours, plain in zip((*gradients[0], *second[0]), (*gradients[1], *second[1]), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-4)
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert torch.allclose(torch.autograd.grad(tokens.project(layer, x).sum(), x)[0], layer.weight.flatten(1).sum(0))
    layer.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert tokens.project(layer, x).dtype == torch.bfloat16 and len(taken) == (capability == "AVX2")


@pytest.mark.parametrize("factor", [3.0, 2.5])
def test_gradients_of_focused_attention(factor):
    q, k, v = (torch.randn(2, n, 12).double() for n in (5, 7, 7))
    scale = torch.rand(12).double() + 0.5
    inputs = [t.requires_grad_() for t in (q, k, v, scale)]
    assert torch.autograd.gradcheck(lambda *t: FocusedAttention.apply(*t, factor, 3), inputs, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_gradients_of_routed_attention(size):
    regions = Regions(*size, (2, 2), torch.device("cpu"))
    inputs = [torch.randn(2, *size, 8).double().requires_grad_() for _ in range(3)]

    def attend(*maps):
        q, k, v = (regions.order(t) for t in maps)
        routes = regions.route(q, k, 3)
        out, values = RoutedAttention.apply(torch.cat([q, k, v], dim=2), *routes, 2, 0.4)
        return regions.restore(out + values.square())

    assert torch.autograd.gradcheck(attend, inputs, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_regions_order_and_restore(size):
    """Region by region, row by row; what no pixel has is 0 and is not restored."""
    regions, pixels = Regions(*size, (2, 2), torch.device("cpu")), torch.rand(2, *size, 3) + 1
    ordered = regions.order(pixels)
    assert torch.equal(regions.restore(ordered), pixels)
    assert torch.equal(ordered[0], pixels[0, :2, :2].reshape(4, 3))
    assert torch.equal((ordered != 0).all(2), regions.real.repeat(2, 1))
    assert regions.ragged == (not regions.real.all())


def kept(module: nn.Module, x: torch.Tensor) -> int:
    """Count the bytes that autograd keeps between a forward and its backward, without parameters and input."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers(), x)}
    found = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), t)  # alive, so that no other gets its address
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    del y
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize(
    "build, shape, share",
    [
        (lambda: FocusedLinearAttention(256), (2, 256, 20, 20), 0.6),
        (lambda: BiLevelRoutingAttention_nchw(256, 8), (2, 256, 20, 20), 0.5),
        (lambda: BiLevelRoutingAttention_nchw(64, 2), (1, 64, 80, 80), 0.5),
    ],
)
def test_little_is_kept_for_the_backward(build, shape, share):
    module = build().train()
    x = torch.randn(shape, requires_grad=True)
    assert kept(module, x) <= share * kept(naive_formulas.naive_copy(module), x)


@pytest.mark.parametrize("layer", ["qkv_linear", "output_linear"])
def test_a_hooked_layer_is_called_as_a_module(layer):
    """Profilers count what their hooks see."""
    module, _, x = made("BRA")
    with torch.no_grad():
        plain, seen = module(x), []
        getattr(module, layer).register_forward_hook(lambda m, args, out: seen.append(out.numel()))
        torch.testing.assert_close(module(x), plain, atol=1e-5, rtol=1e-4)
    assert seen == [x.numel() * (3 if layer == "qkv_linear" else 1)]


def test_fused_emo_calls_hooked_layers(in_pieces):
    module = EMO.EMO_1M().eval()
    for m in list(module.modules()):
        getattr(m, "fuse", lambda: None)()
    x, seen = torch.rand(1, 3, 64, 64), []
    with torch.inference_mode():
        plain = module(x)
        module.stage1[0].v.conv.register_forward_hook(lambda *_: seen.append(1))
        for a, b in zip(module(x), plain):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert seen == [1]


@pytest.mark.parametrize("name", ["rtdetr-tiny-FLA", "rtdetr-tiny-Biformer", "rtdetr-tiny-EMO", "rtdetr-tiny-MQA"])
def test_a_model_is_its_naive_form(name):
    """What enters the decoder, in inference and with gradients."""
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).eval()
    formula, x, inputs = naive_formulas.naive_copy(model), torch.rand(2, 3, 96, 128), []
    for m, gradients in ((formula, False), (model, False), (model, True)):
        handle = m.model[-1].register_forward_pre_hook(lambda _, args: inputs.append([t.detach() for t in args[0]]))
        with contextlib.nullcontext() if gradients else torch.no_grad():
            m(x)
        handle.remove()
    for other in inputs[1:]:
        for a, b in zip(inputs[0], other):
            assert (a - b).abs().max() < 1e-4 * a.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_compiled_training_is_eager(name):
    """A compiler gets operations that it can see through, and their own backward."""
    torch._dynamo.reset()
    module, _, x = made(name)
    grads = []
    for m in (module, torch.compile(module, backend="aot_eager")):
        y = m(x)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
        module.zero_grad()
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_an_activation_that_a_user_puts_in_is_used(in_pieces):
    module, _, x = made("iRMB")
    for m in list(module.modules()):
        getattr(m, "fuse", lambda: None)()
    module.v.act = nn.ReLU()
    with torch.inference_mode():
        expected = module.proj(module.se(module.conv_local(F.relu(module.v.conv(x)))))
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_that_a_hook_has_seen_is_written_over(fused, stride):
    module = EMO.iRMB(24, 24, exp_ratio=3, stride=stride, attn_s=False, qkv_bias=True, se_ratio=1).eval()
    if fused:
        for m in list(module.modules()):
            getattr(m, "fuse", lambda: None)()
    x, seen = torch.randn(1, 24, 8, 8), []
    squeeze = {m for branch in module.se.branches() for m in branch}  # its ReLU is in place, as published
    for m in set(module.modules()) - squeeze:
        m.register_forward_hook(lambda m, args, out: seen.extend((t, t.clone()) for t in (*args, out)))
    with torch.inference_mode():
        module(x)
    assert len(seen) > 20 and all(torch.equal(t, as_seen) for t, as_seen in seen)


@pytest.mark.parametrize("name", CASES)
def test_traced_at_one_batch_size_runs_at_another(name):
    """As an export with `dynamic=True` does."""
    module, _, x = made(name)
    with torch.no_grad():
        traced = torch.jit.trace(module, x[:1], check_trace=False)
        torch.testing.assert_close(traced(x), module(x), atol=1e-5, rtol=1e-4)


SIZES = (1, 1), (2, 3), (6, 6), (7, 7), (9, 12), (14, 21), (13, 30), (28, 28)
MAPS = {
    "FLA": lambda: FocusedLinearAttention(32),
    "BRA": lambda: BiLevelRoutingAttention_nchw(32, 4),
    "BRA_by_channel": lambda: BiLevelRoutingAttention_nchw(32, 32),
    "MQA": lambda: MultiQueryAttentionLayerWithDownSampling(32, 2, 8, 12, 1, 1, 1),
    "MQA_SR": lambda: MultiQueryAttentionLayerWithDownSampling(32, 2, 8, 8, 1, 1, 2),
    "iRMB": lambda: EMO.iRMB(32, 32, exp_ratio=2, attn_s=True, qkv_bias=True, dim_head=8),
}


@pytest.mark.parametrize("traced_at", [(6, 6), (14, 21), (15, 8)])
@pytest.mark.parametrize("name", MAPS)
def test_traced_at_one_size_runs_at_any(name, traced_at, tmp_path):
    """In TorchScript and in ONNX, whatever windows, regions or reductions divide; a whole model may hide an error."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module = MAPS[name]().eval()
    for p in module.parameters():
        p.data.mul_(3)
    example, file, any_size = torch.rand(1, 32, *traced_at), tmp_path / "module.onnx", {0: "batch", 2: "h", 3: "w"}
    traced = torch.jit.trace(module, example, check_trace=False)
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": any_size, "y": any_size}}
    torch.onnx.export(module, (example,), file, dynamo=False, opset_version=17, **names)
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        x = torch.rand(2, 32, *size)
        with torch.no_grad():
            expected = module(x)
            torch.testing.assert_close(traced(x), expected, atol=5e-5, rtol=1e-4)
        (y,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["BRA", "FLA", "MQA"])
def test_traced_for_one_size_holds_no_arithmetic_of_sizes(name):
    """As an export without `dynamic=True` is, and its regions that divide need no mask."""
    module, x = MAPS[name]().eval(), torch.rand(1, 32, 14, 21)
    with torch.no_grad(), one_size():
        short = str(torch.jit.trace(module, x, check_trace=False).inlined_graph)
    with torch.no_grad():
        whole = str(torch.jit.trace(module, x, check_trace=False).inlined_graph)
    assert name != "BRA" or ("masked_fill" in whole and "masked_fill" not in short)
    assert short.count("aten::") <= whole.count("aten::")


def test_scores_of_multi_query_attention_are_in_parts_in_onnx(monkeypatch, tmp_path):
    """Else those of 25,600 queries and keys, 5 GiB at 640 pixels, would be in memory at once."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    monkeypatch.setattr(MQA, "SCORES", 2 * 36 * 36 // 3)
    module, file = MAPS["MQA"]().eval(), tmp_path / "module.onnx"
    torch.onnx.export(module, (torch.rand(1, 32, 6, 6),), file, dynamo=False, opset_version=17, input_names=["x"])
    model = onnx.load(file)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    scores = onnxruntime.InferenceSession(model.SerializeToString()).run(names, {"x": np.zeros((1, 32, 6, 6), "f")})
    assert [s.shape for s in scores] == [(1, 1, 18, 36)] * 4  # two heads of 36 queries, by 36 keys


def test_backward_hooks_of_projections_are_called():
    module, _, x = made("FLA")
    seen = []
    module.q.register_full_backward_hook(lambda *_: seen.append(1))
    module(x.requires_grad_()).sum().backward()
    assert seen == [1]


def test_gradients_in_autocast_are_those_without():
    """Sums over tokens leave the range of half precision in the backward as well."""
    q, k, v = (torch.randn(2, n, 12).requires_grad_() for n in (5, 7, 7))
    out, _ = FocusedAttention.apply(q, k, v, torch.rand(12) + 0.5, 3.0, 3)
    expected = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out.sum(), (q, k, v))
    for a, b in zip(found, expected):
        assert torch.equal(a, b)
