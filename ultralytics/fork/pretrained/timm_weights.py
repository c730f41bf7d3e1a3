"""Find the weights that timm has for a model: in a file, by a name, by a tag of the model, or on the hub."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ultralytics.fork.errors import Refused, mark_as_plain
from ultralytics.utils import ONLINE, SETTINGS

PREFIX = "timm/"
SUFFIXES = ".safetensors", ".pth", ".bin"  # of files that are never checkpoints of Ultralytics

_weights_follow = contextvars.ContextVar("weights_follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Build models without the pretrained weights that their rows name: other weights will take their place."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def find_weights(name: str, pretrained: bool | str) -> tuple[str, dict[str, Any]]:
    """Find what a row's `pretrained` means for a model of timm.

    Args:
        name: Of the model, with or without a tag.
        pretrained: True, a tag of the model, a name with or without `timm/`, or a file.

    Returns:
        The model's name, with its tag, and the arguments of `timm.create_model` that load the weights; none within
        `weights_follow()`.

    Raises:
        Refused: For a tag that the model does not have, or weights of another model.
        FileNotFoundError: For a file that is not there.
        ConnectionError: If the weights are not on this machine and cannot be fetched.
    """
    import timm

    base, wanted = name.partition(".")[0], "" if pretrained is True else str(pretrained).removeprefix(PREFIX)
    file = None
    if wanted and wanted.partition(".")[0] == base:
        name = wanted
    elif wanted and f"{base}.{wanted}" in timm.list_pretrained(base):
        name = f"{base}.{wanted}"
    elif wanted and timm.is_model(wanted.partition(".")[0]):
        raise Refused(f"{pretrained} are weights of another model than the backbone, timm's {base}")
    elif wanted and not Path(wanted).suffix:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(base)]
        raise Refused(f"pretrained={pretrained}: {base} has the tags {', '.join(tags) or '(none)'}; or give a file")
    elif wanted and not _weights_follow.get():
        file = find_file(wanted)
    if _weights_follow.get():
        return name, {}
    file = file or find_file(name)
    if file is None and not timm.models.is_model_pretrained(name):
        raise Refused(f"timm has no weights for {name}; leave `pretrained` out, or give a file of weights")
    tensors = read_tensors(file) if file else fetch_tensors(name)
    return name, {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": tensors}}


def find_file(name: str) -> Path | None:
    """Find a file of weights by its path, or by a model's name in the folder of weights."""
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix in (*SUFFIXES, ".pt"):
        raise mark_as_plain(
            FileNotFoundError(f"{name} does not exist; expected a file, or the name of a model: pretrained=timm/NAME")
        )
    files = (Path(SETTINGS["weights_dir"], name + suffix) for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, and nothing else that may be in it."""
    from timm.models import load_state_dict

    try:
        tensors = load_state_dict(str(file), weights_only=True)
        assert tensors and all(isinstance(t, torch.Tensor) for t in tensors.values()), "it holds something else"
    except Exception as e:
        reason = " ".join(str(e).split())[:200]
        raise Refused(f"{file} is not a file of tensors (a state dict, as timm saves it): {reason}") from None
    return tensors


def fetch_tensors(name: str) -> dict[str, torch.Tensor]:
    """Let timm fetch a model's weights."""
    import timm

    try:
        with nullcontext() if ONLINE else use_cache_only():
            return timm.create_model(name, pretrained=True).state_dict()
    except Exception as e:
        found: Any = timm.models.get_pretrained_cfg(name)
        origin = found.to_dict()
        where = (
            f"model.safetensors of {origin['hf_hub_id']}" if origin.get("hf_hub_id") else origin.get("url", "its file")
        )
        place = Path(SETTINGS["weights_dir"], f"{name}.safetensors")
        raise mark_as_plain(
            ConnectionError(
                f"timm/{name}: its weights are not on this machine and could not be fetched ({type(e).__name__}); "
                f"put {where} at {place}, or anywhere and say pretrained=FILE"
            )
        ) from None


@contextmanager
def use_cache_only() -> Iterator[None]:
    """Let the hub's client look into its cache without asking for what is newer, six times and with pauses."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
