"""Read the pickle of a checkpoint, in a bounded number of steps: its opcodes make and fill objects, and run nothing.

A pickle is a program that calls what it names. Here it can name the classes of models (of torch, torchvision, timm,
einops, upstream, this fork, and the owner's own in nn/AddModules) and a few kinds of data. A class is made empty and
filled, its constructor is not called.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch

from ultralytics.fork.checkpoints.allowed_calls import FUNCTIONS, call_function, make_object
from ultralytics.fork.checkpoints.allowed_names import Reference, current_path, find_class
from ultralytics.fork.checkpoints.archive import PICKLE_LIMIT
from ultralytics.fork.checkpoints.refusal import Violation
from ultralytics.fork.checkpoints.state_checks import (
    check_element_count,
    check_keys,
    check_storage,
    fill_object,
    hold,
    require_type,
    set_items,
)

STEPS_LIMIT = 2_000_000  # the largest model, in the middle of a training, takes 1.25 million
STEPS = {  # of opcodes that make an object of some hundred bytes; others are one step
    16: (pickle.REDUCE,),
    10: (pickle.EMPTY_SET, pickle.BUILD, pickle.FROZENSET, pickle.NEWOBJ, pickle.BINPERSID),
    8: (pickle.GLOBAL, pickle.STACK_GLOBAL),
    4: (pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.MARK),
}
TUPLE_KEYS_LIMIT = 1000  # a model has none
REFUSED_OPCODES = (  # constructors with arguments, registries, buffers from elsewhere
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


class CountedOpcodes(dict):
    """The methods of an unpickler by opcode; each look-up counts its steps, as some opcodes make much of one byte."""

    STEPS = {code[0]: steps for steps, codes in STEPS.items() for code in codes}

    def __init__(self, methods: dict):
        super().__init__(methods)
        self.steps = 0

    def __getitem__(self, code: int) -> Callable:
        self.count_steps(self.STEPS.get(code, 1))
        return super().__getitem__(code)

    def count_steps(self, steps: int) -> None:
        """Count steps.

        Raises:
            Violation: If there are more than a model needs.
        """
        self.steps += steps
        if self.steps > STEPS_LIMIT:
            raise Violation("has a pickle of more steps than the pickle of any model")


class Unpickler(pickle._Unpickler):
    """Python's unpickler in Python, the one whose opcodes can be replaced, with opcodes that check what they do."""

    sizes: dict[str, int] | int  # of the storages, or of the file
    dispatch: dict[int, Any] = dict(pickle._Unpickler.dispatch)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dispatch = CountedOpcodes(type(self).dispatch)
        self.storages: set[str] = set()  # keys that were referred to
        self.declared_bytes = self.elements = 0  # of those storages, of all tensors
        self.found: dict[str, Any] = {}  # by path
        self.tuple_keys = 0

    def find_class(self, module: str, name: str) -> Any:
        """Find what the checkpoint names, once for each path."""
        path = f"{module}.{name}"
        if path not in self.found:
            current = current_path(path)
            is_function = current in FUNCTIONS
            self.found[path] = Reference(current, FUNCTIONS[current]) if is_function else find_class(current)
        return self.found[path]

    def load_reduce(self) -> None:
        """Call a function of the allowed ones."""
        args = self.stack.pop()
        self.dispatch.count_steps(count_items(args))
        self.stack[-1] = result = call_function(self.stack[-1], args)
        if isinstance(result, torch.Tensor):  # tensors may share a storage, but a conversion copies each
            self.elements += result.numel()
            check_element_count(self.elements, self.declared_bytes)

    def load_newobj(self) -> None:
        """Make an empty object of an allowed class."""
        args, cls = self.stack.pop(), self.stack.pop()
        self.append(make_object(cls, args, self.dispatch.count_steps))

    def load_build(self) -> None:
        """Fill an object with its checked state."""
        state = self.stack.pop()
        self.dispatch.count_steps(count_items(state))
        fill_object(self.stack[-1], state, self.dispatch.count_steps)

    def load_binpersid(self) -> None:
        """Refer to a storage, whose size is checked."""
        pid = self.stack.pop()
        if type(self.sizes) is int and type(pid) is tuple and pid[:1] == ("module",) and len(pid) == 4:
            self.append(pid[1])  # the class; torch would compare its source, and write a patch into the folder
            return
        nbytes = check_storage(pid, self.sizes)
        self.declared_bytes += nbytes if pid[2] not in self.storages else 0
        self.storages.add(pid[2])
        if type(self.sizes) is int and self.declared_bytes > self.sizes:
            raise Violation(f"declares storages of {self.declared_bytes} bytes, more than the file has")
        self.append(self.persistent_load(pid))

    def load_put(self) -> None:
        """Number an object."""
        number = self.readline()[:-1]
        if not 0 <= int(number[:12]) <= PICKLE_LIMIT or len(number) > 12:
            raise Violation("numbers its objects as no pickle does")
        self.memo[int(number)] = self.stack[-1]

    def load_setitem(self) -> None:
        """Put a key and a value into a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        """Put keys and values into a dictionary."""
        self.set_items(self.pop_mark())

    def load_dict(self) -> None:
        """Make a dictionary of keys and values."""
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def set_items(self, items: list) -> None:
        """Put keys and values, which alternate, into the dictionary on top of the stack."""
        self.count_tuple_keys(items[::2])
        set_items(self.stack[-1], items, self.dispatch.count_steps)

    def count_tuple_keys(self, keys: list) -> list:
        """Return the keys; bound the count of tuples among them, whose hashes can be made to collide."""
        self.tuple_keys += sum(type(key) is tuple for key in keys)
        if self.tuple_keys > TUPLE_KEYS_LIMIT:
            raise Violation(f"has more than {TUPLE_KEYS_LIMIT} tuples as keys")
        return keys

    def load_append(self) -> None:
        """Append to a list."""
        value = self.stack.pop()
        require_type(self.stack[-1], list).append(hold(value, self.dispatch.count_steps))

    def load_appends(self) -> None:
        """Extend a list."""
        items = self.pop_mark()
        require_type(self.stack[-1], list).extend([hold(x, self.dispatch.count_steps) for x in items])

    def load_additems(self) -> None:
        """Add to a set."""
        items = self.pop_mark()
        require_type(self.stack[-1], set).update(check_keys(self.count_tuple_keys(items)))

    def load_frozenset(self) -> None:
        """Make a frozen set."""
        self.append(frozenset(check_keys(self.count_tuple_keys(self.pop_mark()))))

    def refuse_opcode(self) -> None:
        """Refuse an opcode that torch does not write."""
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
    **dict.fromkeys(REFUSED_OPCODES, Unpickler.refuse_opcode),
}.items():
    Unpickler.dispatch[_code[0]] = _method


def make_unpickler_class(sizes: dict[str, int] | int) -> type[Unpickler]:
    """Make the unpickler of one file, given the sizes of its storages."""
    return type("Unpickler", (Unpickler,), {"sizes": sizes})


def count_items(value: Any) -> int:
    """Count the items that a function or an object is given, which it may copy."""
    sized = str, bytes, list, tuple, dict
    inner = value if type(value) is tuple else ()
    return sum(len(x) for x in (value, *inner) if isinstance(x, sized))
