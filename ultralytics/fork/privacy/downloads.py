"""Fetch no model, data set or font that nobody named.

Upstream's files import this file while they are half made: its head imports Python's own modules only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Fonts that have Chinese, Japanese and Korean, as systems name them
CJK_FONTS = (
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


def require_names(overrides: dict[str, Any]) -> None:
    """Check that the arguments of the command `yolo` name a model and a data set, or that the defaults are at hand.

    Raises:
        Refused: If upstream's default is not on this machine and would be fetched.
    """
    from ultralytics.cfg import DEFAULT_CFG, TASK2DATA, TASK2MODEL
    from ultralytics.fork.errors import Refused
    from ultralytics.utils import SETTINGS

    task, mode = overrides.get("task", "detect"), overrides.get("mode")
    model, data = (table.get(task, table["detect"]) for table in (TASK2MODEL, TASK2DATA))
    if not overrides.get("model", DEFAULT_CFG.model) and not is_on_disk(model, SETTINGS["weights_dir"]):
        raise Refused(f"model= is missing: a file, such as model=rtdetr-l.yaml, or model={model}, which is downloaded")
    takes_default = (mode == "train" and not overrides.get("resume")) or mode == "benchmark"
    if takes_default and not overrides.get("data", DEFAULT_CFG.data):
        require_local_data(data)


def require_local_data(data: Any) -> Any:
    """Give a data set that nobody has named, upstream's default or a checkpoint's, if it need not be fetched.

    Raises:
        Refused: If it is not on this machine.
    """
    from ultralytics.fork.data.download_consent import is_shipped
    from ultralytics.fork.errors import Refused
    from ultralytics.utils import ROOT, SETTINGS, YAML

    if Path(str(data)).is_file() and not is_shipped(Path(data)):  # the user's own
        return data
    file = ROOT / "cfg" / "datasets" / Path(str(data)).name
    folder = YAML.load(str(file)).get("path") if file.is_file() else None if Path(str(data)).suffix else data
    if folder and not is_on_disk(str(folder), SETTINGS["datasets_dir"]):
        raise Refused(f"data= is missing: a file, such as data=shapes.yaml, or data={data}, which is downloaded")
    return data


def is_on_disk(name: str, folder: str) -> bool:
    """Whether a file or folder is where upstream looks for it."""
    return Path(name).exists() or Path(folder, name).exists()


def find_font_on_disk(name: str) -> str:
    """Find a font on this machine in place of one that upstream would fetch; matplotlib brings one with it."""
    from matplotlib import font_manager

    from ultralytics.utils import LOGGER, USER_CONFIG_DIR

    if "Unicode" in name:
        files = {font.name: font.fname for font in font_manager.fontManager.ttflist if Path(font.fname).exists()}
        found = next((files[family] for family in CJK_FONTS if family in files), None)
        if found:
            return found
        LOGGER.warning(
            "no font of this machine has Chinese, Japanese and Korean: names in them are drawn as boxes until one is "
            f"put at {USER_CONFIG_DIR / name}"
        )
    return font_manager.findfont("DejaVu Sans")
