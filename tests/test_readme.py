"""The README's commands run as they stand, smaller where they train, and its table is the one that is made."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import MODELS, ROOT, load_file

import compare
import explain
from _bench import report
from ultralytics import RTDETR, settings
from ultralytics.nn import tasks
from ultralytics.nn.AddModules import registry

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```", TEXT)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]


def words(command: str) -> list[str]:
    """Split the part of a command line that `uv run` runs, without the comment behind it."""
    return shlex.split(command.rpartition("uv run ")[2], comments=True)


def run(argv: list[str], cwd) -> str:
    """Run a command of the project's environment."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def yolo(argv: list[str], cwd) -> str:
    main = "import sys; from ultralytics.cfg import entrypoint; entrypoint()"
    # ARGV[0] ends with "yolo": upstream saves a prediction's pictures when its command line makes it
    script = cwd / "yolo"
    script.write_text(main)
    return run([sys.executable, str(script), *argv], cwd)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, shapes):
    """A folder in which the commands' relative paths hold, with the small data set under the name `my-data.yaml`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my-data.yaml").write_text(shapes.read_text())
    (folder / "ultralytics").symlink_to(ROOT / "ultralytics")
    RTDETR("rtdetr-l.yaml").save(folder / "rtdetr-l.pt")
    weights = Path(settings["weights_dir"])  # where a name of timm's is looked for before the network
    weights.mkdir(exist_ok=True)
    torch.save(timm.create_model("hgnetv2_b4").state_dict(), weights / "hgnetv2_b4.pth")
    return folder


def test_the_first_two_commands_set_up_and_test():
    assert COMMANDS[0].startswith("python -m pip install -q uv && uv run yolo train ")
    assert "uv run pytest" in COMMANDS
    assert "uv run pytest" in (ROOT / ".ci" / "run").read_text()


def test_yolo_commands(workplace):
    """In their order, as later ones use what the first has trained; three per cent of the data, one epoch."""
    commands = [command for command in COMMANDS if " yolo " in command]
    assert len(commands) >= 5
    for command in commands:
        argv = [word.replace("$PWD", str(workplace)) for word in words(command)]
        argv = argv[argv.index("yolo") + 1 :]
        if argv[0] == "train":
            argv = [word for word in argv if not word.startswith(("epochs=", "imgsz="))]
            argv += ["epochs=1", "imgsz=64", "fraction=0.5" if "data=my-data.yaml" in argv else "fraction=0.03"]
            argv += [
                "batch=2",
                "plots=False",
                *([] if any("project=" in w for w in argv) else [f"project={workplace}"]),
            ]
        if argv[0] == "val":
            argv += [f"project={workplace}", "plots=False"]
        yolo(argv, workplace)
    assert (workplace / "runs" / "bus" / "bus.jpg").is_file()
    assert (workplace / "runs" / "first" / "weights" / "best.onnx").is_file()


def test_script_commands_exist(monkeypatch):
    """What the scripts do has tests of its own; here, that they take the README's arguments."""
    scripts = [words(command) for command in COMMANDS if "scripts/" in command]
    scripts = [argv[argv.index("python") :] for argv in scripts]
    assert {argv[1] for argv in scripts} == {
        f"scripts/{name}.py" for name in ("bench", "compare", "explain", "learn", "reproduce", "upstream")
    }
    for argv in scripts:
        run([sys.executable, *argv[1:], "--help"], ROOT)
        if argv[1] == "scripts/compare.py":
            compare.parse_arguments(argv[2:])  # help is shown before an argument is missed
        if argv[1] == "scripts/explain.py":
            monkeypatch.setattr(sys, "argv", argv[1:])
            explain.parse_arguments()


def test_scripts_on_what_the_first_command_has_trained(workplace):
    pattern = re.compile(r"scripts/(compare|explain)\.py .*runs/first\b")
    scripts = [words(command) for command in COMMANDS if pattern.search(command)]
    assert len(scripts) == 2
    for argv in scripts:
        script, *rest = argv[argv.index("python") + 1 :]
        run([sys.executable, str(ROOT / script), *rest], workplace)
    assert (workplace / "runs" / "explain" / "best" / "contact.png").is_file()
    assert "rtdetr-tiny-FLA" in (workplace / "runs" / "studies" / "first" / "table.md").read_text()


def test_python_blocks(workplace):
    """The interface's lines run; the new module's file is built by its row."""
    interface, module = (block for kind, block in BLOCKS if kind == "python")
    interface = interface.replace("rtdetr-l-FLA", "rtdetr-tiny-FLA").replace("shapes.yaml", "my-data.yaml")
    code = interface.replace("epochs=100", f"epochs=1, imgsz=64, plots=False, project={str(workplace)!r}")
    assert code.count("epochs=1,") == 1
    run([sys.executable, "-c", code], workplace)

    file = workplace / "Gate.py"
    file.write_text(module)
    gate = load_file(file).Gate
    try:
        row = eval(re.search(r"The row `(.*?)` now builds", TEXT)[1], {"Gate": "Gate"})
        d = {"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 2]], row], "head": []}
        layers, _ = tasks.parse_model(d, ch=3, verbose=False)
        assert type(layers[1]) is gate and layers[1].weight.shape[0] == 8 and layers[1].power == 2.0
    finally:  # the other tests' registry is without it
        del registry.NAMES["Gate"], registry.READERS[gate], tasks.Gate


def test_table_of_models():
    """Every model has its row, with its own counts and the published ones."""
    models = load_file(ROOT / "tests" / "test_models.py")
    rows = dict(re.findall(r"(?m)^\| `(rtdetr-[^`]+)` (\| (?:as published|–) \|.*)$", TEXT))
    assert sorted(rows) == MODELS
    for name, row in rows.items():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        published = models.reproduce.PUBLISHED.get(name)
        counts = models.reproduce.count_totals(models.RTDETRDetectionModel(f"{name}.yaml", verbose=False))
        assert cells[1] == f"{counts['parameters']:,}"
        assert cells[3] == (str(published["gflops"]) if published else "–")
        assert cells[0] == ("as published" if published else "–")
        assert cells[2] == f"{counts['layers']}" + (f" ({published['layers']})" if published else "")
        assert cells[4] == f"{counts['gflops']:.1f}"


def test_tables_of_the_benchmark():
    """The figures are those that are kept."""
    files = sorted((ROOT / "benchmarks").glob("*.json"))
    assert files
    for file in files:
        data = json.loads(file.read_text(encoding="utf-8"))
        summaries = {section: report.summarise_results({section: kept}) for section, kept in data.items()}
        assert any(summaries.values())
        for section, summary in summaries.items():
            assert summary in TEXT, (file.name, section)


def test_links_and_paths_exist():
    headings = {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in re.findall(r"(?m)^#+ (.+)$", TEXT)}
    for link in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        file, _, heading = link.partition("#")
        assert (ROOT / file).exists() and (not heading or heading in headings), link
    for path in set(re.findall(r"`((?:ultralytics/nn|cfg_custom|patches|scripts|tests)/[\w./]*)`", TEXT)):
        assert (ROOT / path).exists(), path
