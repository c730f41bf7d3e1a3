"""Detections of an export and of PyTorch are compared as sets, within bounds, and ties are told apart."""

import itertools

import pytest
import torch
from conftest import lively

from ultralytics.fork.export import verification
from ultralytics.fork.export.compare_detections import BOUNDS, compare_detections, count_tied_queries


def rows(*found) -> torch.Tensor:
    return torch.tensor([found], dtype=torch.float32)


A, B, C = (0.2, 0.2, 0.1, 0.1, 0.9, 0), (0.7, 0.6, 0.2, 0.2, 0.6, 1), (0.5, 0.5, 0.3, 0.3, 0.3, 1)


def compare(one, other, bits=32, tied=()):
    bounds, chance = BOUNDS[bits], torch.zeros(one.shape[:2], dtype=torch.bool)
    chance[0, list(tied)] = True
    found = compare_detections("x", one, other, (100, 200), bounds, chance)
    return found, found.is_within(bounds)


def test_detections_are_a_set():
    for order in itertools.permutations((A, B, C)):
        found, holds = compare(rows(A, B, C), rows(*order))
        assert holds and found.matched == found.detections == 3 and found.box == found.score == found.raw == 0


@pytest.mark.parametrize(
    "changed, holds",
    [
        ((0.204, 0.2, 0.1, 0.1, 0.9, 0), True),  # 0.8 of 200 px
        ((0.207, 0.2, 0.1, 0.1, 0.9, 0), False),
        ((0.2, 0.209, 0.1, 0.1, 0.9, 0), True),  # 0.9 of 100 px
        ((0.2, 0.2, 0.1, 0.1, 0.8995, 0), True),
        ((0.2, 0.2, 0.1, 0.1, 0.898, 0), False),
        ((0.2, 0.2, 0.1, 0.1, 0.9, 1), False),
        ((float("nan"), 0.2, 0.1, 0.1, 0.9, 0), False),
        ((0.2, 0.2, 0.1, 0.1, float("nan"), 0), False),
    ],
)
def test_bounds_of_fp32(changed, holds):
    found, held = compare(rows(A, B, C), rows(changed, B, C))
    assert held is holds and found.matched == (3 if holds else 2)


def test_bounds_grow_with_the_image_below_fp32():
    assert [BOUNDS[bits].pixels((640, 320)) for bits in (32, 16, 8)] == [1, 6.4, 16]
    assert [BOUNDS[bits].pixels((64, 96)) for bits in (32, 16, 8)] == [1, 2, 4]


def test_one_detection_is_not_matched_twice():
    found, holds = compare(rows(A, A, B), rows(A, B, B))
    assert not holds and found.matched == 2


def test_what_the_end_of_the_list_leaves_to_chance():
    some, last = (A, B) * 15, (0.9, 0.9, 0.1, 0.1, 0.3, 0)  # as good as C
    assert compare(rows(*some, C), rows(*some, last))[1]
    assert not compare(rows(*some, C), rows(*some, (*last[:4], 0.31, 0)))[1]
    assert not compare(rows(*some, A, C), rows(*some, (*last[:4], 0.9, 0), C))[1]


def test_below_fp32_what_counts_must_be_found():
    weak = (0.9, 0.9, 0.1, 0.1, 0.1, 0)
    assert compare(rows(A, B, weak), rows(A, B, (0.1, 0.1, 0.1, 0.1, 0.1, 1)), bits=16)[1]
    assert not compare(rows(A, B, weak), rows(A, (0.1, 0.1, 0.1, 0.1, 0.6, 1), weak), bits=16)[1]
    assert not compare(rows(weak, weak), rows(A, weak), bits=8)[1]  # nor may there be more
    other = (0.1, 0.9, 0.1, 0.1, 0.1, 1)
    assert not compare(rows(weak, weak), rows(other, other), bits=16)[1]  # where all are weak, the best ones count


def test_ties_among_the_encoder_s_positions():
    scores, bounds = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), BOUNDS[32]
    for queries in (2, 4, 9):
        assert count_tied_queries(scores, queries, bounds).tolist() == [0]
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert count_tied_queries(scores, 2, bounds).tolist() == [1, 0, 2]
    assert count_tied_queries(torch.tensor([[3.0, 1.05, 1.0, 0.0]]), 2, BOUNDS[8]).tolist() == [1]


def test_only_what_a_tied_query_has_found_may_be_missing():
    found = rows(*(A, B, C) * 8)
    found[0, :, 1] = torch.arange(24) / 24
    other = found.clone()
    other[0, 3, 0] = 0.8
    assert compare(found, other, tied=[3])[1]
    assert not compare(found, other)[1] and not compare(found, other, tied=[2, 4])[1]
    other[0, :8, 0] = 0.8
    assert not compare(found, other, tied=range(24))[1]  # most must be found all the same


def test_reference_tells_which_detections_are_of_tied_queries(monkeypatch):
    """Detections are ordered by their own scores, queries by the encoder's."""
    model = lively("rtdetr-tiny").model.eval()
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        y = model(x)[0]
    monkeypatch.setattr(verification, "count_tied_queries", lambda *_: torch.tensor([0, 7]))
    found, tied = verification.run_reference(model, x, BOUNDS[32])
    assert torch.equal(found, y) and not tied[0].any() and 0 < tied[1].sum() < 60
    boxes, scores = model(x)[1][0][-1], model(x)[1][1][-1].sigmoid()  # of each query
    for row in range(60):
        query = (boxes[1] - y[1, row, :4]).abs().sum(1) + (scores[1, :, int(y[1, row, 5])] - y[1, row, 4]).abs()
        assert tied[1, row] == (int(query.argmin()) >= 53)


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"\(1, 1, 6\).*\(1, 2, 6\)"):
        compare(rows(A, B), rows(A))
