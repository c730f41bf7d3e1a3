"""Status: describe the pin, the queue, the tree and the overrides."""

from __future__ import annotations

import re
from pathlib import Path

from _upstream.pin import APPLY, PACKAGE, Pin, is_for_release, list_patches, queue_sha256
from _upstream.queue.rebase_session import REBASE, SESSION
from _upstream.queue.scratch_folder import explain_os_errors
from _upstream.queue.tree import list_edited_files, list_missing_files, list_new_files, read_stamp
from _upstream.verify.overrides import missing_overrides, read_overrides


def status(root: Path) -> str:
    """Describe the pin, the queue, the tree and the overrides."""
    with explain_os_errors(root):
        pin, stamp = Pin.read(root), read_stamp(root)
    lines = [f"upstream   {PACKAGE} {pin.release}, wheel sha256 {pin.wheel_sha256}", "queue"]
    total = 0
    for patch in list_patches(root):
        diff = patch.read_text(encoding="utf-8", errors="replace").partition("\ndiff --git ")[2]
        changed = len(re.findall(r"(?m)^(?:\+(?!\+\+ )|-(?!-- ))", diff))
        here = is_for_release(patch, pin.release)
        total += changed if here else 0
        lines.append(f"  {changed:3d} lines  {patch.name}{'' if here else '  (left out: for later releases)'}")
    lines.append(f"  {total:3d} lines changed in all")
    files = stamp.get("files", {})
    differences = {
        "edited": list_edited_files(root, files),
        "new": list_new_files(root, files),
        "missing": list_missing_files(root, files),
    }
    if not stamp:
        state = f"missing; `{APPLY}` lays it down"
    elif "pending" in stamp:
        state = f"incomplete, as set-up was interrupted; `{APPLY}` completes it"
    elif stamp.get("queue") != queue_sha256(root):
        state = f"older than the queue; `{APPLY}` updates it"
    elif any(differences.values()):
        state = "as recorded but for " + "; ".join(f"{k} {', '.join(v)}" for k, v in differences.items() if v)
    else:
        state = f"as recorded, sha256 {pin.tree_sha256}"
    if (root / SESSION).is_dir():
        lines.append(f"rebase     waits in {SESSION}; `{REBASE} --continue` continues it, `--abort` ends it")
    lines.append(f"tree       {state}")
    if stamp and read_overrides(root):
        missing = missing_overrides(root, root, pin.release)
        lines += (
            ["overrides  a name is missing upstream", *(f"  {line}" for line in missing)]
            if missing
            else [f"overrides  {len(read_overrides(root))}, each with its upstream function"]
        )
    return "\n".join(lines)
