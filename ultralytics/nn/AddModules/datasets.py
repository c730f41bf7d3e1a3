"""Data sets come from anywhere: nothing that lies in one is run or fetched unasked, and a fault in one is one line.

A data file may hold a program (`download:`), and label caches of upstream's are pickles, which run what they hold. Here
the first runs for files that come with the package, or when the user says so, and the second are not read: labels are
kept as numbers and text.
"""

from __future__ import annotations

import functools
import json
import lzma
import math
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np

from ultralytics.nn.AddModules.errors import Refused, plain, quoted
from ultralytics.nn.AddModules.model_files import CLASSES
from ultralytics.utils import LOGGER, ROOT
from ultralytics.utils.patches import imread

__all__ = ()

ALLOW = "ULTRALYTICS_RUN_DOWNLOADS"  # set to 1, lets data files run and fetch what they ask for
YES = "1", "true", "yes", "on", "y", "t"  # as upstream reads such variables
# Of upstream's package; of ours, in a checkout and as it is installed
SHIPPED = tuple(folder / "datasets" for folder in (ROOT / "cfg", ROOT.parent / "cfg_custom", ROOT / "cfg_custom"))
FAULTS = OSError, ValueError, SyntaxError, TypeError, KeyError, AssertionError, RuntimeError  # as upstream raises them
KINDS = FileNotFoundError, SyntaxError, TypeError, AssertionError, RuntimeError  # of them, those that hold a line


class Unreadable(Refused):
    """An image that became unreadable; what a data loader's worker makes of it is a line again."""

    def __init__(self, said: str) -> None:
        super().__init__(said.strip().rpartition("\n")[2].rpartition(f"{type(self).__name__}: ")[2])


# What a data file asks for --------------------------------------------------------------------------------------------
def is_allowed() -> bool:
    """Whether the user lets data files run and fetch what they ask for."""
    return os.getenv(ALLOW, "").strip().lower() in YES


def is_shipped(file: Path) -> bool:
    """Whether a data file is, byte for byte, one that comes with the package."""
    known = [folder / file.name for folder in SHIPPED]
    return any(f.is_file() and f.read_bytes() == file.read_bytes() for f in known)


def consent(data: dict) -> None:
    """Refuse what a data file's `download:` would do; it is asked where the images are missing.

    Args:
        data: The data file's content, with its name as `yaml_file`.

    Raises:
        ValueError: If the file does not come with the package and the user has not said yes.
    """
    file, script = Path(data["yaml_file"]), data["download"].strip()
    if is_allowed() or is_shipped(file):
        return
    lines = [line for line in script.splitlines() if line.strip() and not line.lstrip().startswith("#")] or [script]
    first = next((line for line in lines if not re.match(r"\s*(import|from)\s", line)), lines[0])
    does = "fetch" if script.lower().startswith("http") else "run" if script.startswith("bash ") else "run as Python"
    more = f" … and {len(lines) - 1} more lines: read them" if lines[1:] else ""
    raise Refused(
        f"{file}: there are no images in {data['path']}, and `download:` would {does}: {quoted(first, 100)}{more}. "
        f"If you trust that, set {ALLOW}=1; else put the images there"
    )


def asked(convert: Callable) -> Callable:
    """Wrap `convert_ndjson_to_yolo_if_needed`: a file on this machine makes nobody fetch its images unasked."""

    @functools.wraps(convert)
    def run(data: Any, *args: Any, **kwargs: Any) -> Any:
        if str(data).endswith(".ndjson") and Path(data).is_file():
            urls = remote(Path(data))
            if urls and not is_allowed():
                raise Refused(
                    f"{data} names {len(urls)} images elsewhere and would fetch them: {quoted(urls[0], 100)} … If you "
                    f"trust that, set {ALLOW}=1; what was converted before is a data.yaml in Ultralytics' datasets_dir"
                )
        try:
            return convert(data, *args, **kwargs)
        except ModuleNotFoundError as e:
            raise plain(ImportError(f"{data} needs the package {e.name}, which is not installed")) from e
        except (AttributeError, *FAULTS) as e:
            raise one_line(e, data) from e

    return run


def remote(file: Path) -> list[str]:
    """Give the addresses of the images in an NDJSON file."""
    urls = []
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise Refused(f"{file}, line {number}: expected a JSON mapping, not {quoted(line, 80)}")
            check_classes(record, f"{file}, line {number}")
            parts = record, record.get("depth")
            urls += [part["url"] for part in parts if "file" in record and isinstance(part, dict) and part.get("url")]
    return urls


def check_classes(record: dict, where: str) -> None:
    """Raise a `ValueError` for a class number, as upstream makes a list of all up to the largest."""
    names, found = record.get("class_names"), record.get("annotations")
    rows = [rows for rows in found.values() if isinstance(rows, list)] if isinstance(found, dict) else []
    classes = [row[0] for kind in rows for row in kind if isinstance(row, list) and row]
    for key in [*(names if isinstance(names, dict) else ()), *classes]:
        number = str(key).removesuffix(".0")
        if not (number.isdecimal() and len(number) < 7 and int(number) < CLASSES):
            raise Refused(f"{where}: the class {quoted(key, 40)} is no number below {CLASSES:,}")


# The data file --------------------------------------------------------------------------------------------------------
def check(data: dict) -> None:
    """Raise a `ValueError` for what upstream takes from a data file and fails on, or takes all memory for."""
    file = data.get("yaml_file")

    def expect(key: str, true: bool, what: str) -> None:
        if not true:
            raise Refused(f"{file}, `{key}:` expected {what}, not {quoted(data[key], 100)}")

    def is_whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if not data.keys() - {"yaml_file"}:
        raise Refused(f"{file} is empty: a data file has train, val and names")
    for key in ("train", "val", "test"):
        value = data.get(key)
        if value is not None:
            paths = value if isinstance(value, list) else [value]
            expect(key, all(isinstance(p, str) and "\0" not in p for p in paths), "a path or a list of paths")
            expect(key, key == "test" or any(paths), "a path or a list of paths")
    if data.get("names") is not None:
        names = data["names"]
        expect("names", isinstance(names, (list, dict)) and len(names) > 0, "a list or a mapping of one class or more")
        keys = names if isinstance(names, dict) else range(len(names))
        found = sorted(int(k) for k in keys if is_whole(k) or isinstance(k, str) and k.isdecimal())
        expect("names", found == list(range(len(names))), f"the numbers from 0 to {len(names) - 1}, each once, as keys")
        expect("names", len(names) <= CLASSES, f"{CLASSES:,} classes at most")
    if isinstance(data.get("nc"), (int, float)):
        expect("nc", data["nc"] is not True and 0 < data["nc"] <= CLASSES, f"a number of classes from 1 to {CLASSES:,}")
    if data.get("channels") is not None:
        expect("channels", is_whole(data["channels"]) and 0 < data["channels"] <= 1024, "a number from 1 to 1024")
    if data.get("kpt_shape") is not None:
        shape = data["kpt_shape"]
        right = isinstance(shape, list) and len(shape) == 2 and all(is_whole(x) and 0 <= x < 10000 for x in shape)
        expect("kpt_shape", right, "[points, 2 or 3]")
    for key in ("path", "download"):
        expect(key, data.get(key) is None or isinstance(data[key], str), "text")


def told(read: Callable) -> Callable:
    """Wrap what reads a data set: what is wrong with it is one line."""

    @functools.wraps(read)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        except FAULTS as e:
            raise one_line(e, args[0] if args else "") from e

    return call


def one_line(error: Exception, of: Any) -> Exception:
    """Give the error to raise for one of upstream's: of the same type, where that can hold a line.

    Args:
        error: Upstream's error.
        of: What was read: a data set, or what the user gave as one.
    """
    if getattr(error, "plain", False):
        return error
    said = error.__cause__ if isinstance(error.__cause__, FAULTS) else error
    text = str(said.args[0] if isinstance(said, KeyError) and said.args else said)
    line = quoted(text.partition(" Supported formats are:")[0])  # thirty endings of files
    data = getattr(of, "data", None)
    where = data.get("yaml_file", "") if isinstance(data, dict) else str(of)
    line = line if where in line else f"{where}: {line}"
    kind = next((kind for kind in KINDS if isinstance(error, kind)), Refused)
    return plain(kind(line))


def unwrapped(get_dataset: Callable) -> Callable:
    """Wrap the trainer's `get_dataset`, which puts every error into one of its own: a plain one is raised as it was."""

    @functools.wraps(get_dataset)
    def get(self: Any) -> dict:
        try:
            return get_dataset(self)
        except RuntimeError as e:
            if getattr(e.__cause__, "plain", False):
                raise e.__cause__ from None
            raise

    return get


# Label caches ---------------------------------------------------------------------------------------------------------
ARRAY = "array"  # the only key of a mapping that stands for one: its type, its shape and where its numbers begin


def packed(tree: dict) -> bytes:
    """Write mappings, lists, text, numbers and arrays of numbers: a line of JSON, and behind it the arrays' numbers."""
    parts, size = [], 0

    def array(value: Any) -> Any:
        nonlocal size
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise TypeError(f"no {type(value).__name__} can be kept in a label cache")
        parts.append(value.tobytes())
        size += value.nbytes
        return {ARRAY: [value.dtype.str, value.shape, size - value.nbytes]}

    return json.dumps(tree, default=array).encode() + b"\n" + b"".join(parts)


def unpacked(data: bytes) -> dict:
    """Read what `packed` has written."""
    head, _, numbers = data.partition(b"\n")
    left = len(numbers)

    def array(value: dict) -> Any:
        nonlocal left
        if value.keys() != {ARRAY}:
            return value
        kind, shape, start = value[ARRAY]
        if not re.fullmatch(r"[<>|][biuf]\d", kind):
            raise ValueError("no numbers")
        dtype = np.dtype(kind)
        left -= math.prod(shape) * dtype.itemsize
        if left < 0:
            raise ValueError("arrays over one another")
        if not 0 <= start <= len(numbers) - math.prod(shape) * dtype.itemsize:
            raise ValueError("no array of numbers")  # numpy itself would read in front of the buffer
        return np.ndarray(shape, dtype, numbers, start).copy()

    return json.loads(head, object_hook=array)


def harmless(load_dataset_cache_file: Callable) -> Callable:
    """Replace `load_dataset_cache_file`, which unpickles: what `packed` has not written is made anew."""

    @functools.wraps(load_dataset_cache_file)
    def load(path: Path) -> dict:
        data = Path(path).read_bytes()
        try:
            return unpacked(data)
        except (ValueError, TypeError, KeyError, RecursionError):
            LOGGER.warning(f"{path} is not a label cache of this version's: it is not opened, and made anew")
            raise FileNotFoundError(path) from None  # of which each release knows what to do

    return load


def kept(save_dataset_cache_file: Callable) -> Callable:
    """Wrap `save_dataset_cache_file`, which pickles: a cache is written by `packed`."""

    @functools.wraps(save_dataset_cache_file)
    def save(*args: Any, **kwargs: Any) -> None:
        with patch.object(np, "save", lambda file, tree: file.write(packed(tree))):
            save_dataset_cache_file(*args, **kwargs)

    return save


# Labels ---------------------------------------------------------------------------------------------------------------
def pointed(verify_image_label: Callable) -> Callable:
    """Wrap `verify_image_label`, which leaves an image with wrong labels out: the line names the file and the row."""

    @functools.wraps(verify_image_label)
    def verify(args: tuple) -> Any:
        result = verify_image_label(args)
        _, file, _, keypoints, classes, points, dims, single = args
        corrupt, found = result[-2], None
        if corrupt and os.path.isfile(file):
            found = wrong_row(file, 1e9 if single else classes, 5 + points * dims if keypoints else None)
        return (*result[:-1], f"{result[-1].partition('image/label: ')[0]}image/label: {found}") if found else result

    return verify


def wrong_row(file: str, classes: float, columns: int | None) -> str | None:
    """Say which row of a label file is the first wrong one, and why.

    Args:
        file: The label file.
        classes: How many classes there are.
        columns: How many numbers a row must have; without, those of a box or a polygon.
    """
    try:
        rows = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return f"{file} is no text in UTF-8"
    above = 0  # numbers of the rows above
    for number, row in enumerate(rows, 1):
        words = row.split()
        try:
            values = np.array(words, dtype=np.float32)  # as upstream reads them
        except ValueError:
            said = f"expected numbers, not {quoted(row, 60)}"
        else:
            n, least = len(values), values[1:].min(initial=0)
            if n and n != columns and (columns or n != 5 and (n < 7 or n % 2 == 0)):
                said = f"expected {columns or 'class x y width height, or a class and a polygon'}, not {n} numbers"
            elif n and above and (n == 5) != (above == 5) and not columns:
                said = f"has {n} numbers, rows above it {above}: boxes and polygons are mixed"
            elif not np.isfinite(values).all():
                said = f"{quoted(row, 60)} is not finite"
            elif n and (values[0] % 1 or not 0 <= values[0] < classes):
                said = f"class {words[0]} is none of 0 to {classes - 1:.0f}"
            elif not columns and (values[1:].max(initial=0) > 1.01 or least < -0.01 or n == 5 and values[3:].min() < 0):
                said = f"expected fractions of the image's width and height, 0 to 1, not {quoted(row, 60)}"
            else:
                above = n or above
                continue
        return f"{file}, row {number}: {said}"
    return None


# Images ---------------------------------------------------------------------------------------------------------------
HEIF = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"  # brands, behind "ftyp"


def identified(image_open: Callable, pillows: Callable) -> Callable:
    """Wrap upstream's `Image.open`, which installs a package for every file that Pillow cannot read: for HEIF only."""

    @functools.wraps(image_open)
    def open_image(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, (str, os.PathLike)):
            with open(file, "rb") as f:
                head = f.read(12)
            if head[4:8] != b"ftyp" or head[8:] not in HEIF:
                return pillows(file, *args, **kwargs)
        return image_open(file, *args, **kwargs)

    return open_image


def decoded(check_image: Callable) -> Callable:
    """Wrap `check_image`, which reads an image's header: one whose pixels cannot be read is left out, too."""

    @functools.wraps(check_image)
    def check_pixels(file: str) -> tuple:
        found = check_image(file)
        jpeg = str(file).lower().endswith((".jpg", ".jpeg"))  # an eighth of its size is decoded fast
        if imread(file, cv2.IMREAD_REDUCED_COLOR_8 if jpeg else cv2.IMREAD_UNCHANGED) is None:
            raise ValueError("its pixels cannot be decoded")
        return found

    return check_pixels


def readable(load_image: Callable) -> Callable:
    """Wrap the data set's `load_image`: a cached image that is none is not used, and one that is gone is one line."""

    @functools.wraps(load_image)
    def load(self: Any, i: int, *args: Any, **kwargs: Any) -> tuple:
        npy = self.npy_files[i]
        if self.ims[i] is None and npy.exists() and not is_pixels(npy):
            LOGGER.warning(f"{self.prefix}{npy} is no image and is not used for {Path(self.im_files[i]).name}")
            self.npy_files[i] = npy.with_name(f".{npy.name}")
        try:
            return load_image(self, i, *args, **kwargs)
        except (OSError, ValueError, cv2.error) as e:
            said = (
                "is gone" if not os.path.exists(self.im_files[i]) else "cannot be decoded: remove it or save it again"
            )
            said = said if isinstance(e, FileNotFoundError) else f"cannot be read: {quoted(e)}"
            raise Unreadable(f"{Unreadable.__name__}: {self.im_files[i]} {said}") from e

    return load


def is_pixels(file: Path) -> bool:
    """Whether a .npy file is the image that upstream caches in one."""
    try:
        shape, dtype = (image := np.load(file, mmap_mode="r")).shape, image.dtype
    except Exception:  # of the file, and of the parsers of Python that numpy reads its head with
        return False
    return dtype in (np.uint8, np.uint16) and len(shape) in (2, 3) and min(shape) > 0


# Archives -------------------------------------------------------------------------------------------------------------
GROWTH = 100  # times an archive's own size that it may unpack to; images hardly shrink in one
SMALL = 2**30  # bytes that any archive may unpack to


def bounded(safe_download: Callable) -> Callable:
    """Wrap `safe_download`: an archive that would fill the disk is not unpacked, and a damaged one is one line."""

    @functools.wraps(safe_download)
    def fetch(
        url: Any, file: Any = None, dir: Any = None, unzip: bool = True, delete: bool = False, *args: Any, **kwargs: Any
    ) -> Path:
        found = safe_download(url, file, dir, False, False, *args, **kwargs)
        if not unzip:
            return found
        try:
            look_into(found)
            return safe_download(found, None, dir or found.parent, True, delete, *args, **kwargs)
        except (EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError) as e:
            raise Refused(f"{found} cannot be unpacked: {quoted(e)}. Copy or download it again") from e

    return fetch


def look_into(archive: Path) -> None:
    """Raise a `ValueError` for an archive that unpacks to far more than it holds."""
    most = max(SMALL, GROWTH * archive.stat().st_size)
    size = 0
    for part in parts(archive):
        size += part
        if size > most:
            raise Refused(
                f"{archive} is not unpacked: {archive.stat().st_size / 2**20:,.1f} MiB would become more than "
                f"{most / 2**30:,.1f} GiB. If that is right, unpack it yourself"
            )


def parts(archive: Path) -> Iterator[int]:
    """Give the sizes that the files of an archive say they have; no more is unpacked of each."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            yield from (member.file_size for member in z.infolist())
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield from (member.size for member in tar)
