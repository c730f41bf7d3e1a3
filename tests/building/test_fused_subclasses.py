"""A fused model computes what it did before, also with classes that are derived from fusable ones."""

import pytest
import torch
from torch import nn

from ultralytics import RTDETR
from ultralytics.nn.AddModules import registry
from ultralytics.nn.AddModules.registry import changes_channels
from ultralytics.nn.modules.conv import Conv, DWConv, RepConv


class Gated(Conv):
    def __init__(self, c1, c2, k=1, s=1):
        super().__init__(c1, c2, k, s)
        self.gate = nn.Conv2d(c2, c2, 1)

    def forward(self, x):
        x = self.act(self.bn(self.conv(x)))
        return x * self.gate(x).sigmoid()


class GatedAndFusable(Gated):
    def forward(self, x):
        return super().forward(x) + 1

    def forward_fuse(self, x):
        x = self.act(self.conv(x))
        return x * self.gate(x).sigmoid() + 1


class Doubled(Conv):
    """It has more in its constructor, and the parent's forward."""

    def __init__(self, c1, c2):
        super().__init__(c1, c2, 3)


class GatedDW(DWConv):
    def forward(self, x):
        return super().forward(x).relu() + x


class GatedRep(RepConv):
    def forward(self, x):
        return super().forward(x) * 2


class Inner(nn.Module):
    """Its child is fused, itself is not."""

    def __init__(self, c1, c2):
        super().__init__()
        self.a, self.b = Gated(c1, c2), Conv(c2, c2)

    def forward(self, x):
        return self.b(self.a(x))


class FuseIsALayer(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.fuse = nn.Conv2d(c1, c2, 1)

    def forward(self, x):
        return self.fuse(x)


class FuseOfAnotherKind(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 1)

    def fuse(self, other):
        raise AssertionError("it is for something else")

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize(
    "cls, is_left",
    [
        *((Gated, True), (GatedAndFusable, False), (Doubled, False), (GatedDW, True), (GatedRep, True)),
        *((Inner, True), (FuseOfAnotherKind, False), (FuseIsALayer, False)),
    ],
)
def test_fused_is_unfused(cls, is_left, monkeypatch, tmp_path, caplog):
    said = []
    monkeypatch.setattr("ultralytics.fork.building.fuse.LOGGER.info", said.append)
    monkeypatch.setitem(registry.NAMES, cls.__name__, cls)
    monkeypatch.setitem(registry.READERS, cls, changes_channels)
    monkeypatch.setattr(cls, "__module__", "ultralytics.nn.AddModules.mine")
    (tmp_path / "mine.yaml").write_text(
        f"nc: 3\nbackbone:\n  - [-1, 1, Conv, [32, 3, 8]]\n  - [-1, 1, {cls.__name__}, [32]]\n"
        "head:\n  - [[-1], 1, RTDETRDecoder, [nc, 64, 20, 4, 4, 1]]\n"
    )
    model, seen, x = RTDETR(tmp_path / "mine.yaml").model, [], torch.rand(2, 3, 64, 64)
    model.train()(x)  # norms that do something
    model.eval().model[1].register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        model(x)
        model.fuse(verbose=True, imgsz=64)
        model(x)
    assert torch.allclose(seen[0], seen[-1], atol=1e-5)
    assert any("Not fused: model.1" in str(line) for line in said) == is_left
    assert not hasattr(model.model[0], "bn") and "modules" not in vars(model.model)
