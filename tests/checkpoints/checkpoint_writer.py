"""Writes checkpoints byte by byte, and keeps them as cases of a test, by title."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

MARK = "hostile-was-here"  # a file that a case would make
CASES: dict[str, Callable[[Path], None]] = {}


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


# What several cases name
TOUCH = text(f"touch {MARK}")
LINEAR = name("torch.nn.modules.linear.Linear")
FORWARD = name("builtins.getattr") + tuple_of(LINEAR, text("forward")) + b"R"
