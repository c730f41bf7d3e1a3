"""Rows changed in a model in memory: what stays, what trains, what is refused."""

import pytest
import torch

from ultralytics import RTDETR, YOLO
from ultralytics.fork.building import change_rows
from ultralytics.fork.errors import Refused
from ultralytics.nn.AddModules.registry import RowError


def test_other_layers_keep_their_weights():
    """Each is where its row is now, with all that it has; what fits of a replaced one is in its place."""
    model = RTDETR("rtdetr-tiny.yaml")
    before = list(model.model.model)
    before[3].m[0].bn.eps = 0.5
    image = torch.rand(1, 3, 64, 64)
    expected = model.model.eval()(image)[0]
    assert model.insert(4, "nn.Identity") is model
    torch.testing.assert_close(model.model(image)[0], expected, rtol=0, atol=0)
    model.remove([4])
    torch.testing.assert_close(model.model(image)[0], expected, rtol=0, atol=0)
    model.insert(4, "FocusedLinearAttention", [96]).replace("HGBlock", "HGBlock_FLA", layers=[6])
    after = list(model.model.model)
    assert [type(after[n]).__name__ for n in (4, 6)] == ["FocusedLinearAttention", "HGBlock_FLA"]
    kept = after[:4] + after[5:6] + after[7:]
    old = before[:4] + before[4:5] + before[6:]
    assert all(torch.equal(b.state_dict()[key], t) for a, b in zip(old, kept) for key, t in a.state_dict().items())
    assert after[3].m[0].bn.eps == 0.5 and [m.i for m in after] == list(range(len(after)))
    assert torch.equal(after[6].sc.conv.weight, before[5].sc.conv.weight)


def test_training_begins_with_the_changed_model(shapes, tmp_path):
    """Not with the file that the model was built from; the checkpoint opens."""
    model = RTDETR("rtdetr-tiny.yaml")
    model.insert(4, "CBAM")
    model.train(data=str(shapes), epochs=1, imgsz=64, batch=4, workers=0, plots=False, val=False, project=str(tmp_path))
    trained = RTDETR(next(tmp_path.rglob("last.pt")))
    assert [row[2] for row in trained.model.yaml["backbone"]][4] == "CBAM"


def test_backbone_is_changed_for_another():
    model = RTDETR("rtdetr-tiny.yaml")
    neck = model.model.model[-2].state_dict()
    model.swap_backbone("Timm", ["test_resnet"])
    assert type(model.model.model[0]).__name__ == "Timm"
    assert all(torch.equal(t, neck[key]) for key, t in model.model.model[-2].state_dict().items())
    assert model.model.eval()(torch.rand(1, 3, 64, 64))[0].shape[-1] == 6


def test_refused_changes_leave_the_model():
    model = YOLO("yolo11n.yaml")
    before = model.model
    for change, kind in (
        (lambda: model.insert(99, "CBAM"), Refused),
        (lambda: model.insert(3, "Nope"), RowError),
        (lambda: model.replace("Conv", "Conv2", layers=[2]), Refused),
    ):
        with pytest.raises(kind):
            change()
    assert model.model is before
    model.insert(3, "CBAM")
    assert [row[2] for row in model.model.yaml["backbone"]][3] == "CBAM"


def test_a_model_without_rows():
    model = YOLO("yolo11n.yaml")
    del model.model.yaml
    with pytest.raises(Refused, match=r"rows can be changed in a model of PyTorch that was built from a model file"):
        model.insert(3, "CBAM")


def test_upstream_s_methods_are_not_replaced():
    class Model:
        def insert(self):
            pass

    with pytest.raises(AttributeError, match=r"Model.insert"):
        change_rows.add_methods(Model)
