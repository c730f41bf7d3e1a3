"""Run and fetch what a data set asks for only if it comes with the package or the user agrees.

A data YAML may hold a program (`download:`), and an NDJSON file the addresses of its images.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultralytics.fork.class_limit import MAX_CLASSES
from ultralytics.fork.data.dataset_errors import DATASET_ERRORS, make_one_line_error
from ultralytics.fork.errors import Refused, mark_as_plain, quote
from ultralytics.utils import ROOT

CONSENT = "ULTRALYTICS_RUN_DOWNLOADS"  # set to 1, lets data files run and fetch what they ask for
TRUE_WORDS = "1", "true", "yes", "on", "y", "t"  # as upstream reads such variables
# The data sets of upstream's package, and of this project in a checkout and as it is installed
SHIPPED_FOLDERS = tuple(
    folder / "datasets" for folder in (ROOT / "cfg", ROOT.parent / "cfg_custom", ROOT / "cfg_custom")
)


def is_download_allowed() -> bool:
    """Whether the user lets data files run and fetch what they ask for."""
    return os.getenv(CONSENT, "").strip().lower() in TRUE_WORDS


def is_shipped(file: Path) -> bool:
    """Whether a data file is, byte for byte, one that comes with the package."""
    shipped = [folder / file.name for folder in SHIPPED_FOLDERS]
    return any(f.is_file() and f.read_bytes() == file.read_bytes() for f in shipped)


def require_download_consent(data: dict) -> None:
    """Refuse what `download:` of a data file would do; upstream calls this where the images are missing.

    Args:
        data: The data file's content, with its name as `yaml_file`.

    Raises:
        Refused: If the file does not come with the package and the user has not agreed.
    """
    file, script = Path(data["yaml_file"]), data["download"].strip()
    if is_download_allowed() or is_shipped(file):
        return
    lines = [line for line in script.splitlines() if line.strip() and not line.lstrip().startswith("#")] or [script]
    first = next((line for line in lines if not re.match(r"\s*(import|from)\s", line)), lines[0])
    action = "fetch" if script.lower().startswith("http") else "run" if script.startswith("bash ") else "run as Python"
    more = f" … and {len(lines) - 1} more lines: read them" if lines[1:] else ""
    raise Refused(
        f"{file}: there are no images in {data['path']}, and `download:` would {action}: {quote(first, 100)}{more}. "
        f"If you trust that, set {CONSENT}=1; else put the images there"
    )


def convert_ndjson(convert: Callable, data: Any, *args: Any, **kwargs: Any) -> Any:
    """Convert an NDJSON file; one on this machine fetches its images only if the user agrees.

    Args:
        convert: Upstream's function, which also takes what is not NDJSON and returns it unchanged.
        data: What the user gave as data set.

    Raises:
        Refused: If images would be fetched and the user has not agreed.
    """
    if str(data).endswith(".ndjson") and Path(data).is_file():
        urls = list_image_urls(Path(data))
        if urls and not is_download_allowed():
            raise Refused(
                f"{data} names {len(urls)} images elsewhere and would fetch them: {quote(urls[0], 100)} … If you "
                f"trust that, set {CONSENT}=1; what was converted before is a data.yaml in Ultralytics' datasets_dir"
            )
    try:
        return convert(data, *args, **kwargs)
    except ModuleNotFoundError as e:
        raise mark_as_plain(ImportError(f"{data} needs the package {e.name}, which is not installed")) from e
    except (AttributeError, *DATASET_ERRORS) as e:
        raise make_one_line_error(e, data) from e


def list_image_urls(file: Path) -> list[str]:
    """List the addresses of the images in an NDJSON file."""
    urls = []
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise Refused(f"{file}, line {number}: expected a JSON mapping, not {quote(line, 80)}")
            check_record_classes(record, f"{file}, line {number}")
            parts = record, record.get("depth")
            urls += [part["url"] for part in parts if "file" in record and isinstance(part, dict) and part.get("url")]
    return urls


def check_record_classes(record: dict, where: str) -> None:
    """Check the class numbers of a record; upstream makes a list of all classes up to the largest number.

    Raises:
        Refused: For a class that is not a number below `MAX_CLASSES`.
    """
    names, annotations = record.get("class_names"), record.get("annotations")
    kinds = [rows for rows in annotations.values() if isinstance(rows, list)] if isinstance(annotations, dict) else []
    classes = [row[0] for rows in kinds for row in rows if isinstance(row, list) and row]
    for key in [*(names if isinstance(names, dict) else ()), *classes]:
        number = str(key).removesuffix(".0")
        if not (number.isdecimal() and len(number) < 7 and int(number) < MAX_CLASSES):
            raise Refused(f"{where}: the class {quote(key, 40)} is no number below {MAX_CLASSES:,}")
