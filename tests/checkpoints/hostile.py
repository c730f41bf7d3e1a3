"""Checkpoints that would do harm if they were opened as Python opens pickles; run as a script, it opens them all.

    python tests/checkpoints/hostile.py FOLDER

A line of JSON for each: what it ended in, how long it took, how much memory, and what it did that a load does not.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "hostile-was-here"  # a file that a case would make
CASES: dict[str, Callable[[Path], None]] = {}


# Pickles, put together by hand ----------------------------------------------------------------------------------------
def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def reduce(path: str, *args: bytes) -> bytes:
    return name(path) + tuple_of(*args) + b"R"


def dictionary(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def layer(path: str = "torch.nn.modules.linear.Identity", **attributes: bytes) -> bytes:
    """Write a layer that has nothing in it but what is named."""
    ordered = reduce("collections.OrderedDict")
    state = {"_parameters": ordered, "_buffers": ordered, "_modules": ordered, "training": b"\x89", **attributes}
    return name(path) + b")\x81" + dictionary(**state) + b"b"


def storage(numel: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return tuple_of(text("storage"), name(f"torch.{kind}"), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(size: tuple, stride: tuple, offset: int = 0, numel: int = 4) -> bytes:
    dims = tuple_of(*map(number, size)), tuple_of(*map(number, stride))
    hooks = reduce("collections.OrderedDict")
    return reduce("torch._utils._rebuild_tensor_v2", storage(numel), number(offset), *dims, b"\x89", hooks)


def program(body: bytes, protocol: int = 2) -> bytes:
    """Write a checkpoint's pickle, whose model is what `body` leaves."""
    return b"\x80" + bytes([protocol]) + dictionary(model=body) + b"."


def archive(data: bytes, *more: tuple[str, bytes], compress: int = zipfile.ZIP_STORED, root: str = "x/") -> bytes:
    """Write an archive as torch does."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as out:
        for record, content in [(f"{root}data.pkl", data), (f"{root}data/0", bytes(16)), (f"{root}version", b"3\n")]:
            out.writestr(record, content)
        for record, content in more:
            out.writestr(record, content)
    return file.getvalue()


def case(title: str, data: bytes | Callable[[], bytes]) -> None:
    CASES[title] = lambda file: file.write_bytes(data() if callable(data) else data)


def pickled(title: str, body: bytes, protocol: int = 2) -> None:
    case(title, lambda: archive(program(body, protocol)))


# Functions that are called --------------------------------------------------------------------------------------------
TOUCH = text(f"touch {MARK}")
CODE = text(f"open('{MARK}', 'w')")
for path, args in {
    "os.system": [TOUCH],
    "posix.system": [TOUCH],
    "nt.system": [TOUCH],
    "os.popen": [TOUCH],
    "subprocess.Popen": [TOUCH],
    "subprocess.getoutput": [TOUCH],
    "pty.spawn": [text("true")],
    "builtins.eval": [CODE],
    "builtins.exec": [CODE],
    "__builtin__.eval": [CODE],
    "builtins.compile": [CODE, text("x"), text("exec")],
    "builtins.open": [text(MARK), text("w")],
    "builtins.__import__": [text("antigravity")],
    "importlib.import_module": [text("antigravity")],
    "runpy._run_code": [CODE, b"}"],
    "timeit.timeit": [CODE],
    "shutil.rmtree": [text(MARK)],
    "webbrowser.open": [text("http://127.0.0.1:9")],
    "operator.attrgetter": [text("system")],
    "functools.partial": [b"}", TOUCH],
    "types.FunctionType": [text("x"), b"}"],
    "code.InteractiveInterpreter": [],
    "numpy.load": [text(MARK)],
    "numpy.core.multiarray._reconstruct": [name("numpy.ndarray"), tuple_of(number(10**12)), text("O")],
    "torch.load": [text(MARK)],
    "torch.jit.load": [text(MARK)],
    "torch.hub.load": [text("x/y"), text("z")],
    "torch.storage._load_from_bytes": [text("x")],
    "torch._utils._rebuild_wrapper_subclass": [text("x")],
    "torch.utils.cpp_extension.load_inline": [text("x"), text("y")],
    "torch.utils.collect_env.run": [TOUCH],
    "torch.distributed.rpc.init_rpc": [text("x")],
    "bytearray": [number(2**40)],
    "builtins.bytearray": [number(2**40)],
    "builtins.range": [number(2**40)],
    # of modules whose classes are allowed
    "ultralytics.nn.tasks.torch_safe_load": [text(MARK)],
    "ultralytics.nn.tasks.yaml_model_load": [text("http://127.0.0.1:9/x.yaml")],
    "ultralytics.nn.tasks.check_requirements": [text("antigravity")],
    "ultralytics.nn.AddModules.registry.register": [name("torch.nn.modules.linear.Identity")],
    "ultralytics.nn.AddModules.layers.tokens.multiply": [number(1), number(1), number(1)],
    "ultralytics.fork.atomic_write.write_atomically": [text(MARK), text("x")],
    "ultralytics.fork.checkpoints.allowed_calls.make_path": [text(MARK)],
    "ultralytics.utils.downloads.safe_download": [text("http://127.0.0.1:9/x")],
    "torch.nn.modules.module.register_module_forward_hook": [name("torch.nn.modules.linear.Identity")],
    "torch.nn.modules.utils._ntuple": [number(3)],
    "timm.layers.helpers.to_ntuple": [number(3)],
    "torchvision.models._api.get_model": [text("resnet18")],
    "torchvision.models.resnet18": [],
    # classes, whose constructors would run
    "torch.nn.modules.linear.Linear": [number(10**6), number(10**6)],
    "ultralytics.nn.tasks.DetectionModel": [text("http://127.0.0.1:9/x.yaml")],
    "ultralytics.nn.modules.block.TorchVision": [text("resnet18"), text("DEFAULT")],
    "ultralytics.utils.IterableSimpleNamespace": [number(1)],
    "torch.nn.modules.linear.Identity": [],
    "torch.jit._script.ScriptModule": [],
    "_codecs.encode": [text("x"), text("rot13")],
    "collections.OrderedDict": [number(3)],
    "pathlib.PosixPath": [number(3)],
    "torch.Size": [tuple_of(tuple_of(number(3)))],
}.items():
    pickled(f"calls {path}", reduce(path, *args))

LINEAR = name("torch.nn.modules.linear.Linear")
for attribute in "__init__", "__globals__", "__class__", "__reduce__", "register_forward_hook", "load_state_dict":
    pickled(f"takes {attribute} of a class", name("builtins.getattr") + tuple_of(LINEAR, text(attribute)) + b"R")
    pickled(f"takes {attribute} of a layer", name("builtins.getattr") + tuple_of(layer(), text(attribute)) + b"R")
FORWARD = name("builtins.getattr") + tuple_of(LINEAR, text("forward")) + b"R"
pickled("takes __globals__ of forward", name("builtins.getattr") + tuple_of(FORWARD, text("__globals__")) + b"R")
pickled("calls forward", FORWARD + tuple_of(text("x")) + b"R")
DOTTED = text("ultralytics.nn.tasks") + text("torch.os.system") + b"\x93"
pickled("takes a dotted name", DOTTED + tuple_of(TOUCH) + b"R", 4)
pickled("takes a module", name("ultralytics.nn.tasks.torch"))

pickled("a partial of a function", reduce("functools.partial", name("os.system")))
pickled("a partial of a model", reduce("functools.partial", name("ultralytics.nn.tasks.DetectionModel")))
PARTIAL = reduce("functools.partial", LINEAR)
pickled("a partial that is called", PARTIAL + tuple_of(number(10**6), number(10**6)) + b"R")
pickled("a partial that replaces forward", layer(forward=PARTIAL))
STATE = tuple_of(name("os.system"), tuple_of(TOUCH), b"}", dictionary(x=FORWARD))
pickled("a partial that is filled with more", PARTIAL + STATE + b"b")
pickled("a namespace that is called", name("types.SimpleNamespace") + b")R" + dictionary(keys=PARTIAL) + b"b")
case(
    "a namespace as the arguments of a training",
    lambda: archive(b"\x80\x02" + dictionary(model=layer(), train_args=name("types.SimpleNamespace") + b")R") + b"."),
)
case("a list as the model", lambda: archive(b"\x80\x02" + dictionary(model=b"]") + b"."))
SHARED = b"K\x01" + b"q\x01h\x01\x86" * 60
pickled("tuples of the same tuples of the same tuples", b"]" + SHARED + b"a")
LONG = b"(" + b"N" * 100_000 + b"tq\x02"
pickled("a long tuple held by the thousand", b"](" + LONG + b"h\x02" * 1000 + b"e")
OWNER = "ultralytics.nn.AddModules.EMO.DropPath"
METHOD = name("builtins.getattr") + tuple_of(name(OWNER), text("forward")) + b"R"
for replaced in ("train", "_apply", "eval", "to", "float"):
    pickled(f"replaces {replaced} by a method of its own", layer(OWNER, **{replaced: METHOD}))
pickled("takes register of the owner's files", layer(forward=name("ultralytics.nn.AddModules.registry.register")))
pickled(
    "takes a module that the owner's file imports", layer(act=name("ultralytics.nn.AddModules.registry.make_divisible"))
)
EMPTY_ARRAY = reduce(
    "numpy.core.multiarray._reconstruct",
    name("numpy.ndarray"),
    tuple_of(number(0)),
    reduce("_codecs.encode", text("b"), text("latin1")),
)
for title, shape, data in (
    ("an array of a terabyte", (2**40,), b"x"),
    ("an array that is multiplied", (2**20, 2**20, 0, 1), b"x"),
    ("an array of minus one", (-1,), b"x"),
    ("an array without numbers", (4,), b""),
):
    dims = tuple_of(*map(number, shape))
    content = reduce("_codecs.encode", text(data.decode()), text("latin1"))
    dtype = reduce("numpy.dtype", text("u1"))
    pickled(title, EMPTY_ARRAY + tuple_of(number(1), dims, dtype, b"\x89", content) + b"b")
pickled(
    "an array of objects",
    EMPTY_ARRAY + tuple_of(number(1), tuple_of(number(1)), reduce("numpy.dtype", text("O")), b"\x89", b"]") + b"b",
)
EINOPS = name("einops.layers.torch.Rearrange") + b")\x81"
for title, pattern, sizes in (
    ("a pattern of a megabyte", "a " * 500_000 + "-> a", b"}"),
    ("a pattern that is none", "a b -> c", b"}"),
    ("a pattern with sizes that are none", "(a b) -> a b", dictionary(a=text("x"))),
    ("a pattern with a size of 2 ** 60", "(a b) -> a b", dictionary(a=number(2**60))),
):
    pickled(title, EINOPS + dictionary(pattern=text(pattern), axes_lengths=sizes) + b"b")
pickled("a pattern with more", EINOPS + dictionary(pattern=text("a -> a"), axes_lengths=b"}", _modules=b"}") + b"b")

# Objects that are made and filled -------------------------------------------------------------------------------------
pickled("makes an object with arguments", LINEAR + tuple_of(number(10**6), number(10**6)) + b"\x81")
pickled("makes an object with keywords", LINEAR + b")}\x92", 4)
pickled("makes a tuple", name("builtins.tuple") + b")\x81")
pickled("fills a class", LINEAR + dictionary(forward=FORWARD) + b"b")
pickled("fills a tensor", tensor((4,), (1,)) + dictionary(x=number(1)) + b"b")
pickled("fills a dictionary", reduce("collections.OrderedDict") + dictionary(items=FORWARD) + b"b")
pickled("replaces forward", layer(forward=FORWARD))
pickled("replaces forward by a class", layer(forward=name("ultralytics.nn.tasks.DetectionModel")))
pickled("replaces forward by a layer", layer(forward=layer()))
pickled("replaces forward by an activation", layer(forward=name("torch.nn.functional.relu")))
pickled(
    "takes torch.load of torch's functions",
    name("builtins.getattr") + tuple_of(name("torch._C._VariableFunctionsClass"), text("from_file")) + b"R",
)
pickled("calls an activation", reduce("torch.nn.functional.relu", tensor((4,), (1,))))
pickled("calls torch's functions", reduce("torch._C._VariableFunctionsClass"))
pickled("keeps a class that is called", layer(act=name("ultralytics.nn.tasks.DetectionModel")))
pickled("hooks into forward", layer(_forward_hooks=b"}" + number(0) + FORWARD + b"s"))
pickled("hooks into state_dict", layer(_state_dict_hooks=b"}" + number(0) + FORWARD + b"s"))
pickled("has no layers", name("torch.nn.modules.linear.Identity") + b")\x81}b")
pickled("has no attributes", name("torch.nn.modules.linear.Identity") + b")\x81")
pickled("has layers that are none", layer(_modules=dictionary(x=number(1))))
pickled("has parameters that are none", layer(_parameters=dictionary(x=number(1))))
pickled("has slots", layer() + b"N" + dictionary(forward=FORWARD) + b"\x86b")
pickled("is no dictionary of attributes", layer() + b"]b")
pickled("sets an item of a layer", layer("torch.nn.modules.container.ModuleList") + number(0) + number(1) + b"s")
pickled("appends to a layer", layer("torch.nn.modules.container.ModuleList") + number(0) + b"a")
pickled("instance", b"(" + TOUCH + b"ios\nsystem\n")
pickled("object", b"(" + name("os.system") + TOUCH + b"o")
pickled("extension", b"\x82\x01")
pickled("persistent text", b"Px\n")
pickled("persistent module", tuple_of(text("module"), LINEAR, text("x"), text("y")) + b"Q")
pickled("a buffer from elsewhere", b"\x97", 5)
MODELOPT = dictionary(model=layer(), modelopt=dictionary(x=number(1)))
case("quantizes as another package says", lambda: archive(b"\x80\x02" + MODELOPT + b"."))

# What is declared larger than it is -----------------------------------------------------------------------------------
pickled("a storage of a terabyte", tensor((1,), (1,), numel=2**38))
pickled("a storage that is not there", storage(4, "7"))
pickled("a storage of minus one", tensor((1,), (1,), numel=-1))
pickled("a storage of a kind that is none", storage(4, kind="EvilStorage"))
pickled("a tensor beyond its storage", tensor((2**40,), (1,)))
pickled("a tensor behind its storage", tensor((1,), (1,), offset=2**40))
pickled("a tensor of one number a billion times", tensor((2**30, 2**10), (0, 0)))
pickled("a tensor that goes backwards", tensor((4,), (-1,), offset=3))
pickled("a tensor of many dimensions", tensor((1,) * 100, (1,) * 100))
pickled("a text of an exabyte", b"\x8d" + struct.pack("<Q", 2**60) + b"x", 4)
pickled("bytes of an exabyte", b"\x8e" + struct.pack("<Q", 2**60) + b"x", 4)
pickled("a frame of an exabyte", b"\x95" + struct.pack("<Q", 2**60) + b"x", 4)
pickled("a number of a gigabyte", b"\x8b" + struct.pack("<i", 2**30) + b"x")
pickled("a number of many digits", b"L" + b"9" * 10**6 + b"L\n")
SAME = b"".join(number((2**61 - 1) * i) + b"N" for i in range(1, 40000))
pickled("keys of one hash", b"}(" + SAME + b"u")
pickled("tuples of numbers as keys", b"}(" + b"".join(number(i) + b"\x85N" for i in range(5000)) + b"u")
pickled(
    "objects that are numbered to be of one hash", b"N" + b"".join(b"p%d\n" % ((2**61 - 1) * i) for i in range(40000))
)
case("a tensor of many names", lambda: many_names())
NAMES = text("ultralytics.nn.tasks") + b"q\x01" + b"0" + text("DetectionModel") + b"q\x02" + b"0"
pickled("a class named by the million", NAMES + b"](" + b"h\x01h\x02\x93" * 600_000 + b"e", 4)
pickled("a key whose hash takes for ever", b"})" + b"q\x00h\x00\x86" * 50 + number(1) + b"s")
pickled("a set whose hash takes for ever", b"\x8f()" + b"q\x00h\x00\x86" * 50 + b"\x90", 4)


def in_itself() -> bytes:
    """Write a layer whose layer is itself."""
    ordered = reduce("collections.OrderedDict")
    held = {"_parameters": ordered, "_buffers": ordered, "_modules": b"}" + text("0") + b"h\x00s"}
    return name("torch.nn.modules.container.Sequential") + b")\x81q\x00" + dictionary(**held) + b"b"


def deep() -> bytes:
    """Write layers in layers, deeper than Python calls functions."""
    ordered = reduce("collections.OrderedDict")
    head = name("torch.nn.modules.container.Sequential") + b")\x81}("
    head += text("_parameters") + ordered + text("_buffers") + ordered + text("_modules") + b"}" + text("0")
    return head * 5000 + layer() + b"sub" * 5000


pickled("a layer in itself", in_itself())
pickled("layers in layers in layers", deep())
case("a pickle of 100 MiB", lambda: archive(program(b"]" * 100 * 2**20)))

HEADS = {"head_dim": b"](K\x00K\x00e", "num_heads": number(2**40)}
pickled("a list a trillion times", layer("ultralytics.nn.modules.block.AAttn", **HEADS))
RECURRENT = {"all_weights": b"](](K\x00ee", "num_layers": number(2**40), "bidirectional": b"\x89"}
pickled("a trillion layers", layer("torch.nn.modules.rnn.LSTM", **RECURRENT))
LISTS = {"_all_weights": b"]", "_flat_weights": b"]", "_flat_weights_names": b"]", "num_layers": number(0)}
pickled("layers without a list", layer("torch.nn.modules.rnn.GRU", **{**LISTS, "bidirectional": b"\x89"}))
pickled("a list of others", layer("torch.nn.modules.rnn.GRU", **{**LISTS, "_all_weights": b"](](X\x01\0\0\0xee"}))


def marked(**marks: bytes) -> bytes:
    """Write a layer with a parameter that has attributes."""
    ordered = reduce("collections.OrderedDict")
    parts = tensor((4,), (1,)), b"\x89", ordered, dictionary(**marks)
    return layer(_parameters=dictionary(weight=reduce("torch._utils._rebuild_parameter_with_state", *parts)))


pickled("a parameter with another method", marked(backward=number(0)))
pickled("a parameter with a function", marked(mark=FORWARD))


def diamond() -> bytes:
    """Write pairs of layers that share the two below them: a walk visits the last ones 2 ** 60 times."""
    begin, ordered = name("torch.nn.modules.container.Sequential") + b")\x81}(", reduce("collections.OrderedDict")
    begin += text("_parameters") + ordered + text("_buffers") + ordered + text("_modules")
    body = layer() + b"q\x00" + b"0" + layer() + b"q\x01" + b"0"
    for _ in range(60):
        pair = begin + b"}(" + text("0") + b"h\x00" + text("1") + b"h\x01" + b"uub"
        body += pair + b"q\x02" + b"0" + pair + b"q\x01" + b"0h\x02q\x00" + b"0"
    return body + b"h\x00"


def many_names() -> bytes:
    """Write a tensor in half precision that is three hundred buffers of a layer, each of which becomes one in full."""
    buffers = {f"x{i}": b"h\x00" for i in range(300)}
    half = tensor((2**21,), (1,), numel=2**21).replace(b"FloatStorage", b"HalfStorage").replace(text("0"), text("1"))
    return archive(program(half + b"q\x00" + b"0" + layer(_buffers=dictionary(**buffers))), ("x/data/1", bytes(2**22)))


def shared_lists() -> bytes:
    """Write a data set's name that is lists of lists, 2 ** 60 in all."""
    data = b"]q\x00" + b"0](h\x00h\x00eq\x00" * 60
    return b"\x80\x02" + dictionary(model=layer(), train_args=dictionary(data=data)) + b"."


def many(made: bytes, times: int) -> bytes:
    """Write a list of many."""
    return b"](" + made * times + b"e"


SPREAD = tensor((2**20,), (0,))
pickled("a small tensor a thousand times", many(SPREAD, 1000))
pickled("sets by the million", many(b"\x8f", 3_000_000), 4)
pickled("dictionaries by the million", many(b"}", 3_000_000))
ENCODE = name("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R"
pickled("a text that is copied and copied", text("x" * 10**6) + b"q\x00" + b"0" + many(ENCODE, 2500))
pickled("layers that share layers that share layers", diamond())
pickled("a name of several lines", reduce("os.x\x1b[2J\x1b]0;evil\x07"))
pickled("a graph with code", layer("torchvision.models.feature_extraction.DualGraphModule"))

# Archives -------------------------------------------------------------------------------------------------------------
GOOD = program(layer())
case("compressed", lambda: archive(GOOD, compress=zipfile.ZIP_DEFLATED))
case("a bomb of zeros", lambda: archive(GOOD, ("x/data/1", bytes(2**28)), compress=zipfile.ZIP_DEFLATED))
for record in "../../evil", "/evil", "x/../../evil", "x\\..\\evil", "C:\\evil":
    case(f"a record named {record}", lambda record=record: archive(GOOD, (record, b"x")))
case("two pickles", lambda: archive(GOOD, ("x/data.pkl", program(reduce("os.system", TOUCH)))))
case("two folders", lambda: archive(GOOD, ("y/data.pkl", program(reduce("os.system", TOUCH)))))
case("many records", lambda: archive(GOOD, *((f"x/data/r{i}", b"") for i in range(40000))))
case("no pickle", lambda: archive(GOOD).replace(b"data.pkl", b"data.pkx"))
case("a directory of a million", lambda: listing(1_000_000, 4))
case("a directory of a million, as it says", lambda: listing(1_000_000, 2**16 - 1))
case("the same record a thousand times", lambda: listing(1000, 1000 + 4, bytes(2**26)))
case("encrypted", lambda: flagged(archive(GOOD)))
case("records over one another", lambda: overlapping())
case("an archive behind an archive", lambda: archive(program(reduce("os.system", TOUCH))) + archive(GOOD))
case("an archive behind a text", lambda: b"MZ hello" + archive(GOOD))
case("two directories", lambda: two_directories())
case("TorchScript", lambda: archive(GOOD, ("x/constants.pkl", b"\x80\x02)."), ("x/code/__torch__.py", b"")))
case("code beside it", lambda: archive(GOOD, ("x/code/__torch__.py", b"")))


def flagged(data: bytes) -> bytes:
    """Set the flag of encryption."""
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        i = data.index(mark)
        data = data[: i + at] + b"\x01" + data[i + at + 1 :]
    return data


def two_directories() -> bytes:
    """Let the end record point at the directory of TorchScript, and another one stand in front of that record.

    torch follows the record, and would run the code; Python's zipfile reads what stands in front of it.
    """
    code = ("x/constants.pkl", b"\x80\x02)."), ("x/code/__torch__.py", b"")
    theirs, ours = archive(GOOD, *code, ("x/data/9", bytes(9000))), archive(GOOD)
    begin, end = theirs.index(b"PK\x01\x02"), theirs.index(b"PK\x05\x06")
    first = ours.index(b"PK\x01\x02")
    entries = [b"PK\x01\x02" + entry for entry in ours[first : ours.index(b"PK\x05\x06")].split(b"PK\x01\x02")[1:]]
    for i, entry in enumerate(
        entries
    ):  # Python adds to each offset by how much the directory is not where it should be
        (offset,) = struct.unpack("<I", entry[42:46])
        entries[i] = entry[:42] + struct.pack("<I", offset + begin - first) + entry[46:]
    missing = end - begin - sum(map(len, entries))  # made up for by a comment, so that both are of one size
    entries[-1] = entries[-1][:32] + struct.pack("<H", missing) + entries[-1][34:] + bytes(missing)
    record = theirs[end : end + 12] + struct.pack("<IIH", end - begin, begin, 0)
    return theirs[:end] + ours[:first] + b"".join(entries) + record


def listing(times: int, count: int, content: bytes = b"x") -> bytes:
    """Let the directory list a record many times, and say a number of records."""
    data = archive(GOOD, ("x/data/1", content))
    start, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    entries = data[start:end] + data[data.rindex(b"PK\x01\x02") : end] * times
    return data[:start] + entries + data[end : end + 8] + struct.pack("<HHIIH", count, count, len(entries), start, 0)


def overlapping() -> bytes:
    """Let ten entries of the directory be one record."""
    data = archive(GOOD, ("x/data/1", bytes(2**16)))
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[data.rindex(b"PK\x01\x02") : end]
    more = b"".join(entry.replace(b"x/data/1", b"x/data/%c" % (97 + i)) for i in range(10))
    counts = struct.pack("<HH", 14, 14) + struct.pack("<II", end - start + len(more), start)
    return data[:end] + more + data[end : end + 8] + counts + b"\0\0"


# No archives ----------------------------------------------------------------------------------------------------------
def legacy(body: bytes, keys: bytes = b"]") -> bytes:
    """Write a file as torch did before 1.6."""
    first = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(part, 2) for part in first]
    return b"".join(parts) + program(body) + b"\x80\x02" + keys + b"."


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in ("storages", "tensors", "pickle", "../evil"):
            info = tarfile.TarInfo(member)
            data = pickle.dumps(0, 2)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def disguised() -> bytes:
    """Write a tar archive that begins as a pickle does."""
    data = bytearray(tarred())
    data[0] = 0x80
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


OLD = tuple_of(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(2**38), b"N") + b"Q"
VIEW = tuple_of(text("0"), number(0), number(2**38))
case("old: calls os.system", lambda: legacy(reduce("os.system", TOUCH)))
case("old: a storage of a terabyte", lambda: legacy(OLD))
case("old: a view of a storage", lambda: legacy(OLD.replace(b"N", VIEW)))
SOURCE = tuple_of(text("module"), LINEAR, text("f"), text("s")) + b"Q"
case("old: source code of a class", lambda: legacy(SOURCE))
case("old: source code of a function", lambda: legacy(SOURCE.replace(LINEAR, name("os.system"))))
case("old: calls in its first pickle", lambda: b"\x80\x02" + reduce("os.system", TOUCH) + b".")
case("old: a pickle of 100 MiB", lambda: legacy(b"]" * 100 * 2**20))
case("a tar archive", tarred)
case("a tar archive that begins as a pickle", disguised)
case("a pickle of the first protocol", lambda: b"cos\nsystem\n(S'touch " + MARK.encode() + b"'\ntR.")
case("a plain pickle", lambda: program(reduce("os.system", TOUCH)))
case("empty", b"")
case("a text", b"hello, world\n" * 100)
case("a picture", b"\x89PNG\r\n\x1a\n" + bytes(1000))
case("a number", lambda: archive(b"\x80\x02K\x01."))
case("a list", lambda: archive(b"\x80\x02]."))
case("no model", lambda: archive(b"\x80\x02}."))
case("a model that is a text", lambda: archive(program(text("x"))))
case("a model that is a class", lambda: archive(program(LINEAR)))
case("a layer alone", lambda: archive(b"\x80\x02" + layer() + b"."))


def truncated(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut a checkpoint before, in and behind each of its parts."""
    ends = {0, 1, 2, 4, len(whole) - 1, len(whole) - 22}
    for mark in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"):
        i = whole.find(mark)
        while i >= 0:
            ends |= {i - 1, i, i + 1, i + 4, i + 20, i + 30}
            i = whole.find(mark, i + 1)
    for end in sorted(end for end in ends if 0 <= end < len(whole)):
        yield f"cut at {end} of {len(whole)}", whole[:end]


# What they do ---------------------------------------------------------------------------------------------------------
HARM = ("os.", "pty.", "subprocess.", "socket.", "shutil.", "tempfile.", "webbrowser.", "ctypes.dlopen")
HARMLESS = "os.putenv", "os.unsetenv", "os.listdir", "os.scandir", "os.walk", "os.fwalk"


def main(folder: Path) -> None:
    """Open each file of a folder, in the order of their names."""
    import resource

    from ultralytics import YOLO

    events: list[str] = []

    def hook(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or (event.startswith(HARM) and event not in HARMLESS):
            events.append(f"{event} {args[0] if args else ''}")

    os.chdir(folder)
    sys.addaudithook(hook)
    for file in sorted(folder.glob("*.pt")):
        events.clear()
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        plain = False
        try:
            line = f"opened: {type(YOLO(file).model).__name__}"
        except Exception as e:
            line, plain = str(e), getattr(e, "plain", False)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            json.dumps(
                {
                    "file": file.name,
                    "line": line,
                    "plain": plain,
                    "seconds": round(seconds, 3),
                    "MiB": (after - before) // 1024,
                    "events": events,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
