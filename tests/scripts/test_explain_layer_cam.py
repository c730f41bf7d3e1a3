"""LayerCAM maps are upstream's, of the layers that are asked for, and of gradients that are right."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, lively
from explained_models import blobs, models  # noqa: F401 - a fixture

from _explain import layer_cam, network, receptive_field, routing
from ultralytics import YOLO


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
