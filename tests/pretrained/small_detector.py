"""A small RT-DETR of three classes, as a folder of Hugging Face's and as an official file."""

import pytest
import torch
from huggingface_models import make_model

from ultralytics.fork.export.convert_detector import write_official
from ultralytics.fork.pretrained.detectors import load_detector


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of Hugging Face's with a small RT-DETR of three classes, and the model in it."""
    torch.manual_seed(1)
    model = make_model("small")
    model.config.id2label = {0: "disc", 1: "square", 2: "triangle"}
    folder = tmp_path_factory.mktemp("detectors") / "small"
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def official(small, tmp_path):
    """The tensors of an official v1 file, under their names there."""
    write_official(load_detector(small[0])[0], tmp_path / "made.pth")
    return torch.load(tmp_path / "made.pth", weights_only=True)["ema"]["module"]
