"""Explanations: maps are compared with upstream's, the module's own, or theory; the command line, and its errors."""

import copy
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, lively
from PIL import Image, ImageColor
from torch import nn

import explain
from _explain import click_query, drawing, focusing, layer_cam, network, receptive_field, routing
from _explain.detections import allowed_classes, strongest_detections
from _explain.image_view import Frame, load_view
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.models.rtdetr.predict import RTDETRPredictor
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw, Regions
from ultralytics.nn.AddModules.FLA import FocusedLinearAttention

FILES = {"rtdetr-tiny-FLA": ["cam", "focusing"], "rtdetr-tiny-Biformer": ["cam", "routing"]}


def blobs(height: int, width: int) -> np.ndarray:
    """Draw an image of a few soft spots of different colours: (height, width, 3) bytes."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 40.0)
    for _ in range(5):
        centre, colour = random.random(2) * (height, width), random.random(3) * 215
        far = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        image = np.maximum(image, np.exp(-far / (2 * (min(height, width) / 8) ** 2))[..., None] * colour)
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """An image file that is not square."""
    file = tmp_path_factory.mktemp("images") / "spots.png"
    cv2.imwrite(str(file), blobs(60, 90))
    return file


@pytest.fixture(scope="module")
def models() -> dict[str, YOLO]:
    """Tiny models whose layers are not those of a fresh one."""
    return {name: lively(name) for name in TINY}


def evidence_of_upstream(model: YOLO, image: np.ndarray, folder: Path, monkeypatch, **kwargs) -> np.ndarray:
    """Give the map that upstream's `visualize=True` colours: (H, W) bytes."""
    found, colour = [], cv2.applyColorMap
    monkeypatch.setattr(cv2, "applyColorMap", lambda c, *args: found.append(c.copy()) or colour(c, *args))
    model.predict(image, visualize=True, imgsz=len(image), project=str(folder), verbose=False, **kwargs)
    return found[0]


@pytest.mark.parametrize("name", TINY)
def test_cam_is_upstreams(name, models, monkeypatch, tmp_path):
    """Of the decoder's inputs, for several detections; upstream's is of a fused copy, rounded to bytes."""
    image = blobs(96, 96)
    theirs = evidence_of_upstream(models[name], image, tmp_path, monkeypatch, conf=0.001)
    ours = layer_cam.layer_cam(models[name], image, conf=0.001, imgsz=96)
    assert len(ours.detections.scores) == layer_cam.TOP < ours.detections.above
    assert theirs.std() > 10
    assert np.abs(ours.together * 255 - theirs).max() <= 2
    assert np.array_equal(ours.together, np.max([layer.heat for layer in ours.layers], axis=0))


@pytest.mark.parametrize("chosen", [{"conf": 1.0}, {"conf": 0.001, "classes": [2]}])
def test_cam_is_upstreams_for_a_single_query_and_for_a_class(chosen, models, monkeypatch, tmp_path):
    image, model = blobs(96, 96), models["rtdetr-tiny"]
    theirs = evidence_of_upstream(model, image, tmp_path, monkeypatch, **chosen)
    ours = layer_cam.layer_cam(model, image, imgsz=96, **chosen)
    assert np.abs(ours.together * 255 - theirs).max() <= 2
    if "classes" in chosen:
        assert set(ours.detections.classes) == {2}
        assert not np.allclose(
            ours.together, layer_cam.layer_cam(model, image, conf=0.001, imgsz=96).together, atol=0.01
        )
    else:
        assert (len(ours.detections.scores), ours.detections.above) == (1, 0)


@pytest.mark.parametrize("name, row", [("rtdetr-tiny-EMO", 0), ("rtdetr-tiny-FLA", 3), ("rtdetr-tiny-MQA", 1)])
def test_cam_of_other_layers_is_the_gradient_from_the_image(name, row, models):
    """The graph that begins at the first layer that is asked for gives what one that begins at the image gives."""
    image, model = blobs(64, 64), lively(name)
    ours = layer_cam.layer_cam(model, image, layers=[row], conf=1.0, imgsz=64)
    net, maps = model.model.eval(), []
    net.model[row].register_forward_hook(lambda m, x, y: maps.extend(y if isinstance(y, list) else [y]))
    x = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    _, (_, logits, *_) = net(x.repeat(2, 1, 1, 1).requires_grad_())  # two: see test_gradients_are_differences
    grads = [grad[:1] for grad in torch.autograd.grad(logits[-1, 0].max(), maps)]
    maps = [m[:1] for m in maps]
    assert len(ours.layers) == len(maps) == (4 if row == 0 else 1)
    for layer, m, grad in zip(ours.layers, maps, grads):
        expected = (grad.clamp(min=0) * m).sum(1, keepdim=True).clamp(min=0)
        expected = F.interpolate(expected, 64, mode="bilinear")[0, 0].detach()
        assert expected.max() > 0
        np.testing.assert_allclose(layer.heat, expected / expected.max(), atol=1e-3)
    assert [layer.stride for layer in ours.layers] == [round(64 / m.shape[2]) for m in maps]


@pytest.mark.parametrize("name", TINY)
def test_the_default_layers_are_the_tensors_that_the_decoder_gets(name, models):
    net = models[name].model
    wanted, inputs = network.choose_sources(net), []
    handle = net.model[-1].register_forward_pre_hook(lambda m, args: inputs.extend(args[0]))
    with network.prepare_gradients(net), network.record_maps(net, wanted) as maps:
        network.run_detection(net, torch.rand(1, 3, 64, 96))
    handle.remove()
    assert len(inputs) == 3 and all(ours is theirs for ours, theirs in zip(maps, inputs))
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (4, 6), (2, 3)]


def test_rows_of_a_multi_output_backbone(models):
    """Rows count as in the summary; the index that later rows name is another one, and each map has it."""
    net = models["rtdetr-tiny-EMO"].model
    found = network.choose_sources(net)
    assert [(s.row, s.layer, s.module) for s in found] == [(12, 16, "RepC3"), (15, 19, "RepC3"), (18, 22, "RepC3")]
    assert found[0].label == "row 12 RepC3 (layer 16)"
    backbone = network.choose_sources(net, [0])
    assert [(s.layer, s.output) for s in backbone] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    wanted = [*backbone, *network.choose_sources(net, [5, 10])]  # the projections of P4 and P3
    projected = []
    handles = [net.model[i].register_forward_pre_hook(lambda m, x: projected.append(x[0])) for i in (5, 10)]
    with network.prepare_gradients(net), network.record_maps(net, wanted) as maps:
        network.run_detection(net, torch.rand(1, 3, 64, 64))
    [handle.remove() for handle in handles]
    assert [m.shape[2] for m in maps[:4]] == [16, 8, 4, 2]
    assert projected[0] is maps[2] and projected[1] is maps[1]
    assert network.choose_sources(models["rtdetr-tiny"].model, [3])[0].label == "row 3 HGBlock"


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


def look_at(image: np.ndarray):
    """Give an image's view in an input of its own size."""
    return load_view(image, network.OpenedModel(nn.Linear(1, 1), "none", image.shape[:2], True))


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


def test_receptive_field_of_plain_convolutions_is_the_theoretical_one():
    """In which all weights are positive, so that each pixel that can count does."""
    layers = [(3, 1, 1), (5, 2, 1), (3, 1, 2), (3, 2, 1)]  # kernel, stride, dilation
    net = nn.Sequential(*(nn.Conv2d(2, 2, k, s, padding=d * (k // 2), dilation=d) for k, s, d in layers))
    for p in net.parameters():
        p.data.uniform_(0.1, 1)
    x = torch.rand(1, 2, 64, 48, requires_grad=True)
    m = net(x)
    gradient = receptive_field.gradient_of_middle(m, x)
    side, first, step = 1, 0, 1
    for k, s, d in layers:
        first -= step * d * (k // 2)
        side += (k - 1) * d * step
        step *= s
    for axis, middle in ((1, m.shape[2] // 2), (0, m.shape[3] // 2)):
        where = np.flatnonzero(gradient.sum(axis=axis))
        assert (where[0], where[-1]) == (middle * step + first, middle * step + first + side - 1)
    assert (gradient > 0).sum() == side**2


def test_squares_hold_their_shares():
    """Counted by hand: of 11 x 11 equal pixels, 9 x 9 hold more than half, and 7 x 7 less."""
    gradient = np.zeros((31, 41))
    gradient[10:21, 15:26] = 1
    assert receptive_field.square_sides(gradient, (20.5, 15.5), (0.5, 0.95, 1)) == (9, 11, 11)
    assert receptive_field.square_sides(gradient, (20.0, 15.5), (1,)) == (12,)
    assert (
        receptive_field.median_position(gradient.sum(axis=0)),
        receptive_field.median_position(gradient.sum(axis=1)),
    ) == (20.5, 15.5)
    gradient = np.zeros((8, 8))
    assert receptive_field.median_position(gradient[0]) == 4
    gradient[4, 4] = 1
    assert receptive_field.median_position(gradient[4]) == 4.5
    assert receptive_field.median_position(np.array([1.0, 1, 0, 0, 1, 1])) in (2, 4)
    assert receptive_field.square_sides(gradient, (4, 4)) == (2, 2)
    assert np.isnan(receptive_field.square_sides(np.zeros((4, 4)), (2, 2))).all()


def test_receptive_fields_grow_and_are_means(models):
    """Of the inputs, of which one image gives four."""
    model, image = models["rtdetr-tiny"], blobs(64, 96)
    found = receptive_field.receptive_fields(model, [image], layers=[0, 1, 3], imgsz=(64, 96))
    assert [one.inputs for one in found] == [4] * 3 and found[0].gradient.shape == (64, 96)
    assert found[0].sides[1] < found[1].sides[1] < found[2].sides[1] <= 96
    assert [one.position for one in found] == [(50.0, 34.0), (50.0, 34.0), (52.0, 36.0)]
    assert all(np.abs(np.subtract(one.position, one.centre)).max() <= one.stride for one in found)
    alone = [receptive_field.receptive_fields(model, [i] * 4, [3], (64, 96))[0] for i in (image, image[:, ::-1].copy())]
    both = receptive_field.receptive_fields(model, [image, image[:, ::-1].copy()] * 2, [3], (64, 96))[0]
    np.testing.assert_allclose(both.gradient, (alone[0].gradient + alone[1].gradient) / 2, rtol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_gradients_are_differences(name):
    """Of one image: torch's batch norm on a CPU has a wrong one where a gradient lies in memory as tokens do."""
    net, x = lively(name).model.double(), torch.rand(1, 3, 64, 64).double()
    wanted = network.choose_sources(net)
    with network.prepare_gradients(net):

        def middles(x: torch.Tensor) -> torch.Tensor:
            """The sums whose gradients are receptive fields."""
            with network.record_maps(net, wanted) as maps:
                network.run_detection(net, x)
            inputs[:] = maps
            return torch.stack([m[0, :, m.shape[2] // 2, m.shape[3] // 2].sum() for m in maps])

        def score(maps: list[torch.Tensor]) -> torch.Tensor:
            """What the head scores a query of these maps with."""
            return net.model[-1](maps)[1][1][-1, 0].flatten()[:1]

        inputs: list[torch.Tensor] = []
        middles(x)
        maps = [m.detach() for m in inputs]
        for function, points, step in ((score, maps, 1e-5), (lambda points: middles(*points), [x], 2e-3)):
            values = function([p.requires_grad_() for p in points])
            for i, value in enumerate(values):
                grads = torch.autograd.grad(value, points, retain_graph=i + 1 < len(values))
                steepness = sum((g**2).sum() for g in grads).sqrt()  # what a step along the gradient must change
                ends = [[(p + t * g / steepness).detach() for p, g in zip(points, grads)] for t in (-step, step)]
                before, after = (float(function(end)[i].detach()) for end in ends)
                assert steepness > 0 and (after - before) / (2 * step) == pytest.approx(
                    float(steepness), rel=0.02, abs=5e-7
                )


LETTERBOXES = {"stretched": True, "padded": False}


@pytest.mark.parametrize("stretch", LETTERBOXES.values(), ids=LETTERBOXES)
@pytest.mark.parametrize("shape, size", [((60, 120), (96, 96)), ((300, 90), (64, 160)), ((50, 70), (160, 96))])
def test_an_activation_lands_where_it_belongs(shape, size, stretch):
    """Of an image that is not square, whether a predictor stretches or pads it."""
    frame = Frame(shape, LetterBox(size, scale_fill=stretch))
    assert frame.size == size
    grid = tuple(side // 8 for side in size)
    for x, y in [(3.5, 2.5), (shape[1] - 4.0, shape[0] - 3.0), (shape[1] / 3, shape[0] / 2)]:
        row, column = frame.position((x, y), grid)
        values = np.zeros(grid)
        values[row, column] = 1
        for smooth in (False, True):
            heat = frame.on_image(values, smooth)
            assert heat.shape == shape
            found = np.argwhere(heat == heat.max()).mean(axis=0)[::-1] + 0.5
            cell = 8 / frame.scale
            assert (np.abs(found - (x, y)) <= cell).all()
        (left, top), (right, bottom) = frame.corners(grid, [[column, row], [column + 1, row + 1]])
        assert left <= x <= right and top <= y <= bottom
        np.testing.assert_allclose(frame.to_image(frame.to_input((x, y))), (x, y))


@pytest.mark.parametrize("stretch", LETTERBOXES.values(), ids=LETTERBOXES)
def test_what_a_network_sees_is_shown_over_the_same_pixels(stretch, models, monkeypatch):
    """The input itself, laid over the image, is the image: nothing is shifted, and padding is cut away."""
    monkeypatch.setattr(RTDETRPredictor, "scale_fill", stretch)
    image = blobs(60, 120)
    view = load_view(image, network.open_model(models["rtdetr-tiny"], (96, 160)))
    assert view.x.shape == (1, 3, 96, 160)
    assert bool((view.x == 114 / 255).all(dim=1).any()) is not stretch
    shown = view.frame.on_image(view.x[0].mean(dim=0).numpy())
    assert np.abs(shown * 255 - image.mean(axis=2)).max() < 4


def test_detections_are_those_of_predict(models):
    """Boxes on an image that is not square, scores and classes."""
    model, image = models["rtdetr-tiny-FLA"], blobs(60, 120)
    result = model.predict(image, imgsz=96, conf=0.001, verbose=False)[0].boxes
    opened = network.open_model(model, 96)
    view = load_view(image, opened)
    with network.prepare_gradients(opened.net), torch.no_grad():
        found = strongest_detections(
            *network.run_detection(opened.net, view.x), view.frame, 0.001, allowed_classes(opened, None), 5
        )
    x1, y1, x2, y2 = result.xyxy[0].clamp(min=0).tolist()
    np.testing.assert_allclose(found.boxes[0], (x1, y1, min(x2, 120), min(y2, 60)), atol=0.05)
    assert found.scores[0] == pytest.approx(float(result.conf[0]), abs=1e-4)
    assert found.classes[0] == int(result.cls[0])


@pytest.mark.parametrize("name", TINY)
def test_models_are_left_as_they_were(name, models):
    """Modes, what needs gradients, hooks, the head's anchors, weights; also where it ends with an error."""
    model = lively(name)
    net, image = model.model, blobs(48, 64)
    net.train()
    net.model[1].eval()
    next(net.model[2].parameters()).requires_grad_(False)
    head = net.model[-1]
    head.shapes, head.anchors = [[1, 2]], torch.zeros(3)
    anchors, state = head.anchors, copy.deepcopy(net.state_dict())

    def seen() -> tuple:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
        modes = [m.training for m in net.modules()]
        needed = [p.requires_grad for p in net.parameters()]
        extra = [name for m in net.modules() for name in vars(m) if name == "_attend"]
        return hooks, modes, needed, extra, head.shapes, "valid_mask" in vars(head), Regions.route

    before = seen()
    for explanation in (layer_cam.layer_cam, routing.routing, focusing.focusing):
        explanation(model, image, imgsz=64)
    receptive_field.receptive_fields(model, [image], imgsz=64)
    bias = net.model[-1].dec_score_head[-1].bias.data
    right = bias.clone()
    bias[:] = float("nan")
    for explanation in (layer_cam.layer_cam, routing.routing, focusing.focusing):
        with pytest.raises(ValueError, match="not finite"):
            explanation(model, image, imgsz=64)
    bias.copy_(right)
    assert seen() == before and head.anchors is anchors
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values()))


def test_fused_models_and_callers_without_gradients(models):
    """The same map, to rounding, of a fused network; under inference mode; after a prediction."""
    model, image = lively("rtdetr-tiny-Biformer"), blobs(64, 64)
    plain = layer_cam.layer_cam(model, image, layers=[0, 19], conf=0.001, imgsz=64)
    with torch.inference_mode():
        model.model.eval()(torch.rand(1, 3, 64, 64))  # its anchors are of inference mode
        again = layer_cam.layer_cam(model, image, layers=[0, 19], conf=0.001, imgsz=64)
        assert receptive_field.receptive_fields(model, [image], [1], 64)[0].gradient.sum() > 0
    np.testing.assert_array_equal(again.together, plain.together)
    model.model.fuse(verbose=False)
    fused = layer_cam.layer_cam(model.model, image, layers=[0, 19], conf=0.001, imgsz=64)
    np.testing.assert_allclose(fused.together, plain.together, atol=0.02)
    assert routing.routing(model.model, image, imgsz=64)[0].grid == (4, 4)


def run(monkeypatch, *argv: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["explain.py", *map(str, argv)])
    return explain.main()


def check_picture(file: Path) -> None:
    """A PNG that a desktop shows whole, with something on it."""
    with Image.open(file) as image:
        assert image.format == "PNG" and 500 <= image.width <= 4000 and 300 <= image.height <= 6000
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 20 and len(np.unique(pixels)) > 50


@pytest.mark.parametrize("name", TINY)
def test_every_model_from_its_yaml(name, monkeypatch, capsys, tmp_path, picture):
    assert run(monkeypatch, f"{name}.yaml", picture, "--imgsz=64", f"--out={tmp_path / 'out'}") == 0
    out, err = capsys.readouterr()
    kinds = FILES.get(name, ["cam"])
    expected = [*(f"spots-{kind}.png" for kind in kinds), f"{name}-field.png", "contact.png"]
    assert out.splitlines() == [str(tmp_path / "out" / file) for file in expected]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(expected)
    for file in (tmp_path / "out").iterdir():
        check_picture(file)
    assert [line for line in err.splitlines() if line.startswith("warning")] == [
        f"warning: {name}.yaml has no weights yet: the pictures show an untrained model"
    ]


def test_a_checkpoint_two_images_of_a_stem_and_the_default_folder(monkeypatch, capsys, tmp_path, models, picture):
    """The input's size is the one that it was trained with."""
    model = lively("rtdetr-tiny-FLA")
    model.model.args = {**model.model.args, "imgsz": 96}
    model.ckpt = {"train_args": {"imgsz": 96}}
    model.save(tmp_path / "mine.pt")
    other = tmp_path / "other" / picture.name
    other.parent.mkdir()
    cv2.imwrite(str(other), blobs(70, 40)[::-1])
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "mine.pt", picture, other, "--what", "focusing", "--query=30,50", "--conf=0.5") == 0
    out, err = capsys.readouterr()
    folder = Path("runs", "explain", "mine")
    assert out.splitlines() == [str(folder / n) for n in ("spots-focusing.png", "spots-2-focusing.png", "contact.png")]
    assert "warning: mine" not in err
    assert (folder / "spots-focusing.png").read_bytes() != (folder / "spots-2-focusing.png").read_bytes()
    assert network.open_model("mine.pt").size == (96, 96) and network.open_model("mine.pt").title.startswith("mine (")


def test_small_files(monkeypatch, tmp_path, picture):
    """They have fewer colours, and hardly another look."""
    for name, argv in (("whole", []), ("small", ["--small"])):
        torch.manual_seed(0)  # for the same weights
        assert (
            run(monkeypatch, "rtdetr-tiny.yaml", picture, "--imgsz=64", "--what=cam", f"--out={tmp_path / name}", *argv)
            == 0
        )
    whole, small = (tmp_path / name / "spots-cam.png" for name in ("whole", "small"))
    with Image.open(whole) as a, Image.open(small) as b:
        assert b.mode == "P" and a.size == b.size
        assert np.abs(np.asarray(a.convert("RGB"), float) - np.asarray(b.convert("RGB"), float)).mean() < 3
    assert 2 * small.stat().st_size < whole.stat().st_size
    rng = np.random.default_rng(0)
    drawn = Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8))
    for x, colour in enumerate(drawing.COLOURS):  # one pixel of each kind of mark
        drawn.putpixel((x, 0), ImageColor.getrgb(colour))
    few = drawing.reduce_colours(drawn).convert("RGB")
    assert [few.getpixel((x, 0)) for x in range(len(drawing.COLOURS))] == [*map(ImageColor.getrgb, drawing.COLOURS)]
    assert len(few.getcolors()) <= 256


def test_names_are_no_formulas(monkeypatch, tmp_path, picture):
    """What matplotlib cannot read as one would end the command."""
    named = tmp_path / r"a $\frac$ 图.png"
    shutil.copy(picture, named)
    assert run(monkeypatch, "rtdetr-tiny.yaml", named, "--imgsz=64", "--what=cam", f"--out={tmp_path / 'out'}") == 0
    assert (tmp_path / "out" / f"{named.stem}-cam.png").is_file()


def test_stems():
    assert explain.name_pictures([Path("a/x.jpg"), Path("b/X.png"), Path("x-2.jpg"), Path("y.png"), Path("x.bmp")]) == [
        "x",
        "X-3",
        "x-2",
        "y",
        "x-4",
    ]


def onnx(folder: Path) -> Path:
    file = folder / "mine.onnx"
    file.write_bytes(b"\x08\x0a")
    return file


def cut(folder: Path) -> Path:
    file = folder / "cut.jpg"
    cv2.imwrite(str(file), blobs(200, 200))
    file.write_bytes(file.read_bytes()[:-2000])
    return file


def text(folder: Path, name: str) -> Path:
    file = folder / name
    file.write_text("hello", encoding="utf-8")
    return file


ROW = "nc: 3\nbackbone:\n  - [-1, 1, Nope, [3]]\nhead:\n  - [-1, 1, RTDETRDecoder, [3]]\n"


def broken(folder: Path, content: str) -> Path:
    file = folder / "broken.yaml"
    file.write_text(content, encoding="utf-8")
    return file


def nan(folder: Path) -> Path:
    model = lively("rtdetr-tiny")
    model.model.model[3].m[0].conv.weight.data[0] = float("nan")
    model.save(folder / "nan.pt")
    return folder / "nan.pt"


M = "rtdetr-tiny.yaml"
ERRORS = {
    "missing model": (lambda d, i: ["none.pt", i], "none.pt does not exist"),
    "missing YAML": (lambda d, i: ["none.yaml", i], "none.yaml"),
    "broken YAML": (lambda d, i: [broken(d, "nc: [3\nbackbone: {"), i], "broken.yaml"),
    "wrong row": (lambda d, i: [broken(d, ROW), i], "no module is named 'Nope'"),
    "exported": (lambda d, i: [onnx(d), i], "mine.onnx: explanations need a model's layers"),
    "no suffix": (lambda d, i: ["rtdetr-tiny", i], "rtdetr-tiny: explanations need a model's layers"),
    "no checkpoint": (lambda d, i: [text(d, "bad.pt"), i], "bad.pt is damaged or truncated"),
    "other head": (lambda d, i: ["yolo11n.yaml", i], "yolo11n is not an RT-DETR: its head is Detect"),
    "not finite": (lambda d, i: [nan(d), i], "the model's scores are not finite"),
    "missing image": (lambda d, i: [M, i, d / "none.jpg"], "none.jpg does not exist"),
    "folder": (lambda d, i: [M, d], "is a folder; expected an image"),
    "no image": (lambda d, i: [M, i, text(d, "a.jpg")], "a.jpg is not an image"),
    "cut image": (lambda d, i: [M, cut(d)], "cut.jpg is "),
    "query outside": (lambda d, i: [M, i, "--query=90,10"], "query 90,10 is outside of spots: expected x from 0 to 89"),
    "query above": (lambda d, i: [M, i, "--query=5,-1"], "query 5,-1 is outside of spots"),
    "layer": (lambda d, i: [M, i, "--layers", "3", "26"], "layer 26: expected a row from 0 to 25"),
    "class": (lambda d, i: [M, i, "--classes", "3"], "class 3: expected a number from 0 to 2"),
    "routing": (
        lambda d, i: [M, i, "--what", "cam", "routing"],
        "rtdetr-tiny has no BiLevelRoutingAttention_nchw for --what routing: it is BiFormer's; rtdetr-l-Biformer,",
    ),
    "focusing": (
        lambda d, i: [M, i, "--what", "focusing"],
        "rtdetr-tiny has no FocusedLinearAttention for --what focusing: it is FLatten's; rtdetr-l-FLA,",
    ),
    "imgsz": (lambda d, i: [M, i, "--imgsz", "1", "2", "3"], "imgsz=[1, 2, 3]: expected one side in pixels"),
    "out": (lambda d, i: [M, i, f"--out={text(d, 'file') / 'sub'}"], "cannot be written to: Not a directory"),
    "out is a file": (lambda d, i: [M, i, f"--out={text(d, 'file')}"], "cannot be written to: File exists"),
}


@pytest.mark.parametrize("argv, message", ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(argv, message, monkeypatch, capsys, tmp_path, picture):
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    words = argv(tmp_path / "files", picture)
    words += [] if "--imgsz" in words else ["--imgsz=64"]
    assert run(monkeypatch, *words) == 1
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if not line.startswith("warning: rtdetr-tiny.yaml has no weights yet"))
    assert line.startswith("error: ") and message in line
    assert out == "" and not (tmp_path / "runs").exists() and not list(tmp_path.rglob("*-*.png"))


def test_a_map_that_a_module_does_not_take_is_one_line(monkeypatch, capsys, tmp_path, picture):
    """What a module says of it, with the input's size."""
    source = (ROOT / "cfg_custom" / "models" / "rtdetr-tiny-FLA.yaml").read_text()
    row = "[-1, 3, HGBlock, [64, 192, 5, True, False]]"
    file = tmp_path / "rtdetr-reduced.yaml"
    file.write_text(source.replace(row, "[-1, 1, FocusedLinearAttention, [64, 8, True, None, 0.0, 0.0, 4]]"))
    assert run(monkeypatch, file, picture, "--imgsz=64", f"--out={tmp_path / 'out'}") == 1
    err = capsys.readouterr().err
    assert "error: the model does not take an input of 64 x 64 px: a 2 x 2 map is smaller than sr_ratio=4" in err


def test_a_picture_that_cannot_be_written_leaves_the_one_before(monkeypatch, capsys, tmp_path, picture):
    old = tmp_path / "spots-cam.png"
    old.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run(monkeypatch, M, picture, "--imgsz=64", "--what=cam", f"--out={tmp_path}") == 1
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == [old.name] and old.read_bytes() == b"before"


def test_click(monkeypatch, capsys, tmp_path, picture):
    """The point that is clicked is the query; without a display, or without a click, a line says so."""
    from matplotlib import pyplot as plt

    asked, switch = [], plt.switch_backend

    def headless(name: str) -> None:
        asked.append(name)
        raise ImportError("headless")

    monkeypatch.setattr(plt, "switch_backend", headless)
    words = ["rtdetr-tiny-FLA.yaml", picture, "--imgsz=64", "--what=focusing", "--click", f"--out={tmp_path / 'out'}"]
    assert run(monkeypatch, *words) == 1
    assert "error: --click needs a display" in capsys.readouterr().err
    assert asked == list(click_query.BACKENDS) and not (tmp_path / "out").exists()

    monkeypatch.setattr(plt, "switch_backend", lambda name: switch("agg"))
    monkeypatch.setattr(plt, "ginput", lambda *_, **__: [])
    assert run(monkeypatch, *words) == 1
    assert "was closed without a click" in capsys.readouterr().err

    monkeypatch.setattr(plt, "ginput", lambda *_, **__: [(19.5, 39.5)])
    queries, focus = [], focusing.focusing
    monkeypatch.setattr(focusing, "focusing", lambda m, v, query: queries.append(query) or focus(m, v, query))
    assert run(monkeypatch, *words) == 0
    assert queries == [(20.0, 40.0)] and (tmp_path / "out" / "spots-focusing.png").is_file()
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--query=1,1")


def test_numbers_of_detections_do_not_hide_each_other():
    """Of sixteen detections in one place, each has its own."""
    side, taken = drawing.TAG * 100, []
    for box in [(30.0, 20.0, 60, 50), (97.0, 90.0, 100, 100)]:
        points = [drawing.find_free_point(box, (100, 100), taken) for _ in range(16)]
        assert points[0] == pytest.approx([min(t, 100 - side) for t in box[:2]])
    assert len(set(taken)) == 32
    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) > side - 1e-9 for a in taken for b in taken if a != b)
