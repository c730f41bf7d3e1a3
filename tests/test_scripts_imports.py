"""Imports: those among the modules of scripts/ form no circle, and the fork's are of packages that come with it."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def list_modules(folder):
    """Map each module's dotted name to its file."""
    files = {file.relative_to(folder).with_suffix(""): file for file in folder.rglob("*.py")}
    return {".".join(path.parts).removesuffix(".__init__"): file for path, file in files.items()}


def imported_modules(file, modules):
    """List the modules of the same folder that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}, line {node.lineno}: scripts import each other by absolute name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules.keys()


def room_of(module):
    """Name the folder of a module, which is what packages depend on; a file beside packages is a room of its own."""
    package, _, _ = module.rpartition(".")
    return module if package in ("", "_upstream") else package


def check_no_circle(folder):
    """Raise CycleError for a circle among modules, or among the rooms that they are in."""
    modules = list_modules(folder)
    graph = {name: imported_modules(file, modules) for name, file in modules.items()}
    TopologicalSorter(graph).prepare()
    rooms = {}
    for name, imported in graph.items():
        rooms.setdefault(room_of(name), set()).update({room_of(other) for other in imported} - {room_of(name)})
    TopologicalSorter(rooms).prepare()


def test_scripts_have_no_import_circle():
    assert {"upstream", "_upstream.pin", "_upstream.queue.apply", "_shared.flops"} <= list_modules(SCRIPTS).keys()
    check_no_circle(SCRIPTS)


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "import b", "b.py": "import a"},
        {"a.py": "from p import b", "p/__init__.py": "", "p/b.py": "def f():\n    from a import g"},
        {"p/a.py": "from q.b import f", "q/b.py": "", "q/c.py": "from p import d", "p/d.py": ""},  # of rooms only
    ],
)
def test_a_circle_is_found(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(CycleError):
        check_no_circle(tmp_path)


OF_DEPENDENCIES = {"huggingface_hub", "safetensors"}  # come with timm
# Imported where a format has made the user install them, or where a line says that they are missing
GUARDED = {"MNN", "faster_coco_eval", "onnx", "openvino_telemetry"}
IMPORTED_AS = {"cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml"}


def test_the_fork_imports_only_what_is_installed_with_it():
    """Within functions, too: a package of the development group would be missing on a user's machine."""
    root = SCRIPTS.parent
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    declared = project[project.index("\ndependencies = [") : project.index("[project.optional-dependencies]")]
    names = {name.lower() for name in re.findall(r'"([A-Za-z0-9_-]+)', declared)}
    missing = {}
    for folder in ("fork", "nn/AddModules"):
        for file in (root / "ultralytics" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"ultralytics"}:
                    if top not in OF_DEPENDENCIES | GUARDED and IMPORTED_AS.get(top, top).lower() not in names:
                        missing.setdefault(top, []).append(str(file.relative_to(root)))
    assert not missing
