"""Maps of focused attention and of bi-level routing show what the modules attend to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from explained_models import blobs, look_at, models  # noqa: F401 - a fixture
from torch import nn

from _explain import focusing, network, routing
from _explain.image_view import load_view
from ultralytics import YOLO
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw
from ultralytics.nn.AddModules.FLA import FocusedLinearAttention


@pytest.mark.parametrize("sr_ratio, size", [(1, (7, 5)), (2, (9, 6)), (3, (10, 11))])
def test_rows_of_focused_attention_are_what_the_module_attends_with(sr_ratio, size):
    """Times the module's values they are its attention; without the convolution of values, its output."""
    m = FocusedLinearAttention(32, num_heads=4, sr_ratio=sr_ratio).eval()
    for p in m.parameters():
        p.data.add_(torch.randn_like(p) * 0.3)
    for p in m.dwc.parameters():
        p.data.zero_()
    net, x = nn.Sequential(m), torch.randn(1, 32, *size)
    with torch.no_grad(), focusing.record_attention(net) as calls:
        out = net(x)
    call, h, w = calls["0"], *(side // sr_ratio for side in size)
    positions = range(size[0] * size[1])
    shares = torch.stack(
        [focusing.attention_rows(call, m, i, m.focusing_factor) for i in positions], dim=1
    )  # (heads, N, M)
    assert shares.shape == (4, len(positions), h * w)
    sums = shares.sum(dim=-1)  # less than 1 where the ReLU leaves little of a query
    assert sums.min() >= 0 and sums.max() < 1 + 1e-4 and sums.median() > 0.999
    attended = (shares @ call.v[0]).transpose(0, 1).flatten(1)[None]  # (1, N, C)
    torch.testing.assert_close(attended, call.attended, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(m.proj(attended), out.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    view = look_at(blobs(*(32 * side for side in size)))
    found = focusing.focus_at_query(call, m, "m", view, (32 * 1 + 5, 32 * 6 + 30))
    assert (found.position, found.keys) == ((6, 1), (h, w))
    expected = shares[:, 6 * size[1] + 1].mean(dim=0).view(h, w).numpy()
    np.testing.assert_allclose(found.after[: sr_ratio * h : sr_ratio, : sr_ratio * w : sr_ratio], expected, atol=1e-6)
    plain = torch.stack([focusing.attention_rows(call, m, i, 1.0) for i in positions], dim=1)
    # Before focusing it is attention with a ReLU for a kernel
    q, k = ((F.relu(t[0]) + 1e-6) / F.softplus(m.scale[0]) for t in (call.q, call.k))
    q, k = (t.unflatten(1, (4, 8)).transpose(0, 1) for t in (q, k))
    scores = q @ k.transpose(1, 2)
    torch.testing.assert_close(plain, scores / (scores.sum(-1, keepdim=True) + 1e-6), atol=1e-5, rtol=1e-4)
    assert focusing.effective_positions(shares.flatten(0, 1)) < focusing.effective_positions(plain.flatten(0, 1))


def test_effective_number_of_positions():
    shares = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert focusing.effective_positions(shares) == pytest.approx((4 + 1 + 2) / 3)
    shares[0] = 0  # a head that attends to nothing
    assert focusing.effective_positions(shares) == pytest.approx((1 + 2) / 2)


def test_a_reduced_grid_lies_over_the_map_that_it_was_made_of():
    found = focusing.expand_to_map(np.array([[1.0, 2.0]]), 2, (3, 5))
    expected = [[1, 1, 2, 2, np.nan], [1, 1, 2, 2, np.nan], [np.nan] * 5]
    np.testing.assert_array_equal(found, expected)


def test_focusing_of_a_model(models):
    """The query's position is where it lies in the module's map, and the maps are whole."""
    (found,) = focusing.focusing(models["rtdetr-tiny-FLA"], blobs(60, 90), query=(89, 0), imgsz=(96, 160))
    assert found.label == "row 5 HGBlock_FLA (model.5.cv)"
    assert (found.keys, found.position) == ((6, 10), (0, 9))
    assert found.before.sum() == pytest.approx(1, abs=0.01) and found.after.sum() == pytest.approx(1, abs=0.01)
    assert 1 <= found.effective_after < found.effective_before <= 60


@pytest.mark.parametrize("size", [(12, 10), (13, 8)])
def test_routed_regions_are_those_that_the_module_attends_to(size):
    """What moves a region's pixels and keeps their mean changes no routing: it shows who attends to the region."""
    m = BiLevelRoutingAttention_nchw(32, num_heads=2, n_win=4, topk=3, side_dwconv=0).eval()
    m.qkv_linear.weight.data.mul_(4)
    net, x = nn.Sequential(m), torch.randn(1, 32, *size)
    with torch.no_grad(), routing.record_routing(net) as calls:
        out = net(x)
    call, view = calls["0"], look_at(blobs(*(32 * side for side in size)))
    for query in ((0, 0), (size[1] * 32 - 1, size[0] * 32 - 1), (130, 200)):
        found = routing.routing_at_query(call, m, "m", view, query)
        assert found.position == tuple(int(t // 32) for t in reversed(query)) and len(set(found.chosen)) == 3
        (left, top), (right, bottom) = found.box(found.home)
        row, column = found.position
        assert top <= row < bottom and left <= column < right
        (i, j), (rows, columns), moved = found.region, found.grid, set()
        for region in set(range(rows * columns)) - {found.home}:
            (left, top), (right, bottom) = found.box(region)
            noise = torch.randn(1, 32, bottom - top, right - left)
            changed = x.clone()
            changed[:, :, top:bottom, left:right] += noise - noise.mean((2, 3), keepdim=True)
            with torch.no_grad():
                if (net(changed) - out)[0, :, row, column].abs().max() > 1e-5:
                    moved.add(region)
        assert moved == set(found.chosen) - {found.home}
        best = np.argsort(-found.affinity.flatten(), kind="stable")[:3]
        assert list(best) == found.chosen
        with torch.no_grad():
            _, weights = m(x, ret_attn_mask=True)  # (1, heads, R, L, topk * L)
        place = row % i * j + column % j
        theirs = weights[0, :, found.home, place].mean(0)
        assert np.nansum(found.attention) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(np.nanmax(found.attention), theirs.max(), atol=1e-6)
        assert np.isfinite(found.attention).sum() == int((theirs > 0).sum())


def test_each_module_of_a_model_has_its_routing(tmp_path):
    """In a wrapper block, and in a row that is repeated."""
    text = (ROOT / "cfg_custom" / "models" / "rtdetr-tiny-Biformer.yaml").read_text()
    row = "[-1, 3, HGBlock, [64, 192, 5, True, False]]"
    assert row in text
    file = tmp_path / "rtdetr-two.yaml"
    file.write_text(text.replace(row, "[-1, 2, BiLevelRoutingAttention_nchw, [128, 4, 2]]"))
    model = YOLO(file)
    found = routing.routing(model, blobs(64, 64), query=(5, 60), imgsz=128)
    assert [one.label for one in found] == [
        "row 5 HGBlock_Biformer (model.5.cv)",
        "row 7 BiLevelRoutingAttention_nchw (model.7.0)",
        "row 7 BiLevelRoutingAttention_nchw (model.7.1)",
    ]
    assert [(one.grid, one.region, len(one.chosen)) for one in found[1:]] == [((2, 2), (2, 2), 4)] * 2
    assert [one.home for one in found] == [56, 2, 2]
    opened = network.open_model(model, 128)
    figure = routing.draw_routing(found, load_view(blobs(64, 64), opened), opened)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 9 and "4 of 64 regions (8 x 8), of 1 x 1 positions" in titles[0]
