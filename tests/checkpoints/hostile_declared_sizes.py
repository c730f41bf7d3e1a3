"""Checkpoints that take much more memory or time to open than their files are large."""

from __future__ import annotations

import struct

from checkpoint_writer import (
    FORWARD,
    archive,
    case,
    dictionary,
    layer,
    name,
    number,
    pickled,
    program,
    reduce,
    storage,
    tensor,
    text,
)

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
