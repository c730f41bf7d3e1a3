"""Checkpoints that are malformed as files: archives that lie, files of the format before torch 1.6, and other kinds."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator

from checkpoint_writer import LINEAR, MARK, TOUCH, archive, case, layer, name, number, program, reduce, text, tuple_of

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
