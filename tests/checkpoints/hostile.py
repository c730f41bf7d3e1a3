"""Checkpoints that would do harm if they were opened as Python opens pickles; run as a script, it opens them all.

    python tests/checkpoints/hostile.py FOLDER

A line of JSON for each: what it ended in, how long it took, how much memory, and what it did that a load does not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import hostile_calls  # noqa: F401 - it adds cases, as the others do
from checkpoint_writer import CASES, MARK, archive, layer, program, tensor
from hostile_declared_sizes import shared_lists
from hostile_files import GOOD, truncated

__all__ = ["CASES", "GOOD", "MARK", "archive", "layer", "program", "shared_lists", "tensor", "truncated"]

HARM = ("os.", "pty.", "subprocess.", "socket.", "shutil.", "tempfile.", "webbrowser.", "ctypes.dlopen")
HARMLESS = "os.putenv", "os.unsetenv", "os.listdir", "os.scandir", "os.walk", "os.fwalk"


def main(folder: Path) -> None:
    """Open each file of a folder, in the order of their names."""
    import resource

    from ultralytics import YOLO

    events: list[str] = []

    def hook(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or (event.startswith(HARM) and event not in HARMLESS):
            events.append(f"{event} {args[0] if args else ''}")

    os.chdir(folder)
    sys.addaudithook(hook)
    for file in sorted(folder.glob("*.pt")):
        events.clear()
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        plain = False
        try:
            line = f"opened: {type(YOLO(file).model).__name__}"
        except Exception as e:
            line, plain = str(e), getattr(e, "plain", False)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            json.dumps(
                {
                    "file": file.name,
                    "line": line,
                    "plain": plain,
                    "seconds": round(seconds, 3),
                    "MiB": (after - before) // 1024,
                    "events": events,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
