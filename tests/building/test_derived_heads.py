"""A class that is derived from a head of upstream's is a head in a model file."""

import pytest
import torch
from conftest import ROOT
from torch import nn

from ultralytics import RTDETR, YOLO
from ultralytics.nn.AddModules import registry
from ultralytics.nn.AddModules.registry import head
from ultralytics.nn.modules.head import Detect, RTDETRDecoder, Segment


class MyDecoder(RTDETRDecoder):
    def __init__(self, *args):
        super().__init__(*args)
        self.extra = nn.Linear(self.hidden_dim, self.hidden_dim)

    def _get_encoder_input(self, x):
        feats, shapes = super()._get_encoder_input(x)
        return feats + self.extra(feats), shapes


class MyDecoderWithMore(RTDETRDecoder):
    def __init__(self, nc=80, ch=(512, 1024, 2048), hd=256, nq=300, ndp=4, nh=8, ndl=6, d_ffn=1024, *, gate=True):
        super().__init__(nc, ch, hd, nq, ndp, nh, ndl, d_ffn)
        self.gate = gate


class MyHead(Detect):
    def __init__(self, nc=80, reg_max=16, end2end=False, ch=()):
        super().__init__(nc, reg_max, end2end, ch)
        self.scale = nn.Parameter(torch.ones(1))


class MyMasks(Segment):
    pass


@pytest.fixture
def heads(monkeypatch):
    for cls in (MyDecoder, MyDecoderWithMore, MyHead, MyMasks):
        monkeypatch.setitem(registry.NAMES, cls.__name__, cls)
        monkeypatch.setitem(registry.READERS, cls, head)


@pytest.mark.parametrize("name", ["MyDecoder", "MyDecoderWithMore"])
def test_a_class_derived_from_the_decoder_is_a_head(heads, name, tmp_path):
    """In `RTDETR` and in `YOLO`, for decoder layers and queries, and in an export's metadata."""
    text = (ROOT / "cfg_custom" / "models" / "rtdetr-tiny.yaml").read_text().replace("RTDETRDecoder", name)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for cls in (RTDETR, YOLO):
        model = cls(file)
        assert type(model) is RTDETR and type(model.model).__name__ == "RTDETRDetectionModel"
        assert type(model.model.model[-1]).__name__ == name
    image = torch.rand(1, 3, 64, 64)
    whole = model.predict(image, verbose=False, conf=0.0)[0].boxes.data
    short = model.predict(image, verbose=False, conf=0.0, decoder_layers=1, num_queries=7)[0].boxes.data
    assert len(whole) == 60 and len(short) == 7
    exported = model.export(format="torchscript", imgsz=64)
    assert type(YOLO(exported)) is RTDETR


def test_classes_derived_from_other_heads(heads, tmp_path):
    base = "nc: 3\nreg_max: 8\nbackbone:\n  - [-1, 1, Conv, [24, 3, 8]]\n  - [-1, 1, Conv, [32, 3, 2]]\nhead:\n"
    for row, task, cls in (("MyHead, [nc]", "detect", MyHead), ("MyMasks, [nc, 32, 64]", "segment", MyMasks)):
        (tmp_path / "mine.yaml").write_text(f"{base}  - [[0, 1], 1, {row}]\n")
        model = YOLO(tmp_path / "mine.yaml")
        assert model.task == task and type(model.model.model[-1]) is cls
        assert model.model.model[-1].nl == 2 and model.model.model[-1].reg_max == 8
        assert model.model.stride.tolist() == [8.0, 16.0]
