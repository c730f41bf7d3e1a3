"""Backbones of timm as the first row: maps, sizes, normalisation, norms, weights; random weights, no network."""

import copy
import io
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from ultralytics import RTDETR
from ultralytics.fork.errors import Refused
from ultralytics.fork.pretrained import timm_rows, timm_weights
from ultralytics.nn.AddModules.layers.fold_norms import fold_norms
from ultralytics.nn.AddModules.Timm import Timm
from ultralytics.nn.tasks import RTDETRDetectionModel, yaml_model_load
from ultralytics.utils import SETTINGS, YAML
from ultralytics.utils.torch_utils import ModelEMA

MODEL = "rtdetr-tiny-timm.yaml"


def build(name, ch=3, **options):
    """Build the tiny detector on a backbone."""
    torch.manual_seed(0)
    rows = copy.deepcopy(yaml_model_load(MODEL))
    rows["backbone"][0][3] = [name, *([options] if options else [])]
    return RTDETRDetectionModel(rows, nc=3, ch=ch, verbose=False)


@pytest.mark.parametrize(
    "name, native, widths",
    [
        ("test_resnet", [4, 8, 16, 32], [32, 48, 192, 96]),  # of convolutions, five levels
        ("test_vit", [16], [16, 32, 64, 64]),  # one stride: finer ones halve the channels
        ("test_mambaout", [4, 8, 16, 32], [16, 32, 48, 64]),  # NHWC
        ("efficientvit_m0", [16, 32], [16, 32, 64, 128]),  # strides 16, 32, 64
        ("visformer_tiny", [8, 16, 32], [48, 96, 192, 384]),  # three levels
        ("nest_tiny", [4, 8, 16], [96, 192, 384, 384]),  # none of stride 32
    ],
)
def test_maps(name, native, widths):
    """Each stride has a map, whether the backbone has it or not, and every parameter is used."""
    backbone = Timm(name, img_size=64)
    assert list(backbone.places) == native and backbone.width_list == widths
    maps = backbone(torch.rand(2, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 64 // s, 64 // s) for c, s in zip(widths, (4, 8, 16, 32))]
    sum(m.square().mean() for m in maps).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


def test_a_backbone_that_takes_squares_only():
    """NesT is built for the longer side, to which images are resized, and its maps are resized to the strides."""
    backbone = Timm("nest_tiny", img_size=[64, 96])
    assert backbone.image_size == (96, 96) and backbone.fixed_size is None
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]


def test_what_serves_no_map_is_a_buffer():
    """EfficientViM weighs the logits of its stages; the keys of the state dict stay timm's."""
    backbone = Timm("efficientvim_m1", img_size=64)
    assert "weights" in dict(backbone.features.model.named_buffers(recurse=False))
    assert set(backbone.features.state_dict()) < set(
        timm.create_model("efficientvim_m1", features_only=True).state_dict()
    )
    sum(m.square().mean() for m in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


def test_only_what_is_read_is_built():
    """The neck reads strides 8 to 32; a stage that nobody reads has no parameters."""
    read, whole = build("test_vit").model[0], Timm("test_vit")
    assert read.strides == (8, 16, 32) and read.width_list == [0, 32, 64, 64]
    assert read(torch.rand(1, 3, 160, 160))[0] is None
    assert set(read.finer) == {"8"} and set(whole.finer) == {"4", "8"}
    shallow = Timm("test_resnet", strides=(8, 16))
    assert shallow.width_list[-1] == 0 and shallow(torch.rand(1, 3, 64, 64))[3] is None
    assert sum(p.numel() for p in shallow.parameters()) < sum(p.numel() for p in Timm("test_resnet").parameters())


def test_patch_of_14_pixels():
    """The image is scaled by 14 / 16, so that a patch is 16 of its pixels."""
    backbone = Timm("vit_small_patch14_dinov2", depth=3, embed_dim=48, num_heads=2)
    assert backbone.scale == 14 / 16 and backbone.fixed_size is None
    for H, W in ((64, 64), (64, 96)):
        assert [m.shape[2:] for m in backbone(torch.rand(1, 3, H, W))] == [(H // s, W // s) for s in (4, 8, 16, 32)]


def test_valid_convolutions():
    """Their maps are a few pixels smaller than the stride says, and are resized."""
    backbone = Timm("inception_v3")
    assert backbone.resizes
    assert [m.shape[2:] for m in backbone(torch.rand(1, 3, 96, 160))] == [(96 // s, 160 // s) for s in (4, 8, 16, 32)]


@pytest.mark.nightly
def test_backbone_of_its_own_size_only():
    """An image becomes one of the next multiple of that size, and the maps are resized."""
    backbone = Timm("halonet_h1", img_size=96)
    assert backbone.image_size == (256, 256) and backbone.resizes
    assert [m.shape[2] for m in backbone.eval()(torch.rand(1, 3, 96, 64))] == [24, 12, 6, 3]


def test_backbone_of_one_size():
    """It is built for the size of the training, and says so for another one."""
    backbone = build("levit_128s", img_size=96).model[0].eval()
    assert backbone.fixed_size == (96, 96)
    backbone(torch.rand(1, 3, 96, 96))
    with pytest.raises(Refused, match=r"levit_128s is built for images of 96x96 .* has 64x96.* imgsz=96.*img_size"):
        backbone(torch.rand(1, 3, 64, 96))
    rows = timm_rows.set_image_size(MODEL, 128)
    assert rows["backbone"][0][3] == ["backbone_name", {"img_size": 128}]
    assert timm_rows.set_image_size(rows, 96) is rows  # the user's size stays
    assert timm_rows.set_image_size(MODEL, 640) == MODEL and timm_rows.set_image_size("rtdetr-tiny.yaml", 96)
    assert "img_size" not in str(timm_rows.set_image_size("rtdetr-tiny.yaml", 96))


CONFIGS = sorted({(c.mean, c.std) for name in timm.list_pretrained() if (c := timm.get_pretrained_cfg(name))})


@pytest.mark.parametrize("mean, std", CONFIGS)
def test_features_of_pretrained_weights(mean, std, monkeypatch):
    """They are timm's on the same photograph, normalised as the weights expect; in an exported graph, too."""
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    whole = timm.create_model("test_resnet")
    theirs.load_state_dict({k: v for k, v in whole.state_dict().items() if k in theirs.state_dict()})
    overlay = {"state_dict": whole.state_dict(), "mean": mean, "std": std}
    loads = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    monkeypatch.setattr(timm_weights, "find_weights", lambda name, _: (name, loads))
    ours = Timm("test_resnet", pretrained=True).eval()
    photo = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs((photo - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))
        for a, b in zip(ours(photo), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    file = io.BytesIO()
    torch.onnx.export(ours, (photo,), file, opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: photo.numpy()})
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-4)


def test_grey_images():
    """One channel gets the weights and the normalisation of all three."""
    backbone = build("test_resnet", ch=1).model[0]
    assert backbone.mean.shape[1] == 1 and backbone(torch.rand(1, 1, 64, 64))[3].shape[1] == 96


def test_norms_are_timm_s(tmp_path):
    """Upstream gives each batch norm an eps of 1e-3; those within a backbone keep theirs, in checkpoints, too."""
    model = build("test_resnet")
    settings = {(m.eps, m.momentum) for m in model.model[0].modules() if isinstance(m, nn.BatchNorm2d)}
    assert settings == {(1e-5, 0.1)} and model.model[1].bn.eps == 1e-3
    holder = RTDETR(MODEL)
    holder.model = model
    holder.save(tmp_path / "model.pt")
    again = RTDETR(tmp_path / "model.pt").model
    assert {(m.eps, m.momentum) for m in again.model[0].modules() if isinstance(m, nn.BatchNorm2d)} == settings
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.half().float().eval()(image)[0]  # a checkpoint has half precision
        torch.testing.assert_close(again.float().eval()(image)[0], expected)


def test_a_convolution_that_serves_no_map_is_not_folded():
    """HRNet has such: their weights are buffers."""

    class Net(nn.Sequential):
        def forward(self, x):
            self[2](x)
            return self[1](self[0](x))

    branch = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    net = Net(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), branch).eval()
    for key in ("weight", "bias"):
        held = getattr(branch[0], key).detach()
        delattr(branch[0], key)
        branch[0].register_buffer(key, held)
    assert fold_norms(net, torch.rand(1, 3, 8, 8)) == 1 and isinstance(branch[1], nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet", "test_nfnet"])
def test_fuse(name):
    """Batch norms are folded, with the activation that timm has inside kept; scaled convolutions stay as they are."""
    torch.manual_seed(0)
    backbone = Timm(name).eval()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.running_mean.normal_(0, 0.2)
        m.running_var.uniform_(0.5, 2)
    image = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        before = backbone(image)
        backbone.fuse()
        for a, b in zip(backbone(image), before, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert left == 0 if norms else name == "test_nfnet"


def test_a_convolution_that_others_read_is_not_folded():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) + x

    from ultralytics.nn.AddModules.layers.fold_norms import fold_norms

    net, image = Reads().eval(), torch.rand(1, 3, 8, 8)
    net.bn.running_var.fill_(3)
    before = net(image)
    assert fold_norms(net, image) == 0
    torch.testing.assert_close(net(image), before, rtol=0, atol=0)


@pytest.fixture
def weights(tmp_path):
    """A file of weights of the smallest backbone, and the model that has them."""
    torch.manual_seed(1)
    model = timm.create_model("test_resnet").eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    return tmp_path / "mine.pth", model


def has_weights(backbone, model):
    return torch.equal(backbone.features.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"])


def test_pretrained_from_a_file(weights, monkeypatch):
    """By path, or by the model's name in the folder of weights; a checkpoint of one's own needs neither."""
    file, model = weights
    detector = build("test_resnet", pretrained=str(file))
    assert has_weights(detector.model[0], model) and detector.model[0].mean.any()
    monkeypatch.setitem(SETTINGS, "weights_dir", str(file.parent))
    file.rename(file.with_name("test_resnet.pth"))
    assert has_weights(Timm("test_resnet", pretrained=True), model)
    with timm_weights.weights_follow():
        assert not has_weights(Timm("test_resnet", pretrained=True), model)


def test_pretrained_at_training(weights):
    """`pretrained=` with a file of timm's fills a Timm row of the same backbone, normalisation included."""
    file, model = weights
    detector = RTDETR(MODEL)
    detector.model = build("test_resnet")
    detector.load(file)
    assert has_weights(detector.model.model[0], model) and detector.model.model[0].mean.any()
    other = RTDETR("rtdetr-tiny.yaml")
    with pytest.raises(Refused, match=r"mine.pth does not fit .* first row is Timm"):
        other.load(file)


def test_transfer_between_models_of_one_backbone(weights):
    file, model = weights
    source, target = build("test_resnet", pretrained=str(file)), build("test_resnet")
    target.load(source)
    assert has_weights(target.model[0], model) and torch.equal(target.model[0].mean, source.model[0].mean)


def test_weights_of_a_checkpoint_of_the_same_backbone():
    """Only these stand for the pretrained ones; the names at the heads of two files are compared, not the key."""
    one, other = ({**yaml_model_load(MODEL), "backbone_name": name} for name in ("test_resnet", "test_vit"))
    for settings, expected in ((one, True), (other, False), ("rtdetr-tiny.yaml", False), (None, False)):
        assert timm_rows.has_same_backbone(one, SimpleNamespace(yaml=settings)) is expected
    assert not timm_rows.has_same_backbone(one, None)


def test_layers_that_keep_their_input(tmp_path):
    """Upstream lets each activation of a checkpoint write over its input, which normaliser-free blocks read again."""
    holder = RTDETR(MODEL)
    holder.model = build("test_nfnet").eval()
    image = torch.rand(1, 3, 64, 64)
    holder.save(tmp_path / "model.pt")
    again = RTDETR(tmp_path / "model.pt").model.float()
    with torch.no_grad():
        for a, b in zip(again.model[0](image)[1:], holder.model.half().float().model[0](image)[1:], strict=True):
            torch.testing.assert_close(a, b)


def test_copies():
    """A deep copy and an average compute the same; the average takes the normalisation over."""
    model = build("test_resnet").eval()
    model.model[0].mean.fill_(0.5)
    image = torch.rand(1, 3, 64, 64)
    average = ModelEMA(model)
    average.update(model)
    with torch.no_grad():
        expected = model(image)[0]
        for again in (copy.deepcopy(model), average.ema):
            torch.testing.assert_close(again.eval()(image)[0], expected)


@pytest.mark.nightly
def test_compiled():
    model = build("test_resnet").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.model[0](image)[1:]
        for a, b in zip(torch.compile(model.model[0])(image)[1:], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_training_at_a_recipe(shapes, tmp_path, weights):
    """The backbone is slow and frozen as a pretrained one, built for the images' size, and needs its file no more."""
    file, _ = weights
    rows = copy.deepcopy(yaml_model_load(MODEL))
    rows["backbone"][0][3] = ["test_resnet", {"pretrained": str(file)}]
    YAML.save(tmp_path / "mine.yaml", {key: value for key, value in rows.items() if key not in ("yaml_file", "scale")})
    options = {"data": str(shapes), "epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False}
    options |= {"backbone_lr": 0.1, "freeze_norm": True, "project": str(tmp_path), "freeze": ["0.features.conv1"]}
    model = RTDETR(tmp_path / "mine.yaml")
    model.train(name="first", **options)
    assert {round(g["lr"] / model.trainer.args.lr0, 3) for g in model.trainer.optimizer.param_groups} >= {0.1, 1.0}
    trained = RTDETR(tmp_path / "first" / "weights" / "last.pt").model
    assert trained.yaml["backbone"][0][3][-1]["img_size"] == 64
    norms = [
        next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
        for backbone in (trained.model[0], Timm("test_resnet", pretrained=str(file)))
    ]
    torch.testing.assert_close(norms[0].running_mean.float(), norms[1].running_mean, rtol=1e-3, atol=1e-3)
    file.unlink()
    RTDETR(tmp_path / "first" / "weights" / "last.pt").train(name="second", **options)


def test_no_network(monkeypatch):
    """The line says which file to put where."""
    monkeypatch.setattr(timm_weights, "ONLINE", False)
    with pytest.raises(
        ConnectionError, match=r"timm/resnet18.a1_in1k.* put model.safetensors of timm/resnet18.a1_in1k"
    ):
        build("resnet18", pretrained="a1_in1k")


@pytest.mark.parametrize(
    "name, options, line",
    [
        ("convnextv2_nan", {}, "no model 'convnextv2_nan'; did you mean .*convnextv2_nano"),
        ("hf-hub:somebody/model", {}, "neither a name nor a literal"),
        ("resnet18", {"checkpoint_path": "x.pth"}, "checkpoint_path cannot be set"),
        ("resnet18", {"frob": 1}, "resnet18: .*unexpected keyword argument 'frob'"),
        ("resnet18", {"pretrained": "resnet50"}, "another model than the backbone, timm's resnet18"),
        ("resnet18", {"pretrained": "no_tag"}, "resnet18 has the tags a1_in1k"),
        ("resnet18", {"pretrained": "gone.pth"}, "gone.pth does not exist"),
        ("resnet18", {"img_size": 100}, "img_size=100; expected a multiple of 32"),
        ("test_vit", {"depth": 10**6}, "operations are needed"),
    ],
)
def test_refusals(name, options, line):
    """One line with file and row."""
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s)tiny-timm.yaml, row 0.*{line}"):
        build(name, **options)
