"""Read lists of images that were written on Windows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_image_list(get_img_files: Callable, dataset: Any, img_path: Any, *args: Any) -> list[str]:
    """Find the images of a data set; backslashes in a list of images are slashes on other systems.

    Args:
        get_img_files: Upstream's method.
        dataset: The data set.
        img_path: A folder, or a list of images in a text file; or several of these.

    Raises:
        FileNotFoundError: If none of the images is there; upstream leaves out single ones with a line.
    """
    paths = img_path if isinstance(img_path, list) else [img_path]
    lists = [Path(p) for p in paths if Path(p).is_file()]
    if os.sep == "/" and any("\\" in read(p) for p in lists):
        with tempfile.TemporaryDirectory() as folder:
            paths = [convert(Path(p), Path(folder, f"{i}.txt")) for i, p in enumerate(paths)]
            files = get_img_files(dataset, paths, *args)
    else:
        files = get_img_files(dataset, img_path, *args)
    if lists and not any(map(os.path.exists, files)):
        raise FileNotFoundError(f"{', '.join(map(str, lists))}: none of its images is there, such as {files[0]}")
    return files


def convert(path: Path, copy: Path) -> str:
    """Write a list of images with slashes, and with paths that do not depend on where the list is."""
    if not path.is_file():
        return str(path)
    lines = [line.replace("\\", "/") for line in read(path).strip().splitlines()]
    lines = [str(path.parent / line[2:]) if line.startswith("./") else line for line in lines]
    copy.write_text("\n".join(lines), encoding="utf-8")
    return str(copy)


def read(path: Path) -> str:
    """Read a list of images; empty if it is not text, which upstream says."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return ""
