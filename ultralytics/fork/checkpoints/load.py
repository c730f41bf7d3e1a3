"""Open a checkpoint as `torch.load` does, without running what is in it.

`ULTRALYTICS_SAFE_LOAD=0` in the environment opens files that the user trusts as Python does, with all that they run.
"""

from __future__ import annotations

import gc
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ultralytics.fork.checkpoints.archive import read_storage_sizes
from ultralytics.fork.checkpoints.own_checkpoints import is_own
from ultralytics.fork.checkpoints.refusal import OPT_OUT, MissingModule, Violation, is_restricted
from ultralytics.fork.checkpoints.state_checks import check_model_size
from ultralytics.fork.checkpoints.unpickler import make_unpickler_class
from ultralytics.fork.errors import Refused, quote

__all__ = "OPT_OUT", "is_restricted", "load_checkpoint"

# What upstream takes of a checkpoint without a look at its type
USED_BY_UPSTREAM = {
    "train_args": (dict, type(None)),
    "model": (nn.Module, dict, torch.Tensor, type(None)),
    "ema": (nn.Module, dict, type(None)),
}
TORCH_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # environment variable under which torch opens no model


def load_checkpoint(
    f: Any,
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = False,
    load_trusted: Callable = torch.serialization.load,  # not torch.load, which older releases replace
    **kwargs: Any,
) -> Any:
    """Open what `torch.save` has written, without running it.

    Args:
        f: A path, or a file that can be read from any position.
        map_location: As of `torch.load`.
        pickle_module: As of `torch.load`, for trusted files only.
        weights_only: Restrict the load even where `ULTRALYTICS_SAFE_LOAD=0` says otherwise.
        load_trusted: Opens a file that is trusted.
        **kwargs: Further arguments of `torch.load`.

    Raises:
        Refused: For a file that names or does what no model's checkpoint does, or that is damaged; with the file, the
            name and how to open it nonetheless.
    """
    if not weights_only and (not is_restricted() or is_own(f)):
        return load_trusted(f, map_location, pickle_module, weights_only=False, **kwargs)
    name = f if isinstance(f, (str, os.PathLike)) else getattr(f, "name", "the checkpoint")
    if os.environ.get(TORCH_SWITCH, "0").lower() in {"1", "y", "yes", "true"}:
        raise Refused(f"{TORCH_SWITCH} keeps torch from opening {name}: unset it, this load is restricted anyway")
    try:
        return load_restricted(f, map_location, **kwargs)
    except Violation as e:
        raise Refused(f"{name} {quote(e)}. {OPT_OUT}") from None
    except MissingModule as e:
        raise Refused(f"{name} {quote(e)}") from None
    except Exception as e:  # a damaged file can raise any
        if isinstance(e, OSError) and e.errno is not None:  # not found, not readable
            raise
        raise Refused(
            f"{name} is damaged, or not a checkpoint ({type(e).__name__}: {quote(e, 200)}). Copy or download it again"
        ) from None


def load_restricted(f: Any, map_location: Any, **kwargs: Any) -> Any:
    """Open a checkpoint with the restricted unpickler; torch reads the storages."""
    with open_file(f) as file:
        sizes = read_storage_sizes(file)
    module = types.SimpleNamespace(__name__=__name__, Unpickler=make_unpickler_class(sizes), load=None)
    module.load = lambda file, **options: module.Unpickler(file, **options).load()
    with pause_garbage_collection():
        checkpoint = torch.serialization.load(f, map_location, module, weights_only=False, **kwargs)
    if isinstance(checkpoint, dict) and checkpoint.get("modelopt"):
        raise Violation("is quantized as the package nvidia-modelopt does, which runs what the file says")
    for key, kinds in USED_BY_UPSTREAM.items() if isinstance(checkpoint, dict) else ():
        if not isinstance(checkpoint.get(key), kinds):
            raise Violation(f"has a {type(checkpoint[key]).__name__} as {key}")
    declared = sizes if type(sizes) is int else sum(sizes.values())
    for value in checkpoint.values() if isinstance(checkpoint, dict) else [checkpoint]:
        if isinstance(value, nn.Module):
            check_model_size(value, declared)
    return checkpoint


@contextmanager
def open_file(f: Any) -> Iterator[Any]:
    """Open a path; leave an open file at its position."""
    if isinstance(f, (str, os.PathLike)):
        with open(f, "rb") as file:
            yield file
    else:
        position = f.tell()
        yield f
        f.seek(position)


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Pause Python's garbage collection, which takes most of the time while so many objects are made."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()
