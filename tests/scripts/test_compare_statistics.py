"""Average precision, differences between models and their intervals are right, and claim no more than they show."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from _compare import results, statistics, validation
from _compare.validation import Validation
from _shared.flops import count_published_gflops
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils.metrics import ap_per_class

PUBLISHED = json.loads((ROOT / "scripts" / "_reproduce" / "published.json").read_text())


def made_up(images=12, objects=40, detections=300, seed=0) -> Validation:
    """Make a validation up: scores that tell something of what is right, three classes, some images empty."""
    rng = np.random.default_rng(seed)
    cls, conf = rng.integers(0, 3, detections), rng.random(detections).astype(np.float32)
    tp = (rng.random((detections, 1)) * 1.2 < conf[:, None]) & (np.arange(10) < rng.integers(1, 11, (detections, 1)))
    return Validation(
        images=np.array([f"{i}.jpg" for i in range(images)]),
        shapes=np.full((images, 2), 64),
        names=np.array(["a", "b", "c"]),
        image=rng.integers(0, images, detections),
        tp=tp & (rng.random((detections, 1)) < 0.3),
        conf=conf,
        cls=cls,
        box=np.zeros((detections, 4), np.float32),
        target_image=rng.integers(0, images - 2, objects),
        target_cls=rng.integers(0, 3, objects),
        target_box=np.zeros((objects, 4), np.float32),
    )


def upstream_ap(found: Validation, sample: np.ndarray) -> float:
    """Compute mAP50-95 with upstream's function, of images repeated as a sample says."""
    detections = np.repeat(np.arange(len(found.conf)), sample[found.image])
    objects = np.repeat(np.arange(len(found.target_cls)), sample[found.target_image])
    values = found.tp[detections], found.conf[detections], found.cls[detections], found.target_cls[objects]
    return ap_per_class(*values)[5].mean()


def test_average_precision_of_a_sample_is_upstreams():
    found = made_up()
    once = np.ones((1, len(found.images)), int)
    assert statistics.average_precision(found) == pytest.approx(upstream_ap(found, once[0]), abs=1e-9)
    samples = statistics.draw_resamples(len(found.images), 20)
    assert samples.shape == (20, 12) and (samples.sum(1) == 12).all() and len(np.unique(samples, axis=0)) > 10
    expected = [upstream_ap(found, sample) for sample in samples]
    assert statistics.average_precision(found, samples) == pytest.approx(expected, abs=1e-9)


def test_what_a_sample_may_lack():
    """A class without objects in the sample does not count, nor does a sample without any."""
    found = made_up(detections=30)
    found.target_image[:] = 0
    found.target_cls[:] = 1
    empty, full = np.eye(12, dtype=int)[[5, 0]] * 12
    value = statistics.average_precision(found, np.stack([empty, full]))
    assert math.isnan(value[0]) and value[1] == pytest.approx(upstream_ap(found, full), abs=1e-9)
    nothing = Validation(**{**vars(found), **{k: vars(found)[k][:0] for k in ("image", "tp", "conf", "cls", "box")}})
    assert statistics.average_precision(nothing) == 0


def compare(ours, theirs, our_samples, their_samples):
    """Compare one model with another."""
    return statistics.compare_means([(statistics.Scores(ours, our_samples), statistics.Scores(theirs, their_samples))])


def test_difference_by_hand():
    """Two seeds a model, images that say nothing: variance 0.005 / 2 with one degree of freedom, t = 12.706."""
    still = np.zeros((2, 50))
    found = compare([0.5, 0.6], [0.4, 0.4], still + 0.55, still + 0.4)
    reach = 12.7062 * math.sqrt(0.005 / 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.15, 0.15 - reach, 0.15 + reach), abs=1e-4)
    assert found.seeds and not found.shown
    assert found.p == pytest.approx(2 * (0.5 - math.atan(0.15 / math.sqrt(0.005 / 2)) / math.pi))  # Cauchy's
    # One seed: the normal interval of the images alone, and no verdict
    ours, theirs = np.array([[0.5, 0.7, 0.6, 0.6]]), np.array([[0.1, 0.1, 0.1, 0.1]])
    found = compare([0.6], [0.1], ours, theirs)
    reach = 1.95996 * math.sqrt(0.02 / 3)
    assert (found.low, found.high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-4)
    assert found.low > 0 and not found.seeds and not found.shown
    # Images that are harder for both at once make no difference
    found = compare([0.6, 0.6], [0.5, 0.5], np.tile(ours, (2, 1)), np.tile(ours - 0.1, (2, 1)))
    assert (found.low, found.high) == pytest.approx((0.1, 0.1)) and found.shown


def test_mean_over_pairs_by_hand():
    """Two pairs whose differences are 0.2 and 0.0: the variance of the mean of two is a quarter of their sum."""
    still = np.zeros((2, 50))
    pairs = [
        (statistics.Scores([0.6, 0.8], still), statistics.Scores([0.5, 0.5], still)),
        (statistics.Scores([0.3, 0.3], still), statistics.Scores([0.3, 0.3], still)),
    ]
    found = statistics.compare_means(pairs)
    assert found.value == pytest.approx(0.1) and found.seeds
    assert found.error == pytest.approx(math.sqrt(0.02 / 2 / 4))
    assert found.high - found.value == pytest.approx(12.7062 * found.error, rel=1e-4)
    pairs[1] = (statistics.Scores([0.3], still[:1]), pairs[1][1])
    assert not statistics.compare_means(pairs).seeds


def test_several_data_sets_by_hand():
    """Three sets: the mean, and the larger of the scatter between them and of what each is known to."""
    one, two, three = (statistics.make_difference(value, 1e-6, math.inf, True) for value in (0.01, 0.03, 0.05))
    found = statistics.combine_data_sets([one, two, three])
    assert found.value == pytest.approx(0.03) and found.error == pytest.approx(0.02 / math.sqrt(3))
    assert found.high - found.value == pytest.approx(4.30265 * found.error, rel=1e-4) and not found.shown
    wide = statistics.make_difference(0.03, 0.09, math.inf, True)
    assert statistics.combine_data_sets([wide, wide]).error == pytest.approx(math.sqrt(0.09 / 2))
    single = statistics.make_difference(0.03, 0.0, math.inf, False)
    assert not statistics.combine_data_sets([wide, single]).seeds


def test_intervals_over_data_sets_hold_the_truth():
    """Four data sets that scatter as much as a study on one of them does."""
    rng, held = np.random.default_rng(2), 0
    for _ in range(1500):
        truths = 0.02 + rng.normal(0, 0.01, 4)
        found = [statistics.make_difference(rng.normal(truth, 0.01), 1e-4, 20, True) for truth in truths]
        over_all = statistics.combine_data_sets(found)
        held += over_all.low <= 0.02 <= over_all.high
    assert 0.94 < held / 1500 < 0.99


def test_holm_by_hand():
    """The example of Holm's rule with four values; none becomes smaller than one before it, or larger than 1."""
    assert statistics.correct_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.correct_by_holm([0.6, 0.7]) == [1.0, 1.0] and statistics.correct_by_holm([]) == []


def test_intervals_hold_the_truth_as_often_as_they_say():
    """3 seeds, of which each scatters as much as the images do: 95 % of the intervals hold the true difference."""
    rng = np.random.default_rng(1)
    held = seen = 0
    for _ in range(1500):
        shift = rng.normal(0, 0.02)  # what the images at hand do to the difference
        ours, theirs = 0.53 + shift + rng.normal(0, 0.02, 3), 0.5 + rng.normal(0, 0.02, 3)
        noise = rng.normal(0, 0.02, 200)
        found = compare(ours, theirs, np.tile(noise, (3, 1)), np.zeros((3, 200)))
        held += found.low <= 0.03 <= found.high
        seen += found.shown
    assert 0.93 < held / 1500 < 0.985
    assert 0.05 < seen / 1500 < 0.5  # of a difference as large as the noise, some


def test_means_and_fronts_by_hand():
    assert statistics.mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert statistics.mean_and_deviation([0.5]) == (0.5, None)
    assert statistics.pareto_front([(3, 9), (1, 5), (2, 4), (2, 7), (4, 9), (1, 4)]) == [1, 3, 0]
    assert results.mean_over_seeds([None, 2.0, 4.0]) == {
        "mean": 3.0,
        "deviation": math.sqrt(2),
        "values": [None, 2.0, 4.0],
    }
    assert results.mean_over_seeds([None]) is None


@pytest.mark.parametrize("name", ["rtdetr-l-FLA", "rtdetr-l-Biformer"])
def test_published_gflops(name):
    """The figures of the tutorials' tables come out on this release; the model is as before."""
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False)
    keys = list(model.state_dict())
    assert f"{count_published_gflops(model):.1f}" == str(PUBLISHED[name]["gflops"])
    assert list(model.state_dict()) == keys and not any("total_ops" in vars(m) for m in model.modules())


def test_sizes_by_hand():
    """COCO's sizes, in pixels of the original image; of 101 points of recall."""
    found = made_up(images=3)
    objects = np.array([[0, 0, 20, 20], [40, 40, 90, 90], [10, 10, 50, 50]], np.float32)  # one small, two medium
    found = replace(
        found,
        **{"target_image": np.array([0, 0, 1]), "target_cls": np.array([0, 0, 0]), "target_box": objects},
        **{"image": np.array([0, 1, 2]), "conf": np.array([0.9, 0.8, 0.7], np.float32), "cls": np.array([0, 0, 1])},
        box=np.array([[0, 0, 20, 20], [10, 10, 50, 50], [0, 0, 9, 9]], np.float32),
    )
    sizes = validation.coco_ap(found)
    assert sizes == {
        "AP COCO": pytest.approx(67 / 101),  # the box of another class is no error of this one
        "AP small": 1.0,
        "AP medium": pytest.approx(51 / 101),
        "AP large": None,
    }
    nothing = replace(found, **{k: vars(found)[k][:0] for k in ("image", "tp", "conf", "cls", "box")})
    assert validation.coco_ap(nothing) == {"AP COCO": 0.0, "AP small": 0.0, "AP medium": 0.0, "AP large": None}


def test_boxes_that_were_scaled_are_the_same_objects():
    found = made_up()
    moved = replace(found, target_box=found.target_box + np.float32(0.01))
    assert found.same_objects(moved) and not found.same_objects(replace(found, target_box=found.target_box + 1))
    assert not found.same_objects(replace(found, target_cls=found.target_cls + 1))
