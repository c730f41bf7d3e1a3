"""Checkpoints of strangers: opened without running what is in them.

A checkpoint is a pickle, and a pickle is a program that calls what it names. Here it can name the classes of models
(torch's, torchvision's, upstream's and ours) and a few kinds of data. A class is made empty and filled, its
constructor is never called; functions are the few of `FUNCTIONS`, which look at their arguments; and nothing that is
declared may be larger than the file. torch's own reader of storages does the rest.

`ULTRALYTICS_SAFE_LOAD=0` in the environment opens files that are trusted as Python does, with all that this runs.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import pathlib
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ultralytics.nn.AddModules.errors import Refused, quoted
from ultralytics.utils import USER_CONFIG_DIR

__all__ = ()

VARIABLE = "ULTRALYTICS_SAFE_LOAD"
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch, under which it opens no model
OPT_OUT = f"If you trust where it comes from, open it with {VARIABLE}=0 in the environment, which runs what it names"
PICKLE_LIMIT = 2**22  # bytes; that of the largest model, in the middle of a training, has 1.5 million
WORK_LIMIT = 2_000_000  # steps of the unpickler; the same has 1.25 million
WEIGHTS = {  # of opcodes that make an object of some hundred bytes, in steps
    16: (pickle.REDUCE,),
    10: (pickle.EMPTY_SET, pickle.BUILD, pickle.FROZENSET, pickle.NEWOBJ, pickle.BINPERSID),
    8: (pickle.GLOBAL, pickle.STACK_GLOBAL),
    4: (pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.MARK),
}
TUPLES_LIMIT = 1000  # as keys; a model has none
PLACES_LIMIT = 100_000  # of layers in layers; the same has 1,500
RECORDS_LIMIT = 2**15  # of an archive; the same model has 6,000
ENTRY = 2**10  # bytes of a record in its directory: a name, of the file itself and of the record, and some numbers

# Modules of Python whose nn.Module classes a checkpoint can name, and, with a dot, those below
CLASSES = (
    "clip.model",
    "torch.nn.modules.",
    "torchvision.models.",
    "torchvision.ops.",
    "torchvision.transforms.transforms",
    "ultralytics.nn.AddModules.",
    "ultralytics.nn.distill_model",
    "ultralytics.nn.modules",
    "ultralytics.nn.modules.",
    "ultralytics.nn.tasks",
    "ultralytics.nn.text_model",
)
CLIP = "clip.", "ultralytics.nn.text_model"  # the latter installs clip as it is imported
GRAPHS = "torchvision.models.feature_extraction"  # its class has code that it would run
# Those whose own classes it can name that are no nn.Module
PLAIN_CLASSES = "ultralytics.nn.distill_model", "ultralytics.utils.loss", "ultralytics.utils.tal"
DATA_CLASSES = {
    "torchvision.transforms.transforms.Compose",
    "torchvision.transforms.transforms.ToTensor",
    "ultralytics.utils.IterableSimpleNamespace",
}
ACTIVATIONS = {  # functions of torch
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6"),
    *("selu", "sigmoid", "silu", "softmax", "softplus", "tanh"),
}
INERT = {  # functions that are kept and never called with what a file says
    "clip.clip._convert_image_to_rgb",
    "ultralytics.nn.AddModules.Biformer.regional_routing_attention_torch",
    *(f"{home}.{name}" for home in ("torch.nn.functional", "torch._C._nn") for name in ACTIVATIONS),
}
ADDED = "ultralytics.nn.AddModules."
RENAMED = {  # names of earlier releases, and timm's of what EMO has
    "timm.layers.drop.DropPath": "ultralytics.nn.AddModules.EMO.DropPath",
    "timm.models.layers.drop.DropPath": "ultralytics.nn.AddModules.EMO.DropPath",
    "ultralytics.nn.modules.block.Silence": "torch.nn.modules.linear.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
}
MOVED = {
    "__builtin__.": "builtins.",
    "numpy._core.": "numpy.core.",
    "pathlib._local.": "pathlib.",
    "ultralytics.yolo.utils.": "ultralytics.utils.",
    "ultralytics.yolo.v8.": "ultralytics.models.yolo.",
}
UNUSED = (  # opcodes: constructors with arguments, registries, buffers from elsewhere
    pickle.PERSID,
    pickle.INST,
    pickle.OBJ,
    pickle.NEWOBJ_EX,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.LONG4,
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)
KEYS = str, int, float, bool, bytes, type(None)  # of dictionaries and sets: their hash is a step
EXACT = 2**53  # up to which whole numbers have a hash each; beyond, as many as one likes share one


_own: dict[Path, tuple[int, ...] | None] = {}  # checkpoints of this process's training


@dataclass(frozen=True)
class Name:
    """A class or function that a checkpoint has named: inert, until an opcode that may use it does."""

    path: str
    obj: Any


class Violation(Exception):
    """What a checkpoint does that none of a model does; the file is added on the way."""


class Missing(Exception):
    """What a checkpoint names that lies nowhere: to trust it does not help."""


def is_restricted() -> bool:
    """Whether checkpoints are opened without running what is in them."""
    return os.environ.get(VARIABLE, "").strip().lower() not in {"0", "false", "no", "off"}


def load(f: Any, map_location: Any = None, weights_only: bool = False, **kwargs: Any) -> Any:
    """Open what `torch.save` has written, as `torch.load` does, but run nothing of it.

    Args:
        f: A path, or a file that can be read from any position.
        map_location: As of `torch.load`.
        weights_only: Restrict the load even where `ULTRALYTICS_SAFE_LOAD=0` says otherwise.
        **kwargs: More of `torch.load`'s.

    Raises:
        Refused: For a file that names or does what no model's checkpoint does, or is no whole one; with the file, the
            name and what opens it nonetheless.
    """
    # Not torch.load, in whose place older releases put their own
    if not weights_only and (not is_restricted() or is_own(f)):
        return torch.serialization.load(f, map_location=map_location, **{**kwargs, "weights_only": False})
    kwargs.pop("pickle_module", None)
    where = f if isinstance(f, (str, os.PathLike)) else getattr(f, "name", "the checkpoint")
    if os.environ.get(FORCED, "0").lower() in {"1", "y", "yes", "true"}:
        raise Refused(f"{FORCED} keeps torch from opening {where}: unset it, this is restricted anyway")
    try:
        with opened(f) as file:
            sizes = survey(file)
        module = types.SimpleNamespace(__name__=__name__, Unpickler=restrict(sizes), load=None)
        module.load = lambda file, **options: module.Unpickler(file, **options).load()
        with uncollected():
            checkpoint = torch.serialization.load(
                f, map_location=map_location, **{**kwargs, "weights_only": False, "pickle_module": module}
            )
        if isinstance(checkpoint, dict) and checkpoint.get("modelopt"):
            raise Violation("is quantized as the package nvidia-modelopt does, which runs what the file says")
        total = sizes if type(sizes) is int else sum(sizes.values())
        for value in checkpoint.values() if isinstance(checkpoint, dict) else [checkpoint]:
            if isinstance(value, nn.Module):
                count_places(value, {})
                check_numbers(sum(map(numbers_of, value.modules())), total)
        return checkpoint
    except Violation as e:
        raise Refused(f"{where} {quoted(e)}. {OPT_OUT}") from None
    except Missing as e:
        raise Refused(f"{where} {quoted(e)}") from None
    except OSError as e:
        if e.errno is not None:  # not found, not readable
            raise
        raise broken(where, e) from None
    except Exception as e:  # of a damaged file, anything
        raise broken(where, e) from None


def broken(where: Any, error: Exception) -> Refused:
    """Give the error for a file that is no whole checkpoint."""
    what = quoted(error, 200)
    return Refused(f"{where} is damaged, or no checkpoint ({type(error).__name__}: {what}). Copy or download it again")


def is_own(f: Any) -> bool:
    """Whether a file is a checkpoint of this process's training, or upstream's note to the processes of one."""
    if not isinstance(f, (str, os.PathLike)):
        return False
    file = Path(os.path.realpath(f))
    note = file.parent == Path(os.path.realpath(USER_CONFIG_DIR)) / "DDP"
    return note or file in _own and _own[file] == identity(file)


def own(f: str | Path) -> None:
    """Note that a file is a checkpoint of this process's training, as long as nobody writes it anew."""
    file = Path(os.path.realpath(f))
    _own[file] = identity(file)


def identity(file: Path) -> tuple[int, ...] | None:
    """Tell a file from another one in its place."""
    if not file.exists():
        return None
    stat = file.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage among objects that are all being made, which takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def opened(f: Any) -> Iterator[Any]:
    """Open a path; leave an open file where it stands."""
    if isinstance(f, (str, os.PathLike)):
        with open(f, "rb") as file:
            yield file
    else:
        position = f.tell()
        yield f
        f.seek(position)


# Before anything is read ----------------------------------------------------------------------------------------------
def survey(file: Any) -> dict[str, int] | int:
    """Look at the form of a checkpoint.

    Args:
        file: The open file.

    Returns:
        The size of each storage of an archive, by its key; for the format before torch 1.6 the size of the file.

    Raises:
        Violation: For a form that torch does not write.
    """
    start = file.tell()
    begin = file.read(4)
    size = file.seek(0, os.SEEK_END)
    file.seek(start)
    if begin == b"PK\x03\x04":
        return survey_archive(file, size)
    if begin[:1] != b"\x80":
        raise ValueError("it does not begin as one")
    tar = tarfile.is_tarfile(file)  # which torch would unpack
    file.seek(start)
    if tar:
        raise Violation("is a tar archive, as torch wrote them before 2018")
    return size


def directory(file: Any, size: int) -> tuple[int, int, int]:
    """Say where torch reads the directory of an archive: where the record at the end says that it is.

    Python's zipfile looks for it in front of that record, and an archive with two would be another one for each.

    Returns:
        Where it begins, how many bytes it has, and how many records it lists.
    """
    file.seek(max(0, size - 42))
    tail = file.read(42)
    locator, end = tail[:20], tail[20:]
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("its last record is no end of an archive")
    stop = size - 22
    count, nbytes, begin = (int.from_bytes(end[a:b], "little") for a, b in ((10, 12), (12, 16), (16, 20)))
    if locator[:4] == b"PK\x06\x07":  # of a large archive
        stop = int.from_bytes(locator[8:16], "little")
        if stop != size - 98:
            raise Violation("has a second directory")
        file.seek(stop)
        record = file.read(56)
        count, nbytes, begin = (int.from_bytes(record[a : a + 8], "little") for a in (32, 40, 48))
    if begin + nbytes != stop:
        raise Violation("has a second directory")
    return begin, nbytes, count


def records(file: Any, size: int) -> list[zipfile.ZipInfo]:
    """List the records of an archive, in a time and a memory that its size bounds.

    Raises:
        Violation: For an archive that torch does not write.
    """
    begin, nbytes, count = directory(file, size)
    if count > RECORDS_LIMIT and is_restricted():
        raise Violation(f"has {count} records")
    file.seek(begin)
    if nbytes > ENTRY * count or file.read(nbytes).count(b"PK\x01\x02") != count:
        raise Violation("lists other records than it says")
    with zipfile.ZipFile(file) as archive:
        found = archive.infolist()
        if (archive.start_dir, len(found)) != (begin, count):
            raise Violation("has a second directory")
    alike = count - len({record.filename.lower() for record in found})  # which torch takes for the same
    if alike:
        raise Violation(f"has {alike} records of the name of another")
    if sum(record.compress_size for record in found) > size:
        raise Violation("declares more than the file holds")
    return found


def survey_archive(file: Any, size: int) -> dict[str, int]:
    """Look at the records of an archive, as `survey` does."""
    found = records(file, size)
    names = [record.filename for record in found]
    for record in found:
        name = record.filename
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise Violation(f"has a record {name[:80]!r} that is compressed or encrypted, which torch does not write")
        if record.file_size != record.compress_size:
            raise Violation(f"has a record {name[:80]!r} of two sizes")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Violation(f"has a record named {name[:80]!r}, which is a path to elsewhere")
    folders = {name.partition("/")[0] for name in names}
    inside = {name.partition("/")[2]: record.file_size for name, record in zip(names, found)}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise Violation("is a TorchScript archive, not a checkpoint; under the name .torchscript `yolo` runs it")
    if len(folders) != 1 or "data.pkl" not in inside:
        raise ValueError("it holds no data.pkl")
    if inside["data.pkl"] > PICKLE_LIMIT:
        raise Violation(f"has a pickle of {inside['data.pkl'] / 2**20:.0f} MiB; models have one of a few")
    return {name.removeprefix("data/"): size for name, size in inside.items() if name.startswith("data/")}


class Opcodes(dict):
    """The methods of an unpickler by their opcodes, which counts what is taken out: some make much of one byte."""

    WEIGHTS = {code[0]: weight for weight, codes in WEIGHTS.items() for code in codes}

    def __init__(self, methods: dict):
        super().__init__(methods)
        self.work = 0

    def __getitem__(self, code: int) -> Callable:
        self.charge(self.WEIGHTS.get(code, 1))
        return super().__getitem__(code)

    def charge(self, steps: int) -> None:
        """Count steps.

        Raises:
            Violation: If there are more than a model needs.
        """
        self.work += steps
        if self.work > WORK_LIMIT:
            raise Violation("has a pickle of more steps than that of any model")


# The pickle -----------------------------------------------------------------------------------------------------------
class Unpickler(pickle._Unpickler):
    """Python's unpickler, whose opcodes do less: it is the one in Python that lets them be changed."""

    sizes: dict[str, int] | int  # of the storages, or of the file
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dispatch = Opcodes(type(self).dispatch)
        self.storages: set[str] = set()  # that were referred to
        self.declared = self.numbers = 0  # bytes of those, numbers of all tensors
        self.names: dict[str, Any] = {}  # that were found
        self.tuples = 0  # as keys

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path not in self.names:
            self.names[path] = find(path)
        return self.names[path]

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.dispatch.charge(extent(args))
        self.stack[-1] = result = call(self.stack[-1], args)
        if isinstance(result, torch.Tensor):  # they may lie over one another, but become as large as they say
            self.numbers += result.numel()
            check_numbers(self.numbers, self.declared)

    def load_newobj(self) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.append(make(cls, args))

    def load_build(self) -> None:
        state = self.stack.pop()
        self.dispatch.charge(extent(state))
        fill(self.stack[-1], state)

    def load_binpersid(self) -> None:
        pid = self.stack.pop()
        if type(self.sizes) is int and type(pid) is tuple and pid[:1] == ("module",) and len(pid) == 4:
            self.append(pid[1])  # the class; torch would compare its source, and write a patch into the folder
        else:
            nbytes = check_storage(pid, self.sizes)
            self.declared += nbytes if pid[2] not in self.storages else 0
            self.storages.add(pid[2])
            if type(self.sizes) is int and self.declared > self.sizes:
                raise Violation(f"declares storages of {self.declared} bytes, more than the file has")
            self.append(self.persistent_load(pid))

    def load_put(self) -> None:
        number = self.readline()[:-1]
        if not 0 <= int(number[:12]) <= PICKLE_LIMIT or len(number) > 12:
            raise Violation("numbers its objects as no pickle does")
        self.memo[int(number)] = self.stack[-1]

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def load_setitems(self) -> None:
        self.put(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.put(items)

    def put(self, items: list) -> None:
        """Put keys and values into the dictionary on top of the stack."""
        self.count_tuples(items[::2])
        put(self.stack[-1], items)

    def count_tuples(self, keys: list) -> list:
        """Bound the tuples among keys, whose hashes can be made alike."""
        self.tuples += sum(type(key) is tuple for key in keys)
        if self.tuples > TUPLES_LIMIT:
            raise Violation(f"has more than {TUPLES_LIMIT} tuples as keys")
        return keys

    def load_append(self) -> None:
        value = self.stack.pop()
        expect(self.stack[-1], list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        expect(self.stack[-1], list).extend(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        expect(self.stack[-1], set).update(hashable(self.count_tuples(items)))

    def load_frozenset(self) -> None:
        self.append(frozenset(hashable(self.count_tuples(self.pop_mark()))))

    def load_refused(self) -> None:
        raise Violation("has an opcode in its pickle that torch does not write")


for _code, _method in {
    pickle.REDUCE: Unpickler.load_reduce,
    pickle.NEWOBJ: Unpickler.load_newobj,
    pickle.BUILD: Unpickler.load_build,
    pickle.BINPERSID: Unpickler.load_binpersid,
    pickle.PUT: Unpickler.load_put,
    pickle.SETITEM: Unpickler.load_setitem,
    pickle.SETITEMS: Unpickler.load_setitems,
    pickle.DICT: Unpickler.load_dict,
    pickle.APPEND: Unpickler.load_append,
    pickle.APPENDS: Unpickler.load_appends,
    pickle.ADDITEMS: Unpickler.load_additems,
    pickle.FROZENSET: Unpickler.load_frozenset,
    **{code: Unpickler.load_refused for code in UNUSED},
}.items():
    Unpickler.dispatch[_code[0]] = _method


def restrict(sizes: dict[str, int] | int) -> type[Unpickler]:
    """Give the unpickler of a file."""
    return type("Unpickler", (Unpickler,), {"sizes": sizes})


def find(path: str) -> Any:
    """Give what a checkpoint names.

    Raises:
        Violation: If it is no part of a model, with the name.
    """
    for old, new in MOVED.items():
        if path.startswith(old):
            path = new + path[len(old) :]
    path = RENAMED.get(path, path)
    if path in FUNCTIONS:
        return Name(path, FUNCTIONS[path])
    if path == "builtins.object":  # whose `__new__` makes what `extend` has had in its hands
        return Name(path, object)
    module, _, name = path.rpartition(".")
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    known = is_home(module) and name != name.lower()  # of what is no class, nothing is imported
    if module.startswith(CLIP) and importlib.util.find_spec("clip") is None:
        raise Violation(f"names {path[:200]}, which needs the package clip, which is not installed")
    if not (known or module in PLAIN_CLASSES or path in DATA_CLASSES | INERT):
        raise Violation(f"names {path[:200]}, which is no part of a model")
    try:
        obj = vars(importlib.import_module(module)).get(name)
    except ImportError:
        obj = None
    if path in INERT and obj is not None:
        return obj
    if isinstance(obj, type):
        home = obj.__module__
        layer = known and issubclass(obj, nn.Module) and is_home(home)
        if layer or path in DATA_CLASSES or module in PLAIN_CLASSES and home == module:
            return Name(path, obj)
    if obj is None and path.startswith(ADDED):
        raise Missing(
            f"names {path[:200]}, which is not here: put the file with {name[:100]} into {Path(__file__).parent}; "
            f"{VARIABLE}=0 does not help"
        )
    what = "is no class of a model" if obj is not None else "does not exist here"
    raise Violation(f"names {path[:200]}, which {what}")


def is_home(module: str) -> bool:
    """Whether a module of Python is one whose layers a checkpoint may name."""
    return module != GRAPHS and any(
        module == home or home.endswith(".") and module.startswith(home) for home in CLASSES
    )


def make(cls: Any, args: Any) -> Any:
    """Make an empty object of a class that a checkpoint may name."""
    if isinstance(cls, Name) and isinstance(cls.obj, type) and args == ():
        return cls.obj.__new__(cls.obj)
    raise Violation(f"makes an object of {describe(cls)} with arguments")


def call(function: Any, args: Any) -> Any:
    """Call a function that a checkpoint may name, with what such a call has."""
    if not isinstance(function, Name) or type(args) is not tuple:
        raise Violation(f"calls {describe(function)}")
    if isinstance(function.obj, type):
        if args or issubclass(function.obj, nn.Module):
            raise Violation(f"calls {function.path}")
        return function.obj.__new__(function.obj)
    try:
        return function.obj(*args)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as e:
        why = " ".join(str(e).split())[:100]
        raise Violation(f"calls {function.path} with what it does not take ({why})") from None


def fill(obj: Any, state: Any) -> None:
    """Give an object its attributes."""
    if isinstance(obj, np.dtype):  # the byte order; what else there could be is of records
        if not (type(state) is tuple and len(state) > 5 and state[2:5] == (None, None, None)):
            raise Violation("has an array of records")
        return
    if type(state) is tuple and len(state) == 2 and state[1] is None:
        state = state[0]
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise Violation(f"gives {describe(obj)} attributes that are no dictionary")
    if type(obj) is OrderedDict:  # a state_dict with the versions of its modules
        if set(state) - {"_metadata"}:
            raise Violation("gives an OrderedDict attributes")
        vars(obj).update(state)
    elif isinstance(obj, nn.Module):
        fill_module(obj, state)
    elif type(obj).__module__ in PLAIN_CLASSES or f"{type(obj).__module__}.{type(obj).__name__}" in DATA_CLASSES:
        check_attributes(obj, state)
        vars(obj).update(state)
    else:
        raise Violation(f"gives {describe(obj)} attributes")


def fill_module(module: nn.Module, state: dict) -> None:
    """Give a layer its attributes: parameters, buffers and layers, data, and nothing that runs."""
    for kind, content in (("_parameters", nn.Parameter), ("_buffers", torch.Tensor), ("_modules", nn.Module)):
        held = state.get(kind)
        if type(held) not in (dict, OrderedDict) or not all(
            type(key) is str and not key.startswith("__") and (value is None or isinstance(value, content))
            for key, value in held.items()
        ):
            raise Violation(f"has a {describe(module)} whose {kind} are others")
    for key in state:
        if "_hooks" in key and not only_distills(state[key]):
            raise Violation(f"has a {describe(module)} with {key}, which run")
        if isinstance(state[key], Name) and state[key].path.startswith("torch.nn.modules."):
            state[key] = state[key].obj  # torchvision's keep the class of their norms
    check_attributes(module, state)
    for key in ("head_dim", "num_heads"):  # with which upstream's AAttn computes as it is filled
        if type(state.get(key, 0)) is not int or state.get(key, 0) > 2**12:
            raise Violation(f"has a {describe(module)} whose {key} is no number of such")
    if isinstance(module, nn.RNNBase):
        check_recurrent(module, state)
    module.__setstate__(state)


def check_recurrent(module: nn.RNNBase, state: dict) -> None:
    """Refuse a recurrent layer whose list of weights is another: torch makes it anew, in loops as long as it says."""
    names, parameters = state.get("_flat_weights_names"), state["_parameters"]
    try:
        all_weights, flat = state["_all_weights"], state["_flat_weights"]
        right = [*parameters] == names == [name for layer in all_weights for name in layer]
        right &= len(all_weights) == state["num_layers"] * (1 + state["bidirectional"])
        right &= all(weight is parameters[name] for weight, name in zip(flat, names, strict=True))
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise Violation(f"has a {describe(module)} whose weights are others")


def only_distills(hooks: Any) -> bool:
    """Whether what is hooked into a layer is upstream's, which keeps its output for a distillation."""
    kinds = {f"{type(hook).__module__}.{type(hook).__name__}" for hook in (hooks.values() if hooks else ())}
    return kinds <= {"ultralytics.nn.distill_model.FeatureHook", "builtins.bool"}


def check_attributes(obj: Any, state: dict) -> None:
    """Refuse an attribute that would be run in place of a method of the object's class."""
    for key, value in state.items():
        if key.startswith("__"):
            raise Violation(f"has a {describe(obj)} with an attribute {key[:40]}")
        if isinstance(value, Name):
            raise Violation(f"has a {describe(obj)} whose {key} is {value.path}")
        there = getattr(type(obj), key, None)
        # Upstream calls a layer's class its `type`, which hides a method of torch's
        hides = callable(there) and (callable(value) or there is not getattr(nn.Module, key, None))
        # `forward` of a fused layer
        own = isinstance(value, types.MethodType) and value.__self__ is obj or is_own_forward(type(obj), value)
        if hides and not own:
            raise Violation(f"has a {describe(obj)} whose method {key} is another")


def is_own_forward(cls: type, value: Any) -> bool:
    """Whether a function is one of a layer's own class, for its forward."""
    name = getattr(value, "__name__", "")
    return name.startswith("forward") and getattr(cls, name, None) is value


def check_storage(pid: Any, sizes: dict[str, int] | int) -> int:
    """Check that a storage is as large as it says, `sizes` being of `survey`; give its bytes."""
    archive = isinstance(sizes, dict)
    if not (type(pid) is tuple and len(pid) == (5 if archive else 6) and pid[0] == "storage"):
        raise Violation("has a reference that is no storage's")
    _, kind, key, location, numel = pid[:5]
    dtype = kind.dtype if isinstance(kind, torch.serialization.StorageType) else None
    if dtype is None or not all(type(x) is str for x in (key, location)) or type(numel) is not int or numel < 0:
        raise Violation("has a reference that is no storage's")
    nbytes = numel * torch.empty((), dtype=dtype).element_size()
    if archive and sizes.get(key) != nbytes:
        raise Violation(f"declares {nbytes} bytes for the storage {key[:40]}, which has {sizes.get(key, 'none')}")
    if not archive and (pid[5] is not None or nbytes > sizes):
        raise Violation(f"declares {nbytes} bytes for the storage {key[:40]}, more than the file has")
    return nbytes


def extent(value: Any) -> int:
    """Count what a function or an object is given, which it may copy."""
    sized = str, bytes, list, tuple, dict
    inner = value if type(value) is tuple else ()
    return sum(len(x) for x in (value, *inner) if isinstance(x, sized))


def put(target: Any, items: list) -> None:
    """Put keys and values into a dictionary."""
    if type(target) not in (dict, OrderedDict):
        raise Violation(f"sets items of {describe(target)}")
    if len(items) % 2:
        raise Violation("has a key without a value")
    target.update(zip(hashable(items[::2]), items[1::2]))


def hashable(keys: list) -> list:
    """Refuse keys whose hash may take for ever, tuples of tuples of tuples, and those whose hashes are made alike."""
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        if not all(type(part) in KEYS for part in parts):
            raise Violation(f"has {describe(key)} as a key")
        if any(type(part) in (int, float) and abs(part) > EXACT for part in parts):
            raise Violation("has a number of many digits as a key")
    return keys


def no_tuples(keys: list) -> list:
    """Refuse tuples among keys where nobody counts them."""
    if any(type(key) is tuple for key in keys):
        raise Violation("has a tuple as a key")
    return keys


def expect(obj: Any, kind: type) -> Any:
    """Give an object that an opcode is for."""
    if type(obj) is not kind:
        raise Violation(f"adds to {describe(obj)}")
    return obj


def describe(obj: Any) -> str:
    return obj.path[:200] if isinstance(obj, Name) else f"{type(obj).__module__}.{type(obj).__name__}"


def count_places(layer: nn.Module, known: dict[int, int | None]) -> int:
    """Count the places in which layers stand, which a walk through a model visits one by one.

    Raises:
        Violation: If they are more than a model has: layers in themselves, or twice in twice in twice.
    """
    if id(layer) not in known:
        known[id(layer)] = None
        known[id(layer)] = 1 + sum(count_places(x, known) for x in layer._modules.values() if x is not None)
    if known[id(layer)] is None:
        raise Violation("has a layer in itself")
    if known[id(layer)] > PLACES_LIMIT:
        raise Violation(f"has layers in more than {PLACES_LIMIT} places")
    return known[id(layer)]


def numbers_of(layer: nn.Module) -> int:
    """Count the numbers of a layer's tensors, each as often as it is named: a change of type copies it as often."""
    return sum(x.numel() for held in (layer._parameters, layer._buffers) for x in held.values() if x is not None)


def check_numbers(numbers: int, declared: int) -> None:
    """Refuse tensors of more numbers than the bytes that a file declares can be meant for."""
    if numbers > 2**24 + 4 * declared:
        raise Violation(f"declares tensors of {numbers} numbers, more than the file holds")


# Functions that a checkpoint may call ---------------------------------------------------------------------------------
def rebuild_tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, requires_grad: bool = False, hooks: Any = None, *_: Any
) -> torch.Tensor:
    """Make a tensor that lies within its storage."""
    numbers = [offset, *size, *stride]
    if not all(type(x) is int and x >= 0 for x in numbers) or len(size) != len(stride) or len(size) > 64 or hooks:
        raise ValueError("no size")
    numel = storage._size()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if all(size) else -1
    if last >= numel or math.prod(size) > 2**31:
        raise ValueError(f"a size of {size} for {numel} elements")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, bool(requires_grad), OrderedDict())


def rebuild_parameter(data: torch.Tensor, requires_grad: bool, hooks: Any, marks: Any = None) -> nn.Parameter:
    """Make a parameter of a tensor, with what it is marked with, such as that no weight decay is for it."""
    if not isinstance(data, torch.Tensor) or hooks:
        raise ValueError("no tensor")
    parameter = nn.Parameter(data, requires_grad=bool(requires_grad))
    for key, value in (expect(marks, dict) if marks else {}).items():
        if type(key) is not str or type(value) not in KEYS or hasattr(parameter, key):
            raise ValueError(f"a mark {key!r}")
        vars(parameter)[key] = value
    return parameter


def get_attribute(obj: Any, name: str) -> Any:
    """Give what earlier releases keep of a layer: the forward of a class, or of a fused layer; a member of an enum."""
    if isinstance(obj, nn.Module) and name in {"forward", "forward_fuse"}:
        return types.MethodType(method_of(type(obj), name), obj)
    if isinstance(obj, Name) and isinstance(obj.obj, type) and type(name) is str and name.startswith("forward"):
        return method_of(obj.obj, name)
    if isinstance(obj, Name) and obj.obj is object and name == "__new__":
        return Name("builtins.object.__new__", lambda cls: make(cls, ()))
    if isinstance(obj, Name) and obj.obj is interpolation:
        return interpolation(name.lower())
    if isinstance(obj, Name) and obj.obj is of_torch and name in ACTIVATIONS and hasattr(torch, name):
        return getattr(torch, name)
    raise Violation(f"takes {str(name)[:80]!r} of {describe(obj)}")


def method_of(cls: type, name: str) -> Callable:
    function = getattr(cls, name)
    if not issubclass(cls, nn.Module) or not isinstance(function, types.FunctionType):
        raise ValueError(f"{name} is no method")
    return function


def interpolation(value: str) -> Any:
    """Give a member of torchvision's enum by its value."""
    from torchvision.transforms.functional import InterpolationMode

    return InterpolationMode(value)


def of_torch(*_: Any) -> None:
    """Stand for the class whose methods torch's functions are; nothing but an activation can be taken of it."""
    raise ValueError("not to be called")


def ordered(items: list = ()) -> OrderedDict:  # noqa: B006
    """Make a dictionary of pairs."""
    pairs = [expect(pair, type(pair) if type(pair) in (tuple, list) else tuple) for pair in items]
    hashable(no_tuples([key for key, _ in pairs]))
    return OrderedDict(pairs)


def make_set(items: list = ()) -> set:
    return set(hashable(no_tuples(expect(items, list) if items != () else [])))


def make_frozenset(items: list = ()) -> frozenset:
    return frozenset(make_set(items))


def make_dtype(code: str, *_: Any) -> np.dtype:
    """Make numpy's type of a number."""
    dtype = np.dtype(code if type(code) is str else "")
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {code!r}")
    return dtype


def make_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    if not isinstance(dtype, np.dtype) or type(data) is not bytes:
        raise ValueError("no number")
    return np.frombuffer(data, dtype, 1)[0]


def encode(text: str, encoding: str) -> bytes:
    """Give the bytes that protocol 2 writes as text."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


def make_path(*parts: str) -> Path:
    """Make a path, of any system."""
    if not all(type(part) is str for part in parts):
        raise ValueError("no path")
    return Path(*parts)


def of_numbers(make: Callable) -> Callable:
    """Let a function take numbers and texts only, or one tuple of them."""

    def checked(*args: Any) -> Any:
        flat = args[0] if len(args) == 1 and type(args[0]) is tuple else args
        if not all(x is None or type(x) in (int, float, str) for x in flat):
            raise ValueError("no numbers")
        return make(*args)

    return checked


FUNCTIONS: dict[str, Callable] = {
    "_codecs.encode": encode,
    "builtins.complex": of_numbers(complex),
    "builtins.frozenset": make_frozenset,
    "builtins.getattr": get_attribute,
    "builtins.set": make_set,
    "builtins.slice": of_numbers(slice),
    "collections.OrderedDict": ordered,
    "numpy.core.multiarray.scalar": make_scalar,
    "numpy.dtype": make_dtype,
    **{f"pathlib.{cls.__name__}": make_path for cls in (pathlib.PosixPath, pathlib.WindowsPath)},
    "torch.Size": of_numbers(torch.Size),
    "torch._C._VariableFunctionsClass": of_torch,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch.device": of_numbers(torch.device),
    "torchvision.transforms.functional.InterpolationMode": interpolation,
}
