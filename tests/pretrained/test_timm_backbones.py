"""Backbones of timm in RT-DETR: the same features, in every variant, from names and files; no network is needed."""

import pytest
import timm
import torch
from conftest import mark_nightly

from ultralytics import RTDETR, settings
from ultralytics.fork.pretrained import timm_backbones, timm_weights
from ultralytics.fork.pretrained.transfer_report import REPORTS
from ultralytics.nn.tasks import RTDETRDetectionModel

# timm's name, the model file, and the layers that give its maps of strides 8, 16 and 32
WHOLE = [
    ("hgnetv2_b4", "rtdetr-l", (3, 7, 9)),
    ("hgnetv2_b5", "rtdetr-x", (4, 10, 13)),
    ("resnet50", "rtdetr-resnet50", (2, 3, 4)),
    ("resnet101", "rtdetr-resnet101", (2, 3, 4)),
]


def random_timm(name):
    """Make a timm model whose norms have statistics as training leaves them, small variances among them."""
    model = timm.create_model(name).eval()
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        elif key.endswith("running_var"):
            tensor.uniform_(0, 1).pow_(4).add_(1e-4)
        elif key.endswith("bn.weight") or (".bn" in key and key.endswith("weight")):
            tensor.uniform_(0.01, 0.1)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of random weights, by timm's name."""
    folder = tmp_path_factory.mktemp("timm")
    made = {}

    def file(name):
        if name not in made:
            torch.manual_seed(1)
            model = random_timm(name)
            torch.save(model.state_dict(), folder / f"{name}.pth")
            made[name] = folder / f"{name}.pth", model
        return made[name]

    return file


def build(name):
    return RTDETRDetectionModel(f"{name}.yaml", nc=3, verbose=False).eval()


def place_in_upstream_rows(weights):
    """Load a backbone for a model without a Timm row."""
    return timm_backbones.place_in(timm_backbones.load_timm_backbone(weights)[0], build("rtdetr-tiny"))


def maps(model, x, layers):
    """Run the backbone of a model and give the maps of some layers."""
    found = {}
    with torch.no_grad():
        for m in model.model[: max(layers) + 1]:
            x = found[m.i] = m(x)
    return [found[i] for i in layers]


@pytest.mark.parametrize("name, cfg, layers", mark_nightly(WHOLE, [WHOLE[0], WHOLE[2]]))
def test_features_are_timm_s(files, name, cfg, layers):
    file, model = files(name)
    ours = build(cfg)
    ours.load(timm_backbones.load_timm_backbone(file)[0], verbose=False)
    image = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        theirs = model.forward_intermediates(image, intermediates_only=True)[-3:]
    for mine, other in zip(maps(ours, image, layers), theirs, strict=True):
        assert other.std() > 1e-3  # a map that says something
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


WRAPPED = "rtdetr-l-FLA", "rtdetr-l-HGBlock_FLA", "rtdetr-l-HGBlock_Biformer"


@pytest.mark.parametrize("cfg", mark_nightly(WRAPPED, WRAPPED[:2]))
def test_variants_get_the_backbone_wrapped_blocks_too(files, cfg):
    file, _model = files("hgnetv2_b4")
    plain, variant = build("rtdetr-l"), build(cfg)
    for ours in (plain, variant):
        ours.load(timm_backbones.load_timm_backbone(file)[0], verbose=False)
    assert sum(row[3] for row in REPORTS[variant]) == 480
    for i in range(10):
        theirs = plain.model[i].state_dict()
        mine = variant.model[i + (cfg == "rtdetr-l-FLA" and i > 8)].state_dict()
        assert all(torch.equal(mine[key], tensor) for key, tensor in theirs.items())


def test_biformer_gets_all_but_the_replaced_stage(files):
    variant = build("rtdetr-l-Biformer")
    variant.load(timm_backbones.load_timm_backbone(files("hgnetv2_b4")[0])[0], verbose=False)
    assert [row[1] for row in REPORTS[variant] if row[2] == "-"] == ["9 HGBlock"]


@pytest.mark.parametrize("cfg", ["rtdetr-ResNetLayer_MQA", "rtdetr-ResNetLayer_MQA_SR"])
def test_residual_branches_of_the_mqa_stages_get_resnet50(files, cfg):
    file, model = files("resnet50")
    variant = build(cfg)
    variant.load(timm_backbones.load_timm_backbone(file)[0], verbose=False)
    block, origin = variant.model[3].layer[0], model.layer3[0]
    assert torch.equal(block.cv2.conv.weight, origin.conv2.weight)
    assert torch.equal(block.shortcut[0].bn.running_var, origin.downsample[1].running_var)
    assert isinstance(block.cv1.act, torch.nn.ReLU) and isinstance(variant.model[12].act, torch.nn.SiLU)


def test_eps_and_activation_outlive_a_checkpoint(files, tmp_path):
    model = RTDETR("rtdetr-resnet50.yaml").load(files("resnet50")[0])
    model.save(tmp_path / "last.pt")
    for again in (RTDETR(tmp_path / "last.pt"), RTDETR("rtdetr-ResNetLayer_MQA.yaml").load(tmp_path / "last.pt")):
        block = again.model.model[1].layer[0].cv1
        assert block.bn.eps == 1e-5 and isinstance(block.act, torch.nn.ReLU)
        neck = again.model.model[7]
        assert neck.bn.eps == 1e-3 and isinstance(neck.act, torch.nn.SiLU)


def test_an_own_activation_stays_without_timm():
    """A checkpoint of another activation does not change what the model file asks for."""
    source, target = build("rtdetr-resnet50"), build("rtdetr-resnet50")
    for m in source.modules():
        if hasattr(m, "act"):
            m.act = torch.nn.ReLU()
    target.load(source, verbose=False)
    assert isinstance(target.model[1].layer[0].cv1.act, torch.nn.SiLU)


FORMS = "plain.pth", "plain.pt", "weights.safetensors", "nested.bin"


@pytest.mark.parametrize("form", mark_nightly(FORMS, FORMS[1:]))
def test_files_of_all_kinds(files, tmp_path, form):
    tensors = files("hgnetv2_b4")[1].state_dict()
    file = tmp_path / form
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    else:
        torch.save({"state_dict": tensors} if "nested" in form else tensors, file)
    model = RTDETR("rtdetr-l.yaml")
    for name in (file, f"timm/{file}"):
        model.model.model[9].ec.conv.weight.data.zero_()
        model.load(name)
        assert torch.equal(model.model.model[9].ec.conv.weight, tensors["stages.3.blocks.0.aggregation.1.conv.weight"])


def test_a_name_is_looked_for_in_the_folder_of_weights(files, tmp_path, monkeypatch):
    monkeypatch.setitem(settings, "weights_dir", str(tmp_path))
    tensors = files("hgnetv2_b4")[1].state_dict()
    torch.save(tensors, tmp_path / "hgnetv2_b4.ssld_stage2_ft_in1k.pth")
    model, _ = timm_backbones.load_timm_backbone("timm/hgnetv2_b4.ssld_stage2_ft_in1k")
    assert torch.equal(model.model[0].stem1.conv.weight, tensors["stem.stem1.conv.weight"])


def test_without_a_network_one_line_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setitem(settings, "weights_dir", str(tmp_path))
    monkeypatch.setattr(timm_weights, "ONLINE", False)
    with pytest.raises(ConnectionError) as e:
        timm_backbones.load_timm_backbone("timm/resnet50.a1_in1k")
    said = str(e.value)
    assert "\n" not in said and "model.safetensors of timm/resnet50.a1_in1k" in said
    assert str(tmp_path / "resnet50.a1_in1k.safetensors") in said and "pretrained=FILE" in said


@pytest.mark.parametrize(
    "name, said",
    [
        ("hgnetv2_b9", "did you mean hgnetv2_b"),
        ("hgnetv2_b4.nope", "nope"),
        ("hgnetv2_b0", "stem.stem1.lab.scale"),
        ("resnet18", "layer1.0.conv1.weight"),
        ("resnet50d", "conv1.0.weight"),
        ("resnet34.a1_in1k", "bottleneck"),
        ("resnetblur50", "computes something else"),
        ("convnext_tiny", "expected hgnetv2_b4"),
        ("absent/file.pth", "does not exist"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_fetched(name, said, monkeypatch):
    monkeypatch.setattr(timm_weights, "ONLINE", False)
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        place_in_upstream_rows(f"timm/{name}")
    assert said in str(e.value) and name in str(e.value) and "\n" not in str(e.value)


def test_what_is_no_file_of_weights_is_named(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a]")
    model = RTDETR("rtdetr-tiny.yaml")
    for name, said in (
        (tmp_path / "data.yaml", "is no file of weights"),
        (tmp_path / "absent.safetensors", "does not exist"),
        (tmp_path, "is no file of weights"),
        ("resnet50", "timm/resnet50"),
        (tmp_path / "absent.pt", "absent.pt does not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as e:
            model.load(str(name))
        assert said in str(e.value) and str(name) in str(e.value) and e.value.plain


def test_a_file_of_something_else(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": "text"}, file)
    with pytest.raises(ValueError, match=r"weights\.pth .*tensors"):
        timm_backbones.load_timm_backbone(file)
    torch.save({"fc.weight": torch.ones(1), "x": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"weights\.pth does not fit.*resnet50"):
        place_in_upstream_rows(file)
    RTDETR("rtdetr-tiny.yaml").save(tmp_path / "tiny.pt")
    assert not timm_backbones.is_timm_weights(tmp_path / "tiny.pt") and not timm_backbones.is_timm_weights(
        "rtdetr-l.pt"
    )
