"""Each family against a naive form of its paper's equation, and against timm; precision and gradients."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention2d import MultiQueryAttention2d
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from _bench import naive_formulas
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw, HGBlock_Biformer
from ultralytics.nn.AddModules.EMO import EMO, EMO_1M, DropPath, iRMB
from ultralytics.nn.AddModules.FLA import FocusedLinearAttention, HGBlock_FLA
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling, ResNetLayer_MQA

MQA = MultiQueryAttentionLayerWithDownSampling
SIZES = [(7, 7), (1, 1), (3, 11), (20, 20), (13, 9), (15, 22), (28, 5)]


def randomise(module: nn.Module) -> nn.Module:
    """Give every tensor a value that the result depends on; double precision, eval mode."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.3)
    return module.double().eval()


def assert_same(module: nn.Module, formula, x: torch.Tensor) -> None:
    """Compare outputs and input gradients, and what the module gives where no gradient is asked for."""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = module(a), formula(module, b)
    with torch.no_grad():
        torch.testing.assert_close(module(a), theirs.detach(), atol=2e-5, rtol=2e-5)
    assert torch.equal(a, x)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
    weights = torch.randn_like(theirs)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


def full_fla(m: FocusedLinearAttention, x: torch.Tensor) -> torch.Tensor:
    """Head by head, with the (QK^T)V order and the attention matrix in full."""
    B, C, H, W = x.shape
    source, (h, w) = x, (H, W)
    if m.sr_ratio > 1:
        source = m.sr(x)
        h, w = source.shape[2:]
        source = F.layer_norm(source.movedim(1, -1), (C,), m.norm.weight, m.norm.bias).movedim(-1, 1)
    q = F.conv2d(x, m.q.weight[:, :, None, None], m.q.bias)
    k, v = F.conv2d(source, m.kv.weight[:, :, None, None], m.kv.bias).split(C, dim=1)

    def phi(t):
        t = (t.clamp(min=0) + 1e-6) / F.softplus(m.scale).view(1, C, 1, 1)
        p = t**m.focusing_factor
        return p * (t**2).sum(1, keepdim=True).sqrt() / (p**2).sum(1, keepdim=True).sqrt()

    d, out = C // m.num_heads, []
    for head in range(m.num_heads):
        part = slice(head * d, (head + 1) * d)
        Q, K, V = phi(q)[:, part].flatten(2), phi(k)[:, part].flatten(2), v[:, part].flatten(2)
        attention = torch.einsum("bdn,bdm->bnm", Q, K)
        O = torch.einsum("bnm,bdm->bdn", attention / (attention.sum(-1, keepdim=True) + 1e-6), V)  # noqa: E741
        grid = v[:, part]
        if (h, w) != (H, W):
            grid = F.interpolate(grid, (H, W), mode="bilinear")
        out.append(O.view(B, d, H, W) + m.dwc(grid))
    return F.conv2d(torch.cat(out, 1), m.proj.weight[:, :, None, None], m.proj.bias)


def pixelwise_bra(m: BiLevelRoutingAttention_nchw, x: torch.Tensor) -> torch.Tensor:
    """Pixel by pixel: a region is a list of real pixels, so that there is nothing to pad."""
    B, C, H, W = x.shape
    q, k, v = F.conv2d(x, m.qkv_linear.weight, m.qkv_linear.bias).split(C, dim=1)
    rh, rw = max(1, H // m.n_win), max(1, W // m.n_win)
    regions = {}
    for i in range(H):
        for j in range(W):
            regions.setdefault((i // rh, j // rw), []).append((i, j))
    regions = [tuple(zip(*pixels)) for pixels in regions.values()]
    out = torch.zeros_like(x)
    d = C // m.num_heads
    for b in range(B):
        mean = {n: torch.stack([t[b][:, r[0], r[1]].mean(1) for r in regions]) for n, t in (("q", q), ("k", k))}
        affinity = mean["q"] @ mean["k"].T
        for r, (ys, xs) in enumerate(regions):
            chosen = affinity[r].topk(min(m.topk, len(regions))).indices.tolist()
            ky = [y for c in chosen for y in regions[c][0]]
            kx = [x_ for c in chosen for x_ in regions[c][1]]
            for head in range(m.num_heads):
                part = slice(head * d, (head + 1) * d)
                Q, K, V = q[b, part][:, ys, xs], k[b, part][:, ky, kx], v[b, part][:, ky, kx]
                out[b, part, ys, xs] = V @ (m.scale * Q.T @ K).softmax(-1).T
    if m.lepe is not None:
        out = out + m.lepe(v)
    return F.conv2d(out, m.output_linear.weight, m.output_linear.bias)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, {"num_heads": 2, "focusing_factor": 2.5, "kernel_size": 3}], ids=str)
def test_fla(size, options):
    module = randomise(FocusedLinearAttention(16, **options))
    for formula in (full_fla, naive_formulas.fla):
        assert_same(module, formula, torch.randn(2, 16, *size).double())


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (2, 2)], ids=str)
def test_fla_reduces_keys_and_values(size):
    assert_same(randomise(FocusedLinearAttention(16, sr_ratio=2)), full_fla, torch.randn(2, 16, *size).double())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, {"num_heads": 4, "topk": 60}, {"n_win": 3, "side_dwconv": 0}], ids=str)
def test_bra(size, options):
    module = randomise(BiLevelRoutingAttention_nchw(8, **options))
    for formula in (pixelwise_bra, naive_formulas.bra):
        assert_same(module, formula, torch.randn(2, 8, *size).double())


def test_bra_returns_its_attention():
    """Rows of the matrix sum to one, padding has no weight, and the output is the one without it."""
    module = randomise(BiLevelRoutingAttention_nchw(8, num_heads=2))
    x = torch.randn(1, 8, 15, 22).double()
    out, attention = module(x, ret_attn_mask=True)
    torch.testing.assert_close(out, module(x))
    assert attention.shape == (1, 2, 8 * 8, 2 * 3, 4 * 2 * 3)
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    whole = module(torch.randn(1, 8, 14, 21).double(), ret_attn_mask=True)[1]
    assert (attention == 0).any() and (whole > 0).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kv, value_dim, key_dim", [(1, 8, 8), (2, 8, 8), (1, 5, 8), (2, 12, 8)])
def test_mqa(size, kv, value_dim, key_dim):
    module = randomise(MQA(16, 3, key_dim, value_dim, 1, 1, kv))
    assert_same(module, naive_formulas.mqa, torch.randn(2, 16, *size).double())


@pytest.mark.parametrize("strides, size", [((2, 2), (8, 12)), ((2, 1), (9, 7)), ((3, 2), (13, 9))], ids=str)
def test_mqa_query_strides(strides, size):
    assert_same(randomise(MQA(16, 2, 8, 8, *strides, 2)), naive_formulas.mqa, torch.randn(2, 16, *size).double())


@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(12, 8), (16, 16)], ids=str)
def test_mqa_is_timms(kv, stride, size):
    ours = randomise(MQA(16, 2, 8, 8, stride, stride, kv))
    theirs = MultiQueryAttention2d(16, 16, 2, 8, 8, query_strides=stride, kv_stride=kv).double().eval()
    state = ours.state_dict()
    names = {"_query_proj.0": "query.proj", "_query_downsampling_norm": "query.norm", "_output_proj.0": "output.proj"}
    for part in ("key", "value"):
        names |= {f"_{part}_dw_conv.{i}": f"{part}.{name}" for i, name in enumerate(("down_conv", "norm"))}
        names[f"_{part}_proj.0"] = f"{part}.proj"
    theirs.load_state_dict({names[k.rpartition(".")[0]] + "." + k.rpartition(".")[2]: v for k, v in state.items()})
    x = torch.randn(2, 16, *size).double()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_irmb(size):
    module = randomise(
        iRMB(16, 16, exp_ratio=2.0, norm_layer="ln_2d", dw_ks=5, se_ratio=1, dim_head=8, qkv_bias=True, attn_pre=True)
    )
    assert_same(module, naive_formulas.irmb, torch.randn(2, 16, *size).double())


FAMILIES = {
    "FLA": lambda: FocusedLinearAttention(64),
    "FLA_sr": lambda: FocusedLinearAttention(64, sr_ratio=2),
    "HGBlock_FLA": lambda: HGBlock_FLA(32, 16, 64, 5, 3, True, False),
    "BRA": lambda: BiLevelRoutingAttention_nchw(64, 2),
    "HGBlock_Biformer": lambda: HGBlock_Biformer(64, 16, 64, 5, 3, True, True),
    "iRMB": lambda: iRMB(32, 32, exp_ratio=2.0, norm_layer="ln_2d", dw_ks=5, se_ratio=1, dim_head=16, attn_pre=True),
    "MQA": lambda: MQA(64, 2, 48, 48, 1, 1, 1),
    "MQA_sr": lambda: MQA(64, 2, 48, 48, 2, 2, 2),
    "ResNetLayer_MQA": lambda: ResNetLayer_MQA(64, 16, 1, False, 2),
}
CHANNELS = {"HGBlock_FLA": 32, "iRMB": 32}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name):
    module = FAMILIES[name]().train()
    module(torch.randn(2, CHANNELS.get(name, 64), 12, 18)).square().mean().backward()
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []


def test_every_parameter_of_emo_gets_a_gradient_but_the_unused_classifier():
    module = EMO_1M(drop_path=0.0).train()
    sum(y.square().mean() for y in module(torch.randn(2, 3, 96, 64))).backward()
    without = {n for n, p in module.named_parameters() if p.grad is None}
    assert without == {"norm.norm.weight", "norm.norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", ["half", "autocast"])
def test_large_activations_stay_finite(name, dtype, mode):
    """Inputs of standard deviation 50, forward and backward; the focusing map cubes them."""
    module = FAMILIES[name]().train()
    x = 50 * torch.randn(2, CHANNELS.get(name, 64), 14, 10)
    if mode == "half":
        module, x = module.to(dtype), x.to(dtype)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=mode == "autocast"):
        y = module(x)
    assert y.isfinite().all()
    y.float().mean().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", ["FLA", "BRA", "MQA", "iRMB"])
def test_bf16_is_close_to_fp32(name):
    module = FAMILIES[name]().eval()
    if name == "BRA":
        module.topk = 1000  # all regions: rounding may choose others where affinities are close
    x = torch.randn(2, CHANNELS.get(name, 64), 14, 10)
    with torch.no_grad():
        exact = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = module(x)
    assert (rough.float() - exact).norm() < 0.03 * exact.norm()


def test_emo_widths_need_no_forward(monkeypatch):
    monkeypatch.setattr(EMO, "forward", None)
    assert EMO_1M().width_list == [32, 48, 80, 168]
    assert EMO_1M(embed_dims=(32, 48, 80, 84)).width_list == [32, 48, 80, 84]


def test_irmb_attends_to_the_expanded_input_without_attn_pre():
    """`v` first, head by head if asked to, then attention over one window of the whole map."""
    for v_group in (False, True):
        module = randomise(iRMB(16, 16, exp_ratio=2.0, dim_head=8, window_size=0, v_group=v_group))
        x = torch.randn(2, 16, 5, 9).double()
        q, k = module.qk(module.norm(x)).flatten(2).split(16, dim=1)
        v = module.v(module.norm(x)).flatten(2)
        parts = []
        for n in range(2):
            weights = (q[:, 8 * n : 8 * n + 8].transpose(1, 2) @ k[:, 8 * n : 8 * n + 8] * 8**-0.5).softmax(-1)
            parts.append(v[:, 16 * n : 16 * n + 16] @ weights.transpose(1, 2))
        y = torch.cat(parts, 1).view(2, 32, 5, 9)
        torch.testing.assert_close(module(x), x + module.proj(y + module.conv_local(y)))


def test_drop_path_grows_linearly_over_the_blocks_of_emo():
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in EMO_1M().modules() if isinstance(m, iRMB)][1:]
    assert rates == pytest.approx([0.04036 * i / 14 for i in range(15)])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3, 3)
    factors = drop(x).flatten(1)
    assert torch.equal(factors, factors[:, :1].expand_as(factors))
    assert factors.unique().tolist() == pytest.approx([0, 4 / 3])
    assert 0.95 < factors.mean() < 1.05
    assert drop.eval()(x) is x


def test_bra_scale():
    """dim ** -0.5 whatever the heads, or what is asked for."""
    assert BiLevelRoutingAttention_nchw(64, 4).scale == 64**-0.5
    assert_same(
        randomise(BiLevelRoutingAttention_nchw(8, 2, qk_scale=2.0)), pixelwise_bra, torch.randn(1, 8, 9, 9).double()
    )
    assert BiLevelRoutingAttention_nchw(8, 2, qk_scale=2.0).scale == 2.0


@pytest.mark.parametrize("factor, scale", [(3.0, 0.0), (3.0, 60.0), (4.0, 0.0), (6.0, 20.0)])
def test_fla_of_dead_tokens_is_finite(factor, scale):
    """Queries and keys that the ReLU zeroes are 1e-6 in every channel, whose powers leave the range of fp32."""
    module = FocusedLinearAttention(16, focusing_factor=factor)
    module.q.bias.data -= 1000
    module.kv.bias.data[:16] -= 1000
    module.scale.data += scale
    x = torch.randn(1, 16, 5, 7, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all() and module.scale.grad.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_meta_device_and_empty_batch(name):
    x = torch.randn(0, CHANNELS.get(name, 64), 15, 22)
    module = FAMILIES[name]().eval()
    assert module(x).shape[0] == 0
    assert module.to("meta")(torch.empty(2, *x.shape[1:], device="meta")).shape[0] == 2


@pytest.mark.parametrize("kv, value_dim", [(1, 48), (2, 48), (1, 32), (1, 64)])
@pytest.mark.parametrize("tutorial", [False, True])
def test_mqa_never_materialises_its_scores(kv, value_dim, tutorial):
    """The fused kernel alone is allowed, which refuses tensors that it cannot take, in training too."""
    if tutorial and value_dim != 48:
        pytest.skip("the published code ignores value_dim")
    module = MQA(64, 2, 48, value_dim, 1, 1, kv)
    if tutorial:
        module.head_dim = 24
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        module(torch.randn(2, 64, 20, 13)).sum().backward()


@pytest.mark.nightly
def test_memory_of_mqa_at_stride_4():
    """64 channels at 160 x 160 have 2 x 25,600 x 25,600 scores, 4.9 GiB; forward and backward take under 1 GiB."""
    code = """
import resource, torch
from ultralytics.nn.AddModules.MQA import MultiQueryAttentionLayerWithDownSampling
module = MultiQueryAttentionLayerWithDownSampling(64, 2, 48, 48, 1, 1, 1)
x = torch.randn(1, 64, 160, 160, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
module(x).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1  # GiB


@pytest.mark.parametrize("name", ["FLA", "BRA", "MQA", "iRMB"])
@pytest.mark.parametrize("size", [(7, 7), (3, 5)], ids=str)
def test_compiled_graph_is_eager(name, size):
    """The graph that every backend of torch.compile starts from; a single window of iRMB among the sizes."""
    torch._dynamo.reset()
    module = FAMILIES[name]().eval()
    x = torch.randn(1, CHANNELS.get(name, 64), *size)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, backend="aot_eager")(x), module(x))


def test_proj_drop():
    module = FocusedLinearAttention(16, proj_drop=0.5).train()
    zeros = (module(torch.randn(1, 16, 20, 20)) == 0).float().mean()
    assert 0.4 < zeros < 0.6


def test_dropout_is_of_attention_weights_and_only_in_training():
    module = MQA(16, 2, 8, 8, 1, 1, 1, dropout=0.5)
    x = torch.randn(1, 16, 6, 6)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: FocusedLinearAttention(60), "num_heads=8 does not divide dim=60"),
        (lambda: FocusedLinearAttention(64, kernel_size=4), "kernel_size=4 must be odd"),
        (lambda: FocusedLinearAttention(64, sr_ratio=4)(torch.zeros(1, 64, 3, 9)), "3 x 9 map is smaller"),
        (lambda: BiLevelRoutingAttention_nchw(64, 3), "num_heads=3 does not divide dim=64"),
        (lambda: BiLevelRoutingAttention_nchw(64, attn_backend="triton"), "attn_backend='triton' is unknown"),
        (lambda: BiLevelRoutingAttention_nchw(64, topk=0), "topk=0"),
        (lambda: MQA(16, 2, 8, 8, 1, 1, 0), "at least 1"),
        (lambda: MQA(16, 2, 8, 8, 4, 4, 1)(torch.zeros(1, 16, 3, 9)), "smaller than the query strides"),
        (lambda: FocusedLinearAttention(64, sr_ratio=0), "sr_ratio=0 must be at least 1"),
        (lambda: iRMB(64, 64, v_proj=False, exp_ratio=2), "exp_ratio=2 must be 1 without v_proj"),
        (lambda: iRMB(30, 30), "dim_head=64 does not divide dim_in=30"),
        (lambda: iRMB(64, 64, norm_layer="in_1d"), "norm_layer='in_1d' is unknown"),
        (lambda: EMO_1M(pretrained=True), "no pretrained EMO weights"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
