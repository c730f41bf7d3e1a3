"""`freeze=` counts layers as rows and summaries do, behind a multi-output backbone too."""

import pytest
from conftest import TINY

from ultralytics.fork.errors import Refused
from ultralytics.fork.layer_numbers import choose_frozen_places, list_indices
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.nn.tasks import RTDETRDetectionModel


def frozen_by(freeze, name, shapes, folder):
    """The indices of the layers that a training would not train."""
    overrides = {"model": f"{name}.yaml", "data": str(shapes), "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    trainer = RTDETRTrainer(overrides={**overrides, "freeze": freeze, "project": str(folder), "plots": False})
    trainer._setup_train()
    assert trainer.args.freeze == freeze  # as it will be in the checkpoint
    parameters = ((m.i, p) for m in trainer.model.model for p in m.parameters())
    return sorted({i for i, p in parameters if not p.requires_grad})


@pytest.mark.parametrize(
    "name, freeze, expected",
    [
        ("rtdetr-tiny", 3, {0, 1, 2}),
        ("rtdetr-tiny-EMO", 5, {4}),
        pytest.param("rtdetr-tiny-EMO", 7, {4, 5, 6}, marks=pytest.mark.nightly),
        pytest.param("rtdetr-tiny-EMO", [6], {6}, marks=pytest.mark.nightly),
        ("rtdetr-tiny-EMO", [0, 1, 2, 3, 4, 8], {4, 8}),
    ],
)
def test_the_layers_that_are_named_are_frozen(name, freeze, expected, shapes, tmp_path):
    with_weights = {m.i for m in RTDETRDetectionModel(f"{name}.yaml", verbose=False).model if [*m.parameters()]}
    assert frozen_by(freeze, name, shapes, tmp_path) == sorted(expected & with_weights)


@pytest.mark.parametrize(
    "freeze, words",
    [
        (3, "layers 0 to 4 are one backbone, EMO; freeze all of it, freeze=5"),
        ([2, 6], "are one backbone"),
        ([99], "no layer 99"),
        (["99.cv2"], "no layer '99.cv2'"),
    ],
)
def test_what_is_no_layer_is_refused(freeze, words):
    model = RTDETRDetectionModel("rtdetr-tiny-EMO.yaml", verbose=False)
    with pytest.raises(Refused) as e:
        choose_frozen_places(model, freeze)
    assert words in str(e.value) and f"freeze={freeze}" in str(e.value)


def test_parts_of_layers_are_named_by_the_index_too():
    model = RTDETRDetectionModel("rtdetr-tiny-EMO.yaml", verbose=False)
    assert choose_frozen_places(model, ["6.conv", "4.stage1", 5]) == ["2.conv", "0.stage1", 1]  # EMO is one layer


@pytest.mark.parametrize("name", TINY)
def test_indices_follow_each_other(name):
    indices = list_indices(RTDETRDetectionModel(f"{name}.yaml", verbose=False).model)
    assert [i for each in indices for i in each] == list(range(indices[-1].stop))


def test_what_upstream_takes_is_left_to_it():
    model = RTDETRDetectionModel("rtdetr-tiny.yaml", verbose=False)
    for freeze in (None, 3, True, 99):
        assert choose_frozen_places(model, freeze) is freeze
