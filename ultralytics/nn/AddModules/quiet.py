"""Nothing is sent or fetched that nobody asked for.

Upstream's utils/__init__.py runs this file by its path, for `add_to_utils`, before the package can be imported: so what
is imported at its head is Python's own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = "agrees_in_half", "at_hand", "font_on_disk", "named", "not_installed"

# Settings that send something out. Upstream has had most of them on by itself, so that on in a settings file of its
# own says nothing of what the user wants
OUTWARD = frozenset({"sync", "clearml", "comet", "dvc", "hub", "mlflow", "neptune", "wandb"})
# What packages that upstream loads, if they are installed, would send or look up by themselves
VARIABLES = {
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}
# Fonts that have Chinese, Japanese and Korean, as systems name them
WIDE = (
    "Arial Unicode MS",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
)
HALF = 0.05  # of the norm: how far what half precision computes may be from fp32; it is 0.003
SCALE = 2**8  # of the loss, as a training scales its own: small gradients have few digits in half precision


def add_to_utils(names: dict[str, Any]) -> None:
    """Extend upstream's utils/__init__.py before it makes its settings: what goes out is off unless turned on here.

    Args:
        names: Its globals.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    names["AUTOINSTALL"] &= "YOLO_AUTOINSTALL" in os.environ
    settings = names["SettingsManager"]
    settings._load = loaded(settings._load)
    settings.update = recorded(settings.update)


def loaded(load: Callable) -> Callable:
    """Wrap the settings' `_load`: of what sends something out, only what the user turned on here is on."""

    @functools.wraps(load)
    def quietly(self: Any) -> None:
        self.defaults.update(dict.fromkeys(OUTWARD & self.defaults.keys(), False))
        load(self)
        dict.update(self, dict.fromkeys((OUTWARD & self.keys()) - turned_on(self), False))

    return quietly


def recorded(update: Callable) -> Callable:
    """Wrap the settings' `update`: what it turns on is noted beside the settings, what it turns off is struck out."""

    @functools.wraps(update)
    def note(self: Any, *args: Any, **kwargs: Any) -> None:
        update(self, *args, **kwargs)
        before = turned_on(self)
        now = {key for key in OUTWARD & self.keys() if self[key]}
        for key in sorted(now - before):
            print(f"{key} is on: it sends data out, until `yolo settings {key}=False`")
        if now != before:
            with contextlib.suppress(OSError):  # where upstream cannot write its file either, and says so
                register(self).write_text(json.dumps(sorted(now)), encoding="utf-8")

    return note


def register(settings: Any) -> Path:
    """Give the file that says what the user turned on, which upstream neither reads nor writes."""
    return settings.file.with_name("turned-on.json")


def turned_on(settings: Any) -> set[str]:
    """Give what the user turned on of what sends something out."""
    try:
        return set(json.loads(register(settings).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return set()


def listed(get_github_assets: Callable) -> Callable:
    """Wrap `get_github_assets`: upstream's files are those that the release names; a typo is not looked up."""

    @functools.wraps(get_github_assets)
    def get(repo: str = "ultralytics/assets", *args: Any, **kwargs: Any) -> tuple[str, list[str]]:
        return ("", []) if repo == "ultralytics/assets" else get_github_assets(repo, *args, **kwargs)

    return get


def named(overrides: dict[str, Any]) -> None:
    """Check the arguments of the command `yolo`: a model or data set that nobody names is not fetched.

    Raises:
        Refused: If upstream's default would be, as it is not on this machine.
    """
    from ultralytics.cfg import DEFAULT_CFG, TASK2DATA, TASK2MODEL
    from ultralytics.nn.AddModules.errors import Refused
    from ultralytics.utils import SETTINGS

    task, mode = overrides.get("task"), overrides.get("mode")
    model, data = (table.get(task, table["detect"]) for table in (TASK2MODEL, TASK2DATA))
    if not overrides.get("model", DEFAULT_CFG.model) and not is_there(model, SETTINGS["weights_dir"]):
        raise Refused(f"model= is missing: a file, such as model=rtdetr-l.yaml, or model={model}, which is downloaded")
    takes_default = mode == "train" and not overrides.get("resume") or mode == "benchmark"
    if takes_default and not overrides.get("data", DEFAULT_CFG.data):
        at_hand(data)


def at_hand(data: Any) -> Any:
    """Give a data set that nobody has named, upstream's default or a checkpoint's, if it need not be fetched.

    Raises:
        Refused: If it must be.
    """
    from ultralytics.nn.AddModules.datasets import is_shipped
    from ultralytics.nn.AddModules.errors import Refused
    from ultralytics.utils import ROOT, SETTINGS, YAML

    if Path(str(data)).is_file() and not is_shipped(Path(data)):  # the user's own
        return data
    file = ROOT / "cfg" / "datasets" / Path(str(data)).name
    folder = YAML.load(file).get("path") if file.is_file() else None if Path(str(data)).suffix else data
    if folder and not is_there(str(folder), SETTINGS["datasets_dir"]):
        raise Refused(f"data= is missing: a file, such as data=shapes.yaml, or data={data}, which is downloaded")
    return data


def is_there(name: str, folder: str) -> bool:
    """Whether a file or folder is where upstream looks for it."""
    return Path(name).exists() or Path(folder, name).exists()


def font_on_disk(name: str) -> str:
    """Give a font that is on this machine, for one that upstream would fetch; matplotlib brings one with it."""
    from matplotlib import font_manager

    from ultralytics.utils import LOGGER, USER_CONFIG_DIR

    if "Unicode" in name:
        files = {font.name: font.fname for font in font_manager.fontManager.ttflist if Path(font.fname).exists()}
        found = next((files[family] for family in WIDE if family in files), None)
        if found:
            return found
        LOGGER.warning(
            "no font of this machine has Chinese, Japanese and Korean: names in them are drawn as boxes until one is "
            f"put at {USER_CONFIG_DIR / name}"
        )
    return font_manager.findfont("DejaVu Sans")


def agrees_in_half(device: torch.device) -> bool:
    """Whether a device computes in half precision what it computes in fp32; upstream fetches a model to see it.

    Both ways through a few convolutions and their norms, on a photograph, with weights that are always the same.
    """
    import cv2
    import torch
    from torch import nn

    from ultralytics.nn.modules import Conv
    from ultralytics.utils import ASSETS, LOGGER, colorstr

    image = torch.from_numpy(cv2.resize(cv2.imread(str(ASSETS / "bus.jpg")), (256, 256)))
    x = image.permute(2, 0, 1)[None].float().to(device) / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(Conv(3, 32, 3, 2), Conv(32, 64, 3, 2), Conv(64, 64, 5, g=64), Conv(64, 32, 3))
    layers.to(device).train()

    def both_ways(half: bool) -> list[torch.Tensor]:
        with torch.enable_grad(), torch.autocast(device.type, torch.float16, enabled=half):
            y = layers(x)
            loss = SCALE * y.float().square().mean()
            return [y, *torch.autograd.grad(loss, list(layers.parameters()))]

    pairs = zip(both_ways(False), both_ways(True))
    agrees = all((a - b).norm() < HALF * a.norm() for a, b in pairs)  # not so where a number is not finite
    prefix = colorstr("AMP: ")
    if agrees:
        LOGGER.info(f"{prefix}checks passed ✅")
    else:
        LOGGER.warning(f"{prefix}half precision is wrong on this device, so that training is in fp32 (amp=False)")
    return agrees


def not_installed(packages: list[str], options: str = "") -> bool:
    """Say how to install what is missing, which upstream would do by itself; give False, as its check does."""
    from ultralytics.utils import LOGGER

    extras = sorted({extra for package in packages for extra in extras_with(package)})
    ways = [f"`uv run --extra {extra} …`" for extra in extras[:1]]
    ways += [f"`pip install {' '.join([*map(shlex.quote, packages), options]).strip()}`"]
    LOGGER.warning(
        f"{', '.join(packages)} is not installed, and nothing is installed unasked: {' or '.join(ways)} does it, and "
        "YOLO_AUTOINSTALL=true lets such packages be installed when they are missed"
    )
    return False


def extras_with(package: str) -> set[str]:
    """Give the extras of this project that bring a package."""
    name = re.match(r"[\w.-]*", package)[0].lower()
    found = (re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)", line) for line in metadata.requires("ultralytics") or ())
    return {match[2] for match in found if match and match[1].lower() == name}


def hushed(load: Callable) -> Callable:
    """Wrap what imports OpenVINO: else the import itself is reported."""

    @functools.wraps(load)
    def quietly(*args: Any, **kwargs: Any) -> Any:
        hush_openvino()
        return load(*args, **kwargs)

    return quietly


def hush_openvino() -> None:
    """Keep OpenVINO and NNCF from reporting to their makers, who take no answer for consent.

    What the user has said with OpenVINO's own `opt_in_out` holds.
    """
    try:
        from openvino_telemetry import Telemetry
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    except ImportError:
        return
    if hasattr(OptInChecker.check, "__wrapped__"):
        return
    OptInChecker.check = consenting(OptInChecker.check, ConsentCheckResult)
    begun = getattr(Telemetry, "_SingletonMetaClass__single_instance", None)  # by an import of the user's own
    if begun:
        begun.consent = OptInChecker().check(False) is ConsentCheckResult.ACCEPTED


def consenting(check: Callable, results: Any) -> Callable:
    """Wrap the check of a consent: no answer is a no."""

    @functools.wraps(check)
    def answer(*args: Any, **kwargs: Any) -> Any:
        found = check(*args, **kwargs)
        return results.DECLINED if found is results.NO_FILE else found

    return answer
