"""Layers are numbered as the rows of the model file are."""

import pytest

from ultralytics import YOLO
from ultralytics.fork.building.model_yaml import BACKBONE_LAYERS


def test_layers_are_numbered_as_rows():
    from ultralytics.fork.layer_numbers import find_place, list_indices

    layers = YOLO("rtdetr-tiny-EMO.yaml").model.model
    assert list_indices(layers)[0] == range(BACKBONE_LAYERS)
    assert [find_place(layers, i) for i in (0, 4, 5, 6, -1)] == [0, 0, 1, 2, len(layers) - 1]
    with pytest.raises(IndexError, match="no layer 99"):
        find_place(layers, 99)
