"""A model takes 2 GiB at most, and is refused before it takes more; usual rows are built without counting."""

import copy
import gc
import json
import re
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves
from untrusted_yaml import STEM, no_hang, parse, peak

from ultralytics import YOLO
from ultralytics.fork.building import memory_limit, rows
from ultralytics.fork.building.memory_limit import MAX_BYTES, MemoryLimit, ModelTooLarge, limit_memory
from ultralytics.fork.building.operation_sizes import bound_forward, is_in_place, size_of_result
from ultralytics.fork.building.predictable_rows import COUNTED_IN_FORWARD, LEADING_CHANNELS, find_predictable_rows
from ultralytics.nn import tasks
from ultralytics.nn.AddModules.registry import NAMES, READERS, RowError, backbone
from ultralytics.nn.tasks import parse_model, yaml_model_load
from ultralytics.utils import YAML
from ultralytics.utils.torch_utils import init_seeds, unset_deterministic


# Rows one by one ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "row, says",
    [
        ([-1, 1, "nn.Linear", [1000000, 1000000]], "3725.3 GiB are needed"),
        ([-1, 1, "Conv", [1000000, 101]], "GiB are needed"),
        ([-1, 1, "nn.Embedding", [16000000, 16000000]], "GiB are needed"),
        ([-1, 1, "nn.Transformer", [8192]], "GiB are needed"),
        ([-1, 1, "nn.LSTM", [1, 1, 1000000]], "operations"),
        ([-1, 1000, "C2f", [2048]], "GiB are needed|operations"),
        ([-1, 100000, "nn.Identity", []], "100000 repeats"),
        ([-1, 1, "TorchVision", [16, "fcn_resnet50", "None"]], "no classifier 'fcn_resnet50'"),
        ([-1, 1, "FocusedLinearAttention", [16, 1000000000]], "no literal"),
    ],
    ids=str,
)
def test_what_a_row_takes_is_known_before(row, says):
    before = peak()
    with pytest.raises(RowError, match=rf"^strange.yaml, row 1 .*({says})"):
        parse(row)
    assert peak() - before < MAX_BYTES / 4


def test_rows_together():
    rows = [[-1, 1, "nn.Linear", [16384, 20000]]] * 3  # 1.2 GiB each
    with pytest.raises(RowError, match=r"row 2 .* 2.4 GiB are needed to build it, with the rows before it"):
        parse(*rows)


def test_many_layers_without_weights():
    with pytest.raises(RowError, match="row 5 .* 5001 layers"):
        parse(*[[-1, 1000, "nn.Dropout", []]] * 4, [-1, 1000, "nn.Identity", []], *[[-1, 1000, "nn.ReLU", []]] * 9)


@pytest.mark.parametrize("row", [[-1, 1, "nn.Conv2d", [16, 4, 1101, 1, 550]], [-1, 1, "SPP", [512, [3001]]]], ids=str)
def test_what_would_take_for_ever(row, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"nc: 2\nbackbone: [[-1, 1, Conv, [16, 3, 2]], {row}]\nhead: [[[1], 1, Detect, [nc]]]"
    )
    with no_hang(300), pytest.raises(RowError, match="mine.yaml, row 1 .*(multiplications|GiB are needed)"):
        YOLO(tmp_path / "mine.yaml")


def test_a_large_model_is_rehearsed_and_comes_out_the_same(monkeypatch):
    """What was built until then is thrown away, and leaves no trace in the weights."""
    d = YAML.load(ROOT / "cfg_custom/models/rtdetr-tiny-EMO.yaml")
    models, rehearsals = [], []
    monkeypatch.setattr(
        memory_limit, "rehearse_rows", lambda *args, of=memory_limit.rehearse_rows: rehearsals.append(of(*args))
    )
    for large in (memory_limit.REHEARSED_BYTES, 2**16):
        monkeypatch.setattr(memory_limit, "REHEARSED_BYTES", large)
        torch.manual_seed(0)
        models.append(parse_model(copy.deepcopy(d), ch=3, verbose=False)[0].state_dict())
    assert len(rehearsals) == 1
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_what_is_let_go_does_not_count():
    with limit_memory():
        for _ in range(5):
            torch.empty(MAX_BYTES // 2, dtype=torch.uint8)
        with pytest.raises(ModelTooLarge):
            torch.empty(MAX_BYTES + 1, dtype=torch.uint8)


def test_the_first_image_counts(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "nc: 2\nbackbone: [[-1, 1, Conv, [16, 3, 2]], [-1, 1, nn.Upsample, [null, 1000, nearest]]]\n"
        "head: [[[1], 1, Detect, [nc]]]\n"
    )
    with pytest.raises(RowError, match=r"mine.yaml, row 1 .* GiB are needed"):
        YOLO(tmp_path / "mine.yaml")


ON_THE_FIRST_IMAGE = {
    "columns of a convolution": """
        - [-1, 1, Conv, [8, 3, 2]]
        - [-1, 1, nn.AdaptiveAvgPool2d, [1]]
        - [-1, 1, Conv, [2048, 1, 1]]
        - [-1, 1, nn.Conv2d, [2048, 1, 3, 1, 100]]""",
    "maps that are stacked": f"""
        - [-1, 1, Conv, [64, 3, 2]]
        - [-1, 1, CBLinear, [[64]]]
        - [0, 1, Conv, [64, 1, 1]]
        - [{[1] * 440 + [2]}, 1, CBFuse, [{[0] * 440}]]""",
}


@pytest.mark.parametrize("rows", ON_THE_FIRST_IMAGE)
def test_what_an_operation_takes_beside_its_result(rows, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"nc: 2\nbackbone:{ON_THE_FIRST_IMAGE[rows]}\nhead:\n        - [[0, 3], 1, Detect, [nc]]\n"
    )
    before = peak()
    with pytest.raises(RowError, match=r"mine.yaml, row 3 .* GiB are needed"):
        YOLO(tmp_path / "mine.yaml")
    assert peak() - before < 1.1 * MAX_BYTES


def test_the_size_of_a_range_of_fractions():
    with limit_memory():
        assert len(torch.arange(2.0**23)) == 2**23


# Files whose rows add up ----------------------------------------------------------------------------------------------
def decoder(*arguments: int) -> list:
    return [[0], 1, "RTDETRDecoder", ["nc", *arguments]]


LARGE_FILES = {  # the rows behind the first, the settings, what is said
    "convolutions": ([[-1, 1, "Conv", [2048, 3]]] * 998, {}, "row 16 .* GiB"),
    "repeats": ([[-1, 16, "C2f", [1024]]] * 100, {}, "row 7 .* GiB"),
    "kernels": ([[-1, 1, "Conv", [1024, 16]]] * 20, {}, "row 3 .* GiB"),
    "three channels": ([[-1, 16, "HGBlock", [4096, 4096, 16]]], {}, "row 1 .* GiB"),
    "an expansion": ([[-1, 16, "C3k2", [2048, True, 16]]], {}, "row 1 .* GiB"),
    "a width": ([[-1, 1, "Conv", [2048, 3]]], {"scales": {"n": [1, 1000, 10**6]}}, "row [01] .* GiB"),
    "a width without kernels": ([[-1, 1, "DWConv", [64]]], {"scales": {"n": [1, 10**6, 10**6]}}, "row [01] .* GiB"),
    "a tensor of terabytes": ([[-1, 1, "Conv", [16777216, 16]]], {}, "row 1 .* GiB"),
    "input channels": ([[-1, 1, "Conv", [65536]], [-1, 1, "AIFI", []]], {}, "row 2 .* GiB"),
    "input channels, added": (
        [[-1, 1, "Conv", [65536]], [-1, 1, "FocusedLinearAttention", [8]]],
        {},
        "GiB",
    ),
    "classes": ([[-1, 1, "Conv", [4096]], *[[[1], 1, "Detect", ["nc"]]] * 30], {"nc": 100_000}, "GiB"),
    "copies of a head": ([[-1, 1, "Conv", [1024]], *[[[1] * 8, 1, "Detect", ["nc"]]] * 9], {"end2end": True}, "GiB"),
    "copies of a layer": ([decoder(256, 300, 4, 8, 2000)], {}, "row 1 .* operations"),
    "decoders": ([decoder()] * 999, {}, "operations"),
    "decoders with small literals": ([decoder(16, 16, 1, 1, 1)] * 999, {}, "operations"),
    "regression bins": ([[[0], 1, "Detect", ["nc"]]], {"reg_max": 2**20}, "row 1 .* GiB"),
    "key points": ([[[0], 1, "Pose", ["nc", "kpt_shape"]]], {"kpt_shape": [9999, 3]}, "row 1 .* GiB"),
    "defaults": ([[-1, 1, "nn.Transformer", []]] * 99, {}, "row 13 .* GiB"),
    "norms": ([[-1, 1, "nn.LayerNorm", [[16777216]]]] * 40, {}, "row 16 .* GiB"),
    "small layers": ([[-1, 16, "C2f", [16]]] * 300, {}, "operations"),
    "blocks": ([[-1, 16, "ResNetLayer", [16, 4, 1, False, 4096]]], {}, "row 1 .* operations"),
}
LARGE_IMAGES = {  # rows of models that are built, and too large for the first image
    "scaled maps": [[-1, 1, "nn.Upsample", [None, 2, "nearest"]], [-1, 1, "Conv", [16]]] * 12,
    "transposed convolutions": [[-1, 1, "ConvTranspose", [256, 2, 2]]] * 8,
    "padding": [[-1, 1, "nn.ZeroPad2d", [200]]] * 20,
    "attention on pixels": [[-1, 1, "ConvTranspose", [128, 2, 2]], [-1, 1, "C3TR", [128]]],
    "attention at stride 2": [[-1, 1, "Conv", [128]], [-1, 1, "C2PSA", [128]]],
    "attention at stride 2 in areas": [[-1, 1, "Conv", [128]], [-1, 1, "A2C2f", [128, True, 1]]],
    "attention of an encoder": [[-1, 1, "Conv", [128]], [-1, 1, "AIFI", [128, 8]]],
    "attention with many heads": [[-1, 1, "Conv", [1024, 3, 2]], [-1, 1, "C2PSA", [1024, 16]]],
    "maps that are kept": [
        *(STEM, [-1, 1, "Conv", [2048]]),
        *[[-1, 1, "DWConv", [2048, 3]]] * 90,
        *([[*range(2, 90)], 1, "Concat", [1]], [0, 1, "Conv", [8]]),
    ],
    "classes": [[[0, 0], 1, "Detect", [20000]]] * 3,
}


# At night: they take long, and others are refused for the same reason
LENGTHY = "copies of a layer", "decoders", "transposed convolutions", "padding"


def refuse_all(kind: str, *names: str) -> None:
    """Build the files of a kind; print what is said of each, and the most memory that has been taken until then."""
    before = peak()
    for name in names or (LARGE_FILES if kind == "files" else LARGE_IMAGES):
        layers, settings, _ = LARGE_FILES[name] if kind == "files" else ([STEM, *LARGE_IMAGES[name]], {}, "")
        layers = json.loads(json.dumps(layers))  # no two rows are one list
        with no_hang(300):
            try:
                if kind == "files":
                    parse(*layers, **settings)
                else:
                    head = [[[len(layers) - 1], 1, "Detect", ["nc"]]]
                    d = {"nc": 2, "yaml_file": "strange.yaml", "backbone": layers, "head": head}
                    tasks.DetectionModel(d, verbose=False)
                said = "built"
            except RowError as e:
                said = str(e)
        gc.collect()
        assert _get_current_dispatch_mode() is None
        assert memory_limit.BuildsInProgress.count == 0
        print(json.dumps([name, said, (peak() - before) / MAX_BYTES]))


def run_refuse_all(*arguments: str, first: str = "") -> list:
    """Call `refuse_all` in a process of its own, whose largest size is its own."""
    lines = ["import sys", "sys.path[:0] = ['tests', 'tests/building']", "import test_memory_limit as t", first]
    code = "\n".join([*lines, f"t.refuse_all{arguments!r}"])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def check_files(found: list) -> None:
    for name, said, share in found:
        assert re.search(f"^strange.yaml, .*{LARGE_FILES[name][2]}", said), (name, said)
        assert share < 0.6, (name, share)


def test_rows_that_add_up(often):
    names = often([name for name in LARGE_FILES if name not in LENGTHY], list(LARGE_FILES))
    found = run_refuse_all("files", *names)
    assert [name for name, *_ in found] == names
    check_files(found)


def test_rows_that_add_up_where_torch_fills_new_tensors():
    """With deterministic algorithms torch writes into each new tensor, so none is created that is too large."""
    names = "kernels", "three channels", "a width"
    found = run_refuse_all("files", *names, first="t.torch.use_deterministic_algorithms(True)")
    assert len(found) == len(names)
    check_files(found)


@pytest.mark.nightly
def test_rows_that_add_up_on_the_first_image(often):
    names = often([name for name in LARGE_IMAGES if name not in LENGTHY], list(LARGE_IMAGES))
    found = run_refuse_all("images", *names)
    assert [name for name, *_ in found] == names
    for name, said, share in found:
        assert re.search("^strange.yaml, row .*(GiB are needed|multiplications|operations|pass through)", said), (
            name,
            said,
        )
        assert share < 1.1, (name, share)


# Rows that are not counted operation by operation ---------------------------------------------------------------------
class Recorder(TorchDispatchMode):
    """Records the most bytes that are held at once, and the results that are not views."""

    def __init__(self):
        super().__init__()
        self.held: dict[StorageWeakRef, int] = {}
        self.most, self.filled = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        size = 0 if is_in_place(func) else size_of_result(func, args, kwargs)
        result = func(*args, **kwargs)
        self.held = {storage: n for storage, n in self.held.items() if not storage.expired()}
        self.most = max(self.most, size + sum(self.held.values()))
        for x in [] if is_in_place(func) else tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dtype != torch.bool:  # all but masks
                self.held[StorageWeakRef(x.untyped_storage())] = x.numel() * x.element_size()
                if func._schema.name not in ("aten::empty", "aten::clone"):
                    self.filled.append(x.numel())
        self.most = max(self.most, sum(self.held.values()))
        return result


def build_usual_rows(names: list[str], channels: int):
    """Build rows of each class that are predictable, if its constructor takes them; give them with the result."""
    for name in names:
        f = [0, 0, 0] if name in ("Detect", "v10Detect", "RTDETRDecoder", "Concat") else 0
        leading = [channels] * {**LEADING_CHANNELS, **COUNTED_IN_FORWARD}[name]
        built = 0
        for n, tail in ((1, []), (1, [3, 1]), (1, [16, 1]), (1, [1, 16]), (1, [16, 16]), (1 if f else 16, [1, 1, 1])):
            rows = [[-1, 1, "Conv", [channels, 3, 2]], [f, n, name, [*leading, *tail]]]
            d = {"nc": 2, "yaml_file": "strange.yaml", "backbone": rows, "head": []}
            assert find_predictable_rows(rows, d) == {0: True, 1: name in LEADING_CHANNELS}
            try:
                with limit_memory() as active:
                    layer = parse_model(copy.deepcopy(d), ch=3, verbose=False)[0][1]
            except RowError:
                continue
            built += 1
            yield d, layer, active
        assert built, name


def test_each_tensor_of_a_predictable_row_is_counted_before_it_is_filled():
    """All but copies register their tensors, and fill none of more than a vector before."""
    for d, layer, active in build_usual_rows([*LEADING_CHANNELS, *COUNTED_IN_FORWARD], 64):
        tensors = [*layer.parameters(), *layer.buffers()]
        assert active.registered >= 0.98 * sum(x.numel() * x.element_size() for x in tensors), d
        with Recorder() as recorder:
            parse_model.__wrapped__(copy.deepcopy(d), 3, False)
        assert max(recorder.filled) <= 2048, d


@pytest.mark.parametrize("size", [8, 24])
def test_a_predictable_row_takes_no_more_than_its_bound(size):
    for d, layer, _ in build_usual_rows(list(LEADING_CHANNELS), 64):
        sources = d["backbone"][1][0]
        maps = [torch.zeros(1, 64, size, size) for _ in sources] if isinstance(sources, list) else None
        x = torch.zeros(1, 64, size, size) if maps is None else maps
        bound, _ = bound_forward(layer, x)
        try:
            with torch.no_grad(), Recorder() as recorder:
                layer(x)
        except (RuntimeError, ValueError):  # the map is too small, or of another size
            continue
        assert recorder.most <= bound, d


def test_what_is_predictable():
    """What is not known is counted."""
    for name in [*LEADING_CHANNELS, *COUNTED_IN_FORWARD]:
        assert isinstance(vars(tasks)[name], type), name

    def is_predictable(*row, **settings):
        return bool(find_predictable_rows([list(row)], {"nc": 2, "backbone": [], "head": [], **settings}))

    assert is_predictable(-1, 3, "C3k2", [512, "True", 0.25])
    assert is_predictable([1, 2], 1, "Detect", ["nc"])
    for args in ([64, 32], [64, 1, 1, 16], [64, [3, 3]], ["text"], [64, 3, 2, None, -64], [64, 3.5e6]):
        assert not is_predictable(-1, 1, "Conv", args), args
    assert not is_predictable(-1, 17, "Conv", [64])
    assert not is_predictable(-1, 9, "Conv", [64], depth_multiple=2.0)
    assert not is_predictable(-1, 1, "Conv", [64], activation="nn.ReLU()")  # it is built before row 0
    assert not is_predictable(-1, 1, "nn.Identity", [])
    assert not is_predictable(-1, 1, "RTDETRDecoder", ["nc", 256])
    assert not is_predictable(-1, 1, "Pose", ["nc", "kpt_shape"], kpt_shape=[17, 3])


@pytest.fixture
def deterministic():
    """Deterministic algorithms, as upstream's trainer asks for them."""
    init_seeds(0, deterministic=True)
    yield
    unset_deterministic()


def test_a_decoder_of_many_queries_is_counted_in_its_summary(monkeypatch):
    """The summary takes an image of at least as many cells."""
    seen = []
    monkeypatch.setattr(memory_limit.MemoryLimit, "count_registered_tensors", lambda self: seen.append(self))
    model = nn.Sequential(nn.Linear(1, 1))
    with limit_memory():
        memory_limit.summarise_within_limit(lambda _: None, model)
        assert len(seen) == 1
        model.num_queries = memory_limit.FIRST_IMAGE_ANCHORS + 1
        memory_limit.summarise_within_limit(lambda _: None, model)
        assert len(seen) == 1
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["rtdetr-l.yaml", "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("as_in_training", [False, True])
def test_a_usual_model_is_hardly_counted_and_comes_out_the_same(name, as_in_training, monkeypatch, request):
    """Each operation that is counted costs time; all of them, a fifth of the build.

    A training uses deterministic algorithms, and prints a summary.
    """
    if as_in_training:
        request.getfixturevalue("deterministic")
    counted = []
    dispatch = MemoryLimit.__torch_dispatch__
    monkeypatch.setattr(MemoryLimit, "__torch_dispatch__", lambda *args: counted.append(1) or dispatch(*args))
    model = tasks.RTDETRDetectionModel if name.startswith("rtdetr") else tasks.DetectionModel
    models, counts = [], []
    for find in (find_predictable_rows, lambda rows, d: {}):
        monkeypatch.setattr(rows, "find_predictable_rows", find)
        counted.clear()
        torch.manual_seed(0)
        models.append(model(yaml_model_load(name), verbose=as_in_training))
        counts.append(len(counted))
    assert counts[0] < counts[1] / 10
    assert torch.equal(models[0].stride, models[1].stride)
    first, second = (m.state_dict() for m in models)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_each_thread_counts_its_own():
    """Modules that another thread makes in the meantime are not counted."""
    done = threading.Event()
    models = []

    def make_others() -> None:
        while not done.wait(0.001):
            nn.Linear(512, 512)

    def build() -> None:
        with limit_memory() as active:
            parse([-1, 1, "C2f", [64]])
        models.append(active.registered)

    other = threading.Thread(target=make_others)
    other.start()
    builds = [threading.Thread(target=build) for _ in range(3)]
    for thread in builds:
        thread.start()
    for thread in builds:
        thread.join()
    done.set()
    other.join()
    build()
    assert len(models) == 4
    assert len(set(models)) == 1
    assert memory_limit.BuildsInProgress.count == 0


def test_what_added_backbones_take_is_counted():
    for name, cls in list(NAMES.items()):
        if READERS[cls] is not backbone or not cls.__module__.startswith("ultralytics."):
            continue
        with limit_memory() as active:
            arguments = ["resnet18"] if name == "Timm" else []
            model = parse_model({"nc": 2, "backbone": [[-1, 1, name, arguments]], "head": []}, ch=3, verbose=False)[0]
        held = sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])
        assert active.registered + active.bytes >= 0.98 * held, name  # the second for a row that is not predictable
