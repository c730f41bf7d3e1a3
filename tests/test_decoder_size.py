"""Speed chosen at inference: decoder layers and queries in predict, track, val and export, and nowhere else."""

import copy
import shutil

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from conftest import ROOT, mark_nightly

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import entrypoint
from ultralytics.fork.decoder_size import check_exported_size, shorten
from ultralytics.models.rtdetr import RTDETRPredictor, RTDETRValidator
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.modules.transformer import DeformableTransformerDecoderLayer
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import ASSETS, torch_utils

LAYERS, QUERIES, SIZE = 3, 60, 96
IMAGE = ASSETS / "bus.jpg"
OPTIONS = {"source": IMAGE, "imgsz": SIZE, "conf": 0.0, "verbose": False}


def build(name: str = "rtdetr-tiny", **row) -> RTDETRDetectionModel:
    """Build a tiny model whose layers differ: fresh ones refine no box. `row` changes the decoder's arguments."""
    cfg = yaml.safe_load((ROOT / "cfg_custom" / "models" / f"{name}.yaml").read_text())
    names = ["nc", "hd", "nq", "ndp", "nh", "ndl", "d_ffn", "dropout", "act", "eval_idx"]
    arguments = dict(zip(names, [*cfg["head"][-1][3], 0.0, None, -1])) | row
    cfg["head"][-1][3] = list(arguments.values())
    model = RTDETRDetectionModel(cfg, verbose=False).eval()
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.05)
    return model


def run(model, x):
    """Give a model's rows of boxes, its raw boxes and raw scores."""
    with torch.no_grad():
        rows, (boxes, scores, *_) = model(x)
    return rows, boxes, scores


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = YOLO("rtdetr-tiny.yaml")
    model.model.load_state_dict(build().state_dict())
    file = tmp_path_factory.mktemp("weights") / "mine.pt"
    model.save(file)
    return file


@pytest.fixture
def layers_run(monkeypatch) -> list:
    """Note the queries of each decoder layer that runs, but where upstream counts a model's operations."""
    monkeypatch.setattr(torch_utils, "get_flops", lambda *_: 0.0)
    seen, forward = [], DeformableTransformerDecoderLayer.forward

    def noting(self, embed, *args, **kwargs):
        seen.append(embed.shape[1])
        return forward(self, embed, *args, **kwargs)

    monkeypatch.setattr(DeformableTransformerDecoderLayer, "forward", noting)
    return seen


# What a shortened model computes --------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(96, 96), (64, 160)])
@pytest.mark.parametrize("name", ["rtdetr-tiny", "rtdetr-tiny-EMO"])
def test_layer_k_is_what_the_whole_decoder_computes_there(name, size):
    """To the bit: the decoder alone is put into training mode, in which it gives every layer's boxes and scores."""
    model, x = build(name), torch.rand(2, 3, *size)
    model.model[-1].decoder.training = True  # itself, not its layers
    every = []
    model.model[-1].decoder.register_forward_hook(lambda _, args, out: every.append(out))
    model.model[-1].postprocess = lambda boxes, scores: boxes  # the results of all layers are no batch
    run(model, x)
    ((all_boxes, all_scores),) = every
    model.model[-1].decoder.training = False
    model.model[-1].decoder._forward_hooks.clear()
    del model.model[-1].postprocess
    assert len(all_boxes) == LAYERS and not torch.equal(all_boxes[0], all_boxes[1])
    for k in range(1, LAYERS + 1):
        rows, boxes, scores = run(shorten(model, {"decoder_layers": k}), x)
        assert torch.equal(boxes[0], all_boxes[k - 1]) and torch.equal(scores[0], all_scores[k - 1])
        assert torch.equal(rows, model.model[-1].postprocess(all_boxes[k - 1], all_scores[k - 1].sigmoid()))


@pytest.mark.parametrize("queries", [1, 7, QUERIES])
@pytest.mark.parametrize("learnt", [False, True])
def test_queries_are_those_of_a_model_built_with_as_many(queries, learnt):
    row = {"nd": 100, "label_noise_ratio": 0.5, "box_noise_scale": 1.0, "learnt_init_query": True} if learnt else {}
    model, x = build(**row), torch.rand(2, 3, SIZE, SIZE)
    smaller = build(nq=queries, **row)
    state = model.state_dict()
    if learnt:
        state["model.26.tgt_embed.weight"] = state["model.26.tgt_embed.weight"][:queries]
    smaller.load_state_dict(state)
    found, expected = run(shorten(model, {"num_queries": queries}), x), run(smaller, x)
    assert found[0].shape == (2, queries, 6)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_queries_are_the_first_of_all():
    """Up to the first attention among queries, which depends on the set."""
    model, x, chosen = build(), torch.rand(1, 3, SIZE, SIZE), []
    for m in (model, shorten(model, {"num_queries": 9})):
        m.model[-1].decoder.register_forward_pre_hook(lambda _, args: chosen.append(args[:2]))
        run(m, x)
        m.model[-1].decoder._forward_pre_hooks.clear()
    (features, boxes), (first_features, first_boxes) = chosen
    assert features.shape[1] == QUERIES and torch.equal(features[:, :9], first_features)
    torch.testing.assert_close(boxes[:, :9], first_boxes)  # products of other sizes round otherwise


def test_a_model_built_to_stop_early_has_its_later_layers_still():
    """`eval_idx` in a model file is what a call without decoder_layers= takes, and no bound."""
    model, x = build(eval_idx=0), torch.rand(1, 3, SIZE, SIZE)
    assert torch.equal(run(model, x)[0], run(shorten(model, {"decoder_layers": 1}), x)[0])
    assert torch.equal(run(model, x)[0], run(shorten(model, {"num_queries": QUERIES}), x)[0])
    assert shorten(model, {"num_queries": 5}).model[-1].decoder.num_layers == 1
    assert len(shorten(model, {"decoder_layers": 3}).model[-1].decoder.layers) == 3


def test_a_view_leaves_the_model_as_it_was_and_shares_its_weights():
    model = build()
    before = {name: id(m) for name, m in model.named_modules()}
    own = vars(model.model[-1]).keys()
    short = shorten(model, {"decoder_layers": 1, "num_queries": 5})
    assert {name: id(m) for name, m in model.named_modules()} == before and vars(model.model[-1]).keys() == own
    assert (model.model[-1].num_queries, model.model[-1].decoder.eval_idx) == (QUERIES, LAYERS - 1)
    assert {id(p) for p in short.parameters()} < {id(p) for p in model.parameters()}
    gone = {n for n, _ in model.named_parameters()} - {n for n, _ in short.named_parameters()}
    parts = [f"model.26.{part}.{i}." for part in ("decoder.layers", "dec_score_head", "dec_bbox_head") for i in (1, 2)]
    assert gone == {n for n, _ in model.named_parameters() if n.startswith(tuple(parts))} and len(gone) > 40


# predict, track, val --------------------------------------------------------------------------------------------------
def test_predict_is_pure(weights, layers_run):
    """Each call has what it asks for and no other call's, whatever the predictor keeps; the model stays whole."""
    model = RTDETR(weights)
    state, saved = copy.deepcopy(model.model.state_dict()), weights.read_bytes()
    whole = model.predict(**OPTIONS)[0].boxes.data
    for options in ({"decoder_layers": 2}, {"num_queries": 9}, {"decoder_layers": 1, "num_queries": 50.0}):
        layers_run.clear()
        found = model.predict(**OPTIONS, **options)[0].boxes.data
        queries = int(options.get("num_queries", QUERIES))
        assert layers_run == [queries] * options.get("decoder_layers", LAYERS)
        assert len(found) == queries and not torch.equal(found, whole[:queries])
        assert torch.equal(found, RTDETR(weights).predict(**OPTIONS, **options)[0].boxes.data)
        layers_run.clear()
        assert torch.equal(model.predict(**OPTIONS)[0].boxes.data, whole)
        assert layers_run == [QUERIES] * LAYERS
    with pytest.raises(ValueError):
        model.predict(**OPTIONS, decoder_layers=4)
    assert torch.equal(model.predict(**OPTIONS)[0].boxes.data, whole)
    assert type(model.model.model[-1]).__name__ == "RTDETRDecoder" and len(model.model.model[-1].decoder.layers) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.model.state_dict().values(), state.values()))
    assert weights.read_bytes() == saved


def test_predictor_of_its_own_and_none(weights, layers_run):
    """Without the `Model` class, and with None for all."""
    predictor = RTDETRPredictor(overrides={"model": str(weights), "imgsz": SIZE, "decoder_layers": 1, "save": False})
    predictor(IMAGE)
    assert layers_run == [QUERIES]
    layers_run.clear()
    RTDETR(weights).predict(**OPTIONS, decoder_layers=None, num_queries=None)
    assert layers_run == [QUERIES] * LAYERS


def test_heatmaps_and_embeddings(weights, tmp_path, layers_run):
    model = RTDETR(weights)
    model.predict(**OPTIONS, decoder_layers=1, visualize=True, project=tmp_path, name="maps")
    assert list((tmp_path / "maps").iterdir()) and layers_run == [QUERIES]
    (found,), (expected,) = (model.embed(IMAGE, imgsz=SIZE, verbose=False, **o) for o in ({"decoder_layers": 1}, {}))
    assert found.numel() > 1 and torch.equal(found, expected)  # of the layer before the head


def test_track(weights, tmp_path, layers_run):
    for i in range(2):
        shutil.copy(IMAGE, tmp_path / f"{i}.jpg")
    model = RTDETR(weights)
    model.track(tmp_path, imgsz=SIZE, decoder_layers=1, num_queries=20, verbose=False)
    assert layers_run == [20, 20]
    layers_run.clear()
    model.track(tmp_path, imgsz=SIZE, decoder_layers=2, stream=False, verbose=False)
    assert layers_run == [QUERIES] * 4


def test_val(weights, shapes, tmp_path, layers_run, monkeypatch):
    """Equal to a model that was cut by hand, and whole in the next call."""
    results, postprocess = [], RTDETRValidator.postprocess
    monkeypatch.setattr(RTDETRValidator, "postprocess", lambda s, p: results.append(p[0]) or postprocess(s, p))
    options = {"data": shapes, "imgsz": SIZE, "project": tmp_path, "plots": False, "verbose": False}
    model, cut = RTDETR(weights), RTDETR(weights)
    model.val(**options, decoder_layers=2, num_queries=20)
    assert set(layers_run) == {20} and len(layers_run) == 2 * len(results)
    found = torch.cat(results)
    results.clear()
    cut.model.model[-1].decoder.eval_idx, cut.model.model[-1].num_queries = 1, 20
    cut.val(**options)
    assert torch.equal(found, torch.cat(results)) and found.shape[1:] == (20, 6)
    layers_run.clear(), results.clear()
    model.val(**options)
    assert set(layers_run) == {QUERIES} and len(layers_run) == LAYERS * len(results)


def test_the_yolo_command(weights, shapes, tmp_path, layers_run):
    common = f"model={weights} imgsz={SIZE} project={tmp_path} decoder_layers=1 num_queries=20"
    entrypoint(f"yolo predict {common} source={IMAGE}")
    entrypoint(f"yolo val {common} data={shapes} plots=False")
    entrypoint(f"yolo track {common} source={IMAGE}")
    assert len(layers_run) >= 3 and set(layers_run) == {20}


@pytest.mark.nightly
def test_compiled(weights, layers_run, monkeypatch):
    """torch.compile sees that another view stands in the model's place."""
    inductor = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **_: inductor(m, backend="eager"))
    model = RTDETR(weights)
    found = [model.predict(**OPTIONS, compile=True, **o)[0].boxes.data for o in ({}, {"decoder_layers": 1}, {})]
    whole = RTDETR(weights).predict(**OPTIONS)[0].boxes.data
    torch.testing.assert_close(found[0], whole)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


# Wrong values ---------------------------------------------------------------------------------------------------------
WRONG = [0, -1, 4, 2.5, True, "two", [1], float("nan"), float("inf")]


@pytest.mark.parametrize(
    "mode, value", [*(("predict", value) for value in WRONG), ("track", 4), ("val", 4), ("val", 0), ("export", 4)]
)
def test_wrong_layers(weights, shapes, tmp_path, mode, value):
    model = RTDETR(weights)
    options = {
        "val": {"data": shapes, "project": tmp_path},
        "export": {"format": "torchscript"},
    }.get(mode, {"source": IMAGE, "project": tmp_path})
    with pytest.raises(ValueError) as error:
        getattr(model, mode)(**options, imgsz=SIZE, decoder_layers=value)
    message = str(error.value)
    assert message.startswith(f"decoder_layers={value!r}: ") and "from 1 to 3" in message and "\n" not in message
    assert not weights.with_suffix(".torchscript").exists()


@pytest.mark.parametrize("value", [0, -5, 10_001, 0.5, False, "all"])
def test_wrong_queries(weights, value):
    with pytest.raises(ValueError) as error:
        RTDETR(weights).predict(**OPTIONS, num_queries=value)
    message = str(error.value)
    assert message.startswith(f"num_queries={value!r}: ") and "from 1 to 10000" in message and "\n" not in message


def test_more_queries_than_an_image_has_positions(weights, shapes, tmp_path, layers_run):
    """At 64 by 32 pixels there are 42; without num_queries= the model takes as many as there are, as upstream does."""
    model, image = RTDETR(weights), cv2.imread(str(IMAGE))
    options = {"imgsz": (64, 32), "conf": 0.0, "verbose": False}
    for asked, expected in ({}, 42), ({"num_queries": 42}, 42), ({"num_queries": 9}, 9), ({"decoder_layers": 1}, 42):
        layers_run.clear()
        model.predict(image, **options, **asked)
        assert set(layers_run) == {expected}
    message = r"num_queries=43: .*1 to 42.*\(8x4, 4x2, 2x1\)"
    with pytest.raises(ValueError, match=message):
        model.predict(image, **options, num_queries=43)
    with pytest.raises(ValueError, match=message):
        model.export(format="torchscript", imgsz=(64, 32), num_queries=43)
    with pytest.raises(ValueError, match="from 1 to 21"):
        model.val(data=shapes, imgsz=32, num_queries=22, project=tmp_path, plots=False)


def test_other_models_refuse(shapes, tmp_path):
    model = YOLO("yolo26n.yaml")
    message = "decoder_layers=2: .*only RT-DETR"
    for call, options in (
        (model.predict, {"source": IMAGE, "project": tmp_path}),
        (model.val, {"data": shapes, "project": tmp_path, "plots": False}),
        (model.export, {"format": "torchscript"}),
    ):
        with pytest.raises(ValueError, match=message):
            call(**options, imgsz=64, decoder_layers=2)
    assert model.predict(IMAGE, imgsz=64, verbose=False)
    assert "decoder_views" not in vars(model.predictor.model.backend)


def test_training_and_benchmark_refuse(weights, shapes, tmp_path):
    message = "decoder_layers=2: .*not for train.*ndl and nq"
    for options in ({}, {"resume": True}):
        with pytest.raises(ValueError, match=message):
            RTDETR(weights).train(data=shapes, epochs=1, project=tmp_path, decoder_layers=2, **options)
    with pytest.raises(ValueError, match="num_queries=20: .*not for train"):
        YOLO("yolo26n.yaml").train(data=shapes, epochs=1, project=tmp_path, num_queries=20)
    with pytest.raises(ValueError, match="decoder_layers=2: .*not for benchmark"):
        RTDETR(weights).benchmark(decoder_layers=2)
    assert list(tmp_path.iterdir()) == []


def test_training_after_a_shortened_call_is_whole(weights, shapes, tmp_path, layers_run):
    model = RTDETR(weights)
    model.predict(**OPTIONS, decoder_layers=1)
    model.val(data=shapes, imgsz=64, decoder_layers=1, project=tmp_path, plots=False)
    layers_run.clear()
    model.train(data=shapes, epochs=1, imgsz=64, batch=4, workers=0, plots=False, project=tmp_path)
    assert len(layers_run) % LAYERS == 0
    head = torch.load(tmp_path / "train" / "weights" / "best.pt", weights_only=False)["model"].model[-1]
    assert type(head).__name__ == "RTDETRDecoder" and len(head.decoder.layers) == LAYERS
    assert (head.num_queries, head.decoder.eval_idx) == (QUERIES, LAYERS - 1)


# Exports --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def copied(weights, tmp_path):
    """The weights in a folder that exports can go to."""
    return shutil.copy(weights, tmp_path / "mine.pt")


def session(file: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_an_exported_graph_is_smaller_and_gives_what_torch_gives(copied):
    model, sizes = RTDETR(copied), []
    short, x = {"decoder_layers": 1, "num_queries": 20}, torch.rand(1, 3, SIZE, SIZE)
    for options in ({}, short):
        file = model.export(format="onnx", imgsz=SIZE, **options)
        graph = onnx.load(file).graph
        weights = sum(onnx.numpy_helper.to_array(t).size for t in graph.initializer)
        sizes.append((len(graph.node), weights))
        expected = run(shorten(model.model.eval(), options), x)[0]
        (found,) = session(file).run(None, {"images": x.numpy()})
        assert found.shape == expected.shape == (1, options.get("num_queries", QUERIES), 6)
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-3)
    layer = sum(p.numel() for p in model.model.model[-1].decoder.layers[0].parameters())
    assert sizes[1][0] < 0.8 * sizes[0][0] and sizes[0][1] - sizes[1][1] > 2 * layer


def test_torchscript_holds_no_layer_that_it_does_not_run(copied):
    model, x = RTDETR(copied), torch.rand(1, 3, SIZE, SIZE)
    script = torch.jit.load(model.export(format="torchscript", imgsz=SIZE, decoder_layers=2, num_queries=20))
    names = [name for name, _ in script.named_parameters()]
    assert any("decoder.layers.1." in n for n in names) and any("dec_score_head.1." in n for n in names)
    assert not any(f"{part}.2." in n for part in ("decoder.layers", "dec_score_head", "dec_bbox_head") for n in names)
    expected = run(shorten(model.model.eval(), {"decoder_layers": 2, "num_queries": 20}), x)[0]
    torch.testing.assert_close(script(x), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("form", mark_nightly(("torchscript", "onnx"), {"torchscript"}))
def test_an_exported_model_says_what_it_is(copied, shapes, tmp_path, form):
    """It takes the values that it has, and refuses others with what to do."""
    model = RTDETR(copied)
    file = model.export(format=form, imgsz=SIZE, decoder_layers=2)
    assert model.predict(**OPTIONS)[0].boxes.shape == (QUERIES, 6)
    exported = YOLO(file)
    options = {**OPTIONS, "rect": False}
    same = exported.predict(**options, decoder_layers=2, num_queries=QUERIES)[0].boxes.data
    torch.testing.assert_close(same, model.predict(**options, decoder_layers=2)[0].boxes.data, atol=2e-2, rtol=1e-3)
    message = f"decoder_layers=3: .*{form} .*exported with decoder_layers=2.*export it again"
    with pytest.raises(ValueError, match=message):
        exported.predict(**options, decoder_layers=3)
    with pytest.raises(ValueError, match="num_queries=20: .*exported with num_queries=60"):
        exported.val(data=shapes, imgsz=SIZE, num_queries=20, project=tmp_path, plots=False)
    assert torch.equal(exported.predict(**options)[0].boxes.data, same)


def test_a_dynamic_export_runs_at_other_sizes(copied):
    model, short = RTDETR(copied), {"decoder_layers": 1, "num_queries": 30}
    file = model.export(format="onnx", imgsz=SIZE, dynamic=True, **short)
    runtime = session(file)
    for size in ((64, 160), (128, 96)):
        x = torch.rand(2, 3, *size)
        (found,) = runtime.run(None, {"images": x.numpy()})
        expected = run(shorten(model.model.eval(), short), x)[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-3)


def test_exports_of_other_heads_and_of_before():
    """An older export's metadata names no layers; one of another head has none."""
    with pytest.raises(ValueError, match="decoder_layers=2: .*onnx .*export it again"):
        check_exported_size({"stride": 32, "head": "RTDETRDecoder"}, {"decoder_layers": 2}, "onnx")
    for metadata in (None, {}, {"stride": 32, "head": "Detect"}):
        with pytest.raises(ValueError, match="only RT-DETR"):
            check_exported_size(metadata, {"decoder_layers": 2}, "onnx")


@pytest.mark.parametrize("queries, share", [(300, 0.6), (500, 1.0), (None, 60 / 500)])
def test_map_of_500_objects_is_what_the_queries_allow(weights, tmp_path, monkeypatch, queries, share):
    """A decoder whose queries are right finds as many objects as it has queries; nothing behind it drops one."""
    objects = torch.tensor([[c % 3, (c % 25 + 0.5) / 25, (c // 25 + 0.5) / 20, 0.03, 0.04] for c in range(500)])
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.full((640, 640, 3), 90 + i, np.uint8))
        np.savetxt(tmp_path / "labels" / f"{i}.txt", objects.numpy(), "%g")
    file = tmp_path / "many.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [a, b, c]\n")

    def find_in_order(self, x, batch=None):
        spread = torch.randperm(500, generator=torch.Generator())
        found = objects[spread[: self.num_queries]]
        rows = torch.cat([found[:, 1:], torch.full((len(found), 1), 0.9), found[:, :1]], 1)
        return rows.expand(len(x[0]), -1, -1).clone(), None

    monkeypatch.setattr(RTDETRDecoder, "forward", find_in_order)
    options = {"data": file, "imgsz": 640, "plots": False, "project": tmp_path, "verbose": False}
    chosen = {} if queries is None else {"num_queries": queries}
    assert abs(RTDETR(weights).val(**options, **chosen).box.map - share) < 0.03
