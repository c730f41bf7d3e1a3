"""The modules that people ask for most: against timm or a naive form of the equation; sizes, precision, rows."""

import io
import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from test_formulas import SIZES, assert_same, randomise
from timm.layers import EcaModule, SEModule
from timm.layers import GlobalContext as TimmGlobalContext
from timm.layers.coord_attn import CoordAttn
from timm.models.fasternet import MLPBlock
from torch import nn

from ultralytics.nn.AddModules import registry
from ultralytics.nn.AddModules.BiFPN import WeightedSum
from ultralytics.nn.AddModules.CoordinateAttention import CoordinateAttention
from ultralytics.nn.AddModules.DySample import DySample
from ultralytics.nn.AddModules.ECA import ECA
from ultralytics.nn.AddModules.EMA import EMA
from ultralytics.nn.AddModules.FasterNet import FasterNetBlock, PartialConv
from ultralytics.nn.AddModules.GlobalContext import GlobalContext
from ultralytics.nn.AddModules.LSKA import KERNELS, LSKA
from ultralytics.nn.AddModules.SE import SqueezeExcitation
from ultralytics.nn.AddModules.SimAM import SimAM
from ultralytics.nn.AddModules.TripletAttention import TripletAttention
from ultralytics.nn.tasks import parse_model

DIM = 16
SHELF = {
    "CoordinateAttention": lambda: CoordinateAttention(DIM),
    "DySample": lambda: DySample(DIM),
    "DySample, dynamic scope": lambda: DySample(DIM, 3, 2, True),
    "ECA": lambda: ECA(DIM),
    "EMA": lambda: EMA(DIM, 4),
    "FasterNetBlock": lambda: FasterNetBlock(DIM),
    "GlobalContext": lambda: GlobalContext(DIM),
    "LSKA": lambda: LSKA(DIM),
    "PartialConv": lambda: PartialConv(DIM),
    "SimAM": SimAM,
    "SqueezeExcitation": lambda: SqueezeExcitation(DIM),
    "TripletAttention": lambda: TripletAttention(3),
}


def timm_s(module: nn.Module) -> nn.Module:
    """Build what timm has for a module, with its weights, in the same order."""
    if isinstance(module, SqueezeExcitation):
        theirs = SEModule(DIM, rd_channels=module.fc1.out_channels)
    elif isinstance(module, ECA):
        theirs = EcaModule(DIM)
    elif isinstance(module, CoordinateAttention):
        theirs = CoordAttn(DIM, rd_channels=module.conv.out_channels, bias=True)
    elif isinstance(module, GlobalContext):
        theirs = TimmGlobalContext(DIM, fuse_add=True, fuse_scale=False, rd_channels=module.fc1.out_channels)
        theirs.mlp_add.norm.eps = module.norm.eps  # the paper's code has torch's
    else:
        theirs = MLPBlock(DIM, 4, 2.0, 0.0, 0.0)
    ours = list(module.state_dict().values())
    if isinstance(module, FasterNetBlock):  # whose partial convolution comes last there
        ours = [*ours[1:], ours[0]]
    names = list(theirs.state_dict())
    assert len(names) == len(ours)
    theirs.load_state_dict(dict(zip(names, (t.reshape(theirs.state_dict()[n].shape) for n, t in zip(names, ours)))))
    return theirs.double().eval()


@pytest.mark.parametrize("name", ["SqueezeExcitation", "ECA", "CoordinateAttention", "GlobalContext", "FasterNetBlock"])
@pytest.mark.parametrize("size", SIZES)
def test_timm_computes_the_same(name, size):
    torch.manual_seed(0)
    module = randomise(SHELF[name]())
    theirs = timm_s(module)
    assert_same(module, lambda _, x: theirs(x), torch.randn(2, DIM, *size).double())


def naive_simam(m, x):
    """Neuron by neuron: the energy is over the other ones."""
    out = torch.empty_like(x)
    n = max(1, x[0, 0].numel() - 1)
    for b, c in np.ndindex(*x.shape[:2]):
        d = (x[b, c] - x[b, c].mean()) ** 2
        out[b, c] = x[b, c] * torch.sigmoid(d / (4 * (d.sum() / n + m.e_lambda)) + 0.5)
    return out


def naive_ema(m, x):
    """Group by group."""
    groups = []
    for g in x.chunk(m.groups, dim=1):
        weight, bias = m.conv1x1.weight[:, :, 0, 0], m.conv1x1.bias
        h = torch.einsum("oc,bch->boh", weight, g.mean(3)) + bias[:, None]
        w = torch.einsum("oc,bcw->bow", weight, g.mean(2)) + bias[:, None]
        a = F.group_norm(g * h.sigmoid()[..., None] * w.sigmoid()[:, :, None], g.shape[1], m.gn.weight, m.gn.bias)
        b = F.conv2d(g, m.conv3x3.weight, m.conv3x3.bias, padding=1)
        share_a, share_b = a.mean((2, 3)).softmax(1), b.mean((2, 3)).softmax(1)
        gate = torch.einsum("bc,bchw->bhw", share_a, b) + torch.einsum("bc,bchw->bhw", share_b, a)
        groups.append(g * gate.sigmoid()[:, None])
    return torch.cat(groups, dim=1)


def naive_triplet(m, x):
    """By rotating the map, as the paper draws it."""

    def gated(gate, t):
        pooled = torch.cat([t.max(1, keepdim=True)[0], t.mean(1, keepdim=True)], dim=1)
        return t * gate.norm(gate.conv(pooled)).sigmoid()

    over_rows = gated(m.over_rows, x.permute(0, 2, 1, 3).transpose(2, 3)).transpose(2, 3).permute(0, 2, 1, 3)
    over_columns = gated(m.over_columns, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return (gated(m.over_channels, x) + over_rows + over_columns) / 3


def naive_lska(m, x):
    """One depth-wise convolution, of the product of the four kernels."""

    def stretch(conv, axis):
        weight, d = conv.weight, conv.dilation[axis - 2]
        if d == 1:
            return weight
        shape = list(weight.shape)
        shape[axis] = (shape[axis] - 1) * d + 1
        out = weight.new_zeros(shape)
        out[(slice(None),) * axis + (slice(None, None, d),)] = weight
        return out

    y = x
    for conv, axis in ((m.conv0h, 3), (m.conv0v, 2), (m.conv_spatial_h, 3), (m.conv_spatial_v, 2)):
        kernel = stretch(conv, axis)
        y = F.conv2d(y, kernel, conv.bias, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2), groups=x.shape[1])
    return x * F.conv2d(y, m.conv1.weight, m.conv1.bias)


def naive_dysample(m, x):
    """Position by position, by bilinear interpolation with the border repeated."""
    B, C, H, W = x.shape
    s, g = m.scale, m.groups
    reach = 0.25 if m.scope is None else 0.5 * F.conv2d(x, m.scope.weight).sigmoid()
    offset = (F.conv2d(x, m.offset.weight, m.offset.bias) * reach).view(B, 2, g, s, s, H, W)
    out = []
    for i in range(s * H):
        for j in range(s * W):
            a, b = i // s, j // s
            moved = offset[:, :, :, i % s, j % s, a, b]  # (B, 2, groups)
            column = (b + (j % s - (s - 1) / 2) / s + moved[:, 0]).clamp(0, W - 1)
            row = (a + (i % s - (s - 1) / 2) / s + moved[:, 1]).clamp(0, H - 1)
            r0, c0 = row.detach().floor().clamp(max=max(0, H - 2)), column.detach().floor().clamp(max=max(0, W - 2))
            fr, fc = (row - r0)[..., None], (column - c0)[..., None]
            parts = x.view(B, g, C // g, H, W)

            def at(r, c, parts=parts):
                index = (r.long().clamp(max=H - 1) * W + c.long().clamp(max=W - 1))[..., None, None]
                return parts.flatten(3).gather(3, index.expand(-1, -1, C // g, 1))[..., 0]

            top = at(r0, c0) * (1 - fc) + at(r0, c0 + 1) * fc
            bottom = at(r0 + 1, c0) * (1 - fc) + at(r0 + 1, c0 + 1) * fc
            out.append((top * (1 - fr) + bottom * fr).flatten(1))
    return torch.stack(out, dim=2).view(B, C, s * H, s * W)


def naive_partial(m, x):
    out = x.clone()
    out[:, : m.part] = F.conv2d(x[:, : m.part], m.partial_conv3.weight, padding=1)
    return out


NAIVE = {
    "SimAM": naive_simam,
    "EMA": naive_ema,
    "TripletAttention": naive_triplet,
    "LSKA": naive_lska,
    "PartialConv": naive_partial,
}


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("size", SIZES)
def test_equation(name, size):
    torch.manual_seed(0)
    assert_same(randomise(SHELF[name]()), NAIVE[name], torch.randn(2, DIM, *size).double())


@pytest.mark.parametrize("name", ["DySample", "DySample, dynamic scope"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 4)])
def test_sampled_positions(name, size):
    torch.manual_seed(0)
    m, x = randomise(SHELF[name]()), torch.randn(2, DIM, *size).double()
    torch.testing.assert_close(m(x), naive_dysample(m, x), atol=2e-5, rtol=2e-5)  # positions are fp32


def test_upsampling_begins_as_bilinear_interpolation():
    x = torch.rand(1, DIM, 5, 7)
    torch.manual_seed(0)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(DySample(DIM)(x), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", KERNELS)
def test_reach_of_large_kernels(size):
    """A value reaches as far as the kernel's size says, and no farther."""
    m = LSKA(1, size).double()
    for p in m.parameters():
        nn.init.ones_(p) if p.dim() > 1 else nn.init.zeros_(p)
    x = torch.ones(1, 1, 61, 61).double().requires_grad_()
    m(x)[0, 0, 30, 30].backward()
    reach = int((x.grad[0, 0].abs().sum(0) > 0).nonzero().max()) - 30
    near, far, dilation = KERNELS[size]
    assert reach == near // 2 + dilation * (far // 2) and abs(2 * reach + 1 - size) <= 2 * dilation


def test_weighted_sum():
    m = WeightedSum([4, 4, 4])
    with torch.no_grad():
        m.weight.copy_(torch.tensor([2.0, -1.0, 1.0]))
    maps = [torch.rand(1, 4, 3, 3) for _ in range(3)]
    torch.testing.assert_close(m(maps), (2 * maps[0] + maps[2]) / 3.0001)
    with pytest.raises(ValueError, match="4, 8 channels"):
        WeightedSum([4, 8])


@pytest.mark.parametrize("name", SHELF)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(name, kind):
    """Also for values whose squares overflow in fp16; close to what fp32 gives."""
    torch.manual_seed(0)
    module = SHELF[name]().eval()
    x = torch.randn(2, DIM, 9, 6)
    with torch.no_grad():
        expected = module(x)
        found = module.to(kind)(x.to(kind))
        assert found.dtype == kind and torch.isfinite(module((x * 100).to(kind))).all()
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", sorted(SHELF.keys() - {"SimAM"}))  # which has none
def test_every_parameter_learns(name):
    module = SHELF[name]().train()
    if isinstance(module, GlobalContext):
        nn.init.normal_(module.fc2.weight)  # which begins at 0, so that those before it would wait a step
    if getattr(module, "scope", None) is not None:
        nn.init.normal_(module.scope.weight)
    module(torch.randn(2, DIM, 8, 8)).square().mean().backward()
    gradients = {key: p.grad for key, p in module.named_parameters() if key != "conv_attn.bias"}
    # The bias of GlobalContext's scores moves all of them alike, which a softmax does not see: only rounding moves it
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("name", SHELF)
def test_export(name):
    """ONNX Runtime finds the same, fused."""
    torch.manual_seed(0)
    module = randomise(SHELF[name]()).float()
    x = torch.randn(1, DIM, 8, 12)
    with torch.no_grad():
        expected = module(x)
        if hasattr(module, "fuse"):
            module.fuse()
        torch.testing.assert_close(module(x), expected, atol=1e-4, rtol=1e-4)
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-3)


def test_rows():
    """Each is a row with its channels, and a weighted sum takes the place of Concat."""
    names = (
        "SqueezeExcitation ECA CoordinateAttention SimAM EMA TripletAttention LSKA CBAM GlobalContext FasterNetBlock"
    )
    rows = [[-1, 1, "Conv", [16, 3, 2]], *([-1, 1, name, []] for name in names.split())]
    rows += [[-1, 1, "DySample", []], [0, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, -2], 1, "WeightedSum", []]]
    model, _ = parse_model({"nc": 1, "backbone": rows, "head": [[[13], 1, "Detect", ["nc"]]]}, 3, verbose=False)
    x, out = torch.rand(1, 3, 32, 32), []
    for m in list(model)[:-1]:
        f = m.f if isinstance(m.f, list) else [m.f]
        found = [x if j == -1 and not out else out[j] for j in f]
        out.append(m(found if isinstance(m.f, list) else found[0]))
    assert out[-1].shape == (1, 16, 32, 32) and all(math.isfinite(o.sum()) for o in out)


def test_a_user_s_class_takes_the_name(monkeypatch):
    """A file of one's own with a `SimAM` works, whichever is imported first."""
    monkeypatch.setattr(registry, "NAMES", dict(registry.NAMES))
    monkeypatch.setattr(registry, "READERS", dict(registry.READERS))

    def mine():
        cls = type("SimAM", (nn.Module,), {"__module__": "ultralytics.nn.AddModules.MyFile"})
        return registry.register(registry.keeps_channels)(cls)

    cls = mine()
    assert registry.NAMES["SimAM"] is cls
    ours = registry.register(registry.keeps_channels, yields=True)(SimAM)
    assert ours is SimAM and registry.NAMES["SimAM"] is cls
    with pytest.raises(ValueError, match="the name SimAM is taken"):
        other = type("SimAM", (nn.Module,), {"__module__": "ultralytics.nn.AddModules.Another"})
        registry.register(registry.keeps_channels)(other)


@pytest.mark.parametrize(
    "build, line",
    [
        (lambda: EMA(10, 4), "factor=4 does not divide dim=10"),
        (lambda: DySample(10, groups=4), "groups=4 does not divide dim=10"),
        (lambda: LSKA(8, 9), "k_size=9; choose one of 7, 11"),
    ],
)
def test_refusals(build, line):
    with pytest.raises(ValueError, match=line):
        build()
