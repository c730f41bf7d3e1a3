"""Receptive fields of plain convolutions are the theoretical ones, and those of models grow with depth."""

import numpy as np
import torch
from explained_models import blobs, models  # noqa: F401 - a fixture
from torch import nn

from _explain import receptive_field


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
