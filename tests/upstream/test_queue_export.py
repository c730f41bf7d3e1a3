"""An export writes what was edited in place into the patches beside it, or into a new patch."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import mark_nightly
from setup_checkout import (  # noqa: F401 - fixtures
    APPLY,
    TASKS,
    UNPATCHED,
    checkout,
    laid_down,
    ok,
    patch_of,
    pristine,
    queue,
    refused,
    replace,
    snapshot,
    tree,
    wheel,
)

from _upstream.pin import Pin
from _upstream.queue.tree import manifest, tree_sha256


def again(root: Path, pristine: Path, wheel: Path, tmp_path: Path) -> dict[str, bytes]:
    """Lay down the queue of a checkout in a fresh one, and export it there; returns the tree."""
    other = shutil.copytree(pristine, tmp_path / "again")
    shutil.rmtree(other / "patches")
    shutil.copytree(root / "patches", other / "patches")
    ok(other, "apply", ULTRALYTICS_WHEEL=str(wheel))
    assert tree_sha256(manifest(other)) == Pin.read(other).tree_sha256
    ok(other, "export")
    assert queue(other) == queue(root)
    return tree(other)


def exported(root: Path, *arguments: str) -> str:
    """Export; the edited tree is the recorded one afterwards, and stays as it is."""
    before = tree(root)
    line = ok(root, "export", *arguments)
    assert tree(root) == before
    assert ok(root, "apply") == "ultralytics/ is up to date"
    assert "as recorded, sha256" in ok(root, "status")
    return line


@pytest.mark.parametrize("scratch", ["kept", "lost"])
def test_export_of_no_edits_changes_not_one_byte(checkout, wheel, scratch):
    before = snapshot(checkout)
    if scratch == "lost":
        shutil.rmtree(checkout / ".upstream")
    assert ok(checkout, "export", ULTRALYTICS_WHEEL=str(wheel)).startswith("no edits under ultralytics/")
    assert snapshot(checkout) == before


def test_an_edit_of_a_patchs_line_is_folded_into_it(checkout, pristine, wheel, tmp_path):
    replace(checkout / "ultralytics/utils/checks.py", "# this fork is renewed", "# this fork is refreshed")
    before = queue(checkout)
    assert exported(checkout) == "1 edited file: 1 hunks folded into their patches, 0 in a new patch"
    after, name = queue(checkout), patch_of(checkout, "Never-advise").name
    text, now = ({n: re.sub(rb"(?m)^index .*$", b"", content) for n, content in q.items()} for q in (before, after))
    assert sorted(n for n in text if now[n] != text[n]) == [name, "upstream.toml"] and now.keys() == text.keys()
    assert after[name] == before[name].replace(b"renewed", b"refreshed").replace(*index_lines(before, after, name))
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def index_lines(before: dict, after: dict, name: str) -> tuple[bytes, bytes]:
    """Give the `index` line of the one file of a patch whose content differs, before and after."""
    pairs = zip(*(re.findall(rb"(?m)^index .*$", queue[name]) for queue in (before, after)))
    ((old, new),) = [(old, new) for old, new in pairs if old != new]
    return old, new


@pytest.mark.parametrize("where", mark_nightly(("before", "after"), {"before"}))
def test_an_edit_beside_a_patchs_line_is_folded_into_it(checkout, pristine, wheel, tmp_path, where):
    line = "@fork.install  # this fork is renewed by `git pull`\n"
    new = f"# mine\n{line}" if where == "before" else f"{line}# mine\n"
    replace(checkout / "ultralytics/utils/checks.py", line, new)
    assert "1 hunks folded" in exported(checkout)
    assert b"+# mine\n" in queue(checkout)[patch_of(checkout, "Never-advise").name]
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_an_edit_elsewhere_becomes_a_new_patch(checkout, pristine, wheel, tmp_path):
    edited = checkout / UNPATCHED
    edited.write_text("# mine\n" + edited.read_text(encoding="utf-8") + "# mine too\n", encoding="utf-8")
    before = queue(checkout)
    assert exported(checkout) == "1 edited file: 0 hunks folded into their patches, 2 in a new patch"
    (name,) = queue(checkout).keys() - before.keys()
    assert name == f"{len(before):04d}-Change-ultralytics-engine-results.py.patch"
    assert {n: queue(checkout)[n] for n in before if n != "upstream.toml"} == {
        n: content for n, content in before.items() if n != "upstream.toml"
    }
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_a_new_patch_takes_the_message(checkout):
    replace(checkout / "ultralytics/utils/checks.py", "# this fork is renewed", "# this fork is refreshed")
    before = queue(checkout)
    exported(checkout, "--new", "-m", "Say refreshed – not renewed\n\nWhy: a test.\n")
    (name,) = queue(checkout).keys() - before.keys()
    text = queue(checkout)[name].decode()
    assert "Why: a test." in text and "+@fork.install  # this fork is refreshed" in text


def test_edits_all_over(checkout, pristine, wheel, tmp_path):
    """Insertions above and below, in several patches' lines and outside of all: each at its own place in the end."""
    tasks, checks = checkout / TASKS, checkout / "ultralytics/utils/checks.py"
    text = tasks.read_text(encoding="utf-8")
    text = "# first\n# second\n" + text + "# last\n"
    text = text.replace("class RTDETRDetectionModel(", "# elsewhere\n\nclass RTDETRDetectionModel(")
    text = text.replace("elif m in fork.READERS:", "elif m in fork.READERS:  # rows of ours")
    text = text.replace("        fork.index_layer(m_,", "        # one\n        # two\n        fork.index_layer(m_,")
    tasks.write_text(text, encoding="utf-8")
    replace(checks, "# this fork is renewed", "# this fork is refreshed")
    checks.write_text(checks.read_text(encoding="utf-8") + "\n# no line end", encoding="utf-8")
    (checkout / "ultralytics/utils/triton.py").unlink()
    (checkout / UNPATCHED).write_text("# nothing left\n")
    (checkout / "ultralytics/nn/extra.py").write_text("# new\n")
    (checkout / "ultralytics/nn/notes.log").write_text("no source\n")
    line = exported(checkout)
    assert line.startswith("5 edited files: ")
    queued = {name: content.decode() for name, content in queue(checkout).items()}
    assert "# rows of ours" in queued[patch_of(checkout, "Read-rows").name]
    assert "+        # two" in queued[patch_of(checkout, "Run-multi-output-backbones.patch").name]
    assert "refreshed" in queued[patch_of(checkout, "Never-advise").name]
    mine = tree(checkout)
    del mine["ultralytics/nn/notes.log"]
    assert again(checkout, pristine, wheel, tmp_path) == mine
    shutil.rmtree(checkout / ".upstream" / "repo")
    before = queue(checkout)
    exported(checkout)
    assert queue(checkout) == before


def test_deleting_a_file(checkout, pristine, wheel, tmp_path):
    (checkout / "ultralytics/utils/triton.py").unlink()
    exported(checkout, "-m", "Drop triton")
    assert "deleted file mode" in patch_of(checkout, "Drop-triton").read_text(encoding="utf-8")
    assert "ultralytics/utils/triton.py" not in again(checkout, pristine, wheel, tmp_path)


def test_taking_a_patch_back_drops_it(checkout, pristine, wheel, tmp_path):
    checks, init = checkout / "ultralytics/utils/checks.py", checkout / "ultralytics/utils/__init__.py"
    hook = "from ultralytics.fork.hooks import checks as fork\n@fork.install  # this fork is renewed by `git pull`\n"
    replace(checks, hook, "")
    replace(init, "'git pull' and if", "'pip install -U ultralytics' and if")
    before = queue(checkout)
    exported(checkout)
    assert len(queue(checkout)) == len(before) - 1 and not list((checkout / "patches").glob("*Never-advise*"))
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_files_that_are_not_ascii(checkout, pristine, wheel, tmp_path):
    file = next(
        path for path in sorted((checkout / "ultralytics").rglob("*.py")) if "🚀".encode() in path.read_bytes()[200:]
    )
    text = file.read_text(encoding="utf-8").replace("🚀", "🛰️ é")
    file.write_text(text, encoding="utf-8")
    latin = checkout / UNPATCHED
    latin.write_bytes(latin.read_bytes() + "# é\n".encode("latin-1"))
    picture = checkout / "ultralytics/assets/bus.jpg"
    picture.write_bytes(picture.read_bytes()[::-1])
    exported(checkout, "-m", "Größe")
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def test_export_of_an_older_tree_is_refused(checkout):
    patch_of(checkout, "YOLOEModel").unlink()
    assert f"run `{APPLY}` first" in refused(checkout, "export")


def test_every_line_of_every_patch_edited_at_once(checkout, pristine, wheel, tmp_path):
    for path, added in added_lines(checkout).items():
        lines = (checkout / path).read_text(encoding="utf-8").split("\n")
        edited = [line + "  # edited" if line in added else line for line in lines]
        (checkout / path).write_text("\n".join(edited), encoding="utf-8")
    before = queue(checkout)
    assert "0 in a new patch" in exported(checkout)
    assert queue(checkout).keys() == before.keys()
    assert again(checkout, pristine, wheel, tmp_path) == tree(checkout)


def added_lines(root: Path) -> dict[str, set[str]]:
    """Collect the lines that the queue adds, by file."""
    lines: dict[str, set[str]] = {}
    for patch in sorted((root / "patches").glob("*.patch")):
        for part in patch.read_text(encoding="utf-8").split("\ndiff --git a/")[1:]:
            path = part.split(" ", 1)[0]
            lines.setdefault(path, set()).update(re.findall(r"(?m)^\+(?!\+\+ )(.+)$", part))
    return lines
