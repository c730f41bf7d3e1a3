"""The commands in README.md and docs/ run as they stand, trainings smaller; links, paths and figures are right."""

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import MODELS, ROOT, TINY, load_file, mark_nightly
from torch.distributed.run import get_args_parser as torchrun_parser

import bench
from ultralytics import RTDETR, settings
from ultralytics.fork.export.convert_detector import write_official
from ultralytics.nn import tasks
from ultralytics.nn.AddModules import registry

README = "README.md"
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in [ROOT / README, *sorted((ROOT / "docs").glob("*.md"))]
}
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")})
OTHER_COMMANDS = "uv run pytest", "chromium --headless "
RUN_COMMANDS = "import json, sys; from ultralytics.cfg import entrypoint\n" + (
    "for command in json.loads(sys.argv.pop()):\n"
    "    if isinstance(command, str): exec(command)\n"
    "    else: sys.argv[1:] = command; entrypoint()"
)


def code_blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, as `sh`, in a page."""
    return [block for kind, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```", PAGES[page]) if kind == language]


def commands(page: str) -> list[str]:
    """Return the command lines of a page."""
    return "".join(code_blocks(page, "sh")).splitlines()


def split_command(command: str) -> list[str]:
    """Split the part of a command line behind `uv run`, without the comment."""
    return shlex.split(command.rpartition("uv run ")[2], comments=True)


def yolo_arguments(command: str, folder: Path) -> list[str]:
    """Return the arguments of a `yolo` command line; training is one epoch of few small images."""
    words = [word.replace("$PWD", str(folder)) for word in split_command(command)]
    words = words[words.index("yolo") + 1 :]
    if words[0] == "train":
        words = [word for word in words if not word.startswith(("epochs=", "imgsz="))]
        words += ["epochs=1", "imgsz=64", "batch=8", "fraction=0.5"]
    if "pretrained=rtdetr-l.pt" in words:
        words = [word.replace("model=rtdetr-l-", "model=rtdetr-tiny-") for word in words]
    if words[0] in ("train", "val"):
        words += ["plots=False"]
        words += [] if any(word.startswith("project=") for word in words) else [f"project={folder}"]
    return words


def script_arguments(command: str) -> list[str]:
    """Return a script's path and its arguments."""
    words = split_command(command)
    return words[next(i for i, word in enumerate(words) if word.startswith("scripts/")) :]


def run_process(argv: list[str], folder: Path) -> None:
    """Run a command in a folder; it must succeed."""
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def run_commands(items: list[list[str] | str], folder: Path) -> None:
    """Run arguments of `yolo` and Python code in one process, in turn."""
    script = folder / "yolo"  # upstream saves the pictures of a prediction if the process has this name
    script.write_text(RUN_COMMANDS)
    run_process([sys.executable, str(script), json.dumps(items)], folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, shapes) -> Path:
    """A folder where the commands' relative paths exist, with the small data set under the name `my-data.yaml`.

    Of the set that shapes.yaml would draw there are the first images; that it draws them has a test of its own.
    """
    folder = tmp_path_factory.mktemp("pages")
    load_file(ROOT / "cfg_custom" / "datasets" / "shapes.py").generate(folder / "shapes", train=16, val=8)
    (folder / "my-data.yaml").write_text(shapes.read_text())
    (folder / "ultralytics").symlink_to(ROOT / "ultralytics")
    return folder


@pytest.fixture(scope="module")
def trained(workplace) -> Path:
    """The same folder, after the README's commands and its lines of Python."""
    interface, _ = code_blocks(README, "python")
    interface = interface.replace("shapes.yaml", "my-data.yaml")
    code = interface.replace("epochs=100", f"epochs=1, imgsz=64, plots=False, project={str(workplace)!r}")
    assert code.count("epochs=1,") == 1
    items = [yolo_arguments(command, workplace) for command in commands(README) if " yolo " in command]
    small = [[word.replace("rtdetr-l-", "rtdetr-tiny-") for word in arguments] for arguments in items]
    run_commands([*small, code.replace("rtdetr-l-", "rtdetr-tiny-")], workplace)
    return workplace


@pytest.fixture(scope="module")
def pretrained(workplace) -> None:
    """Files of pretrained weights where the commands look for them before they use the network.

    The one of `rtdetr-l.pt` has a tiny model's.
    """
    RTDETR("rtdetr-tiny.yaml").save(workplace / "rtdetr-l.pt")
    weights = Path(settings["weights_dir"])
    weights.mkdir(exist_ok=True)
    torch.save(timm.create_model("hgnetv2_b4").state_dict(), weights / "hgnetv2_b4.pth")
    write_official(RTDETR("rtdetr-r18.yaml").model, workplace / "rtdetr_r18vd.pth")


def test_readme_is_one_screen_to_the_first_success():
    assert len(PAGES[README].splitlines()) <= 150
    assert commands(README)[0].startswith("python -m pip install -q uv && uv run yolo train ")
    assert " yolo predict " in commands(README)[1]
    assert commands(README)[2] == "uv run pytest"
    assert "\nuv run pytest\n" in (ROOT / ".ci" / "run").read_text()


def test_every_page_is_linked_from_the_readme():
    assert {page for page in PAGES if page != README} <= set(re.findall(r"\]\(([^)#]+)", PAGES[README]))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_tested(page):
    """A command line is one of `yolo`, of a script, or one of those that another test runs."""
    for command in commands(page):
        assert " yolo " in command or "scripts/" in command or command.startswith(OTHER_COMMANDS), command


@pytest.mark.end_to_end("train", "predict")
def test_readme_commands(trained):
    assert (trained / "runs" / "bus" / "bus.jpg").is_file()
    for name in ("best.pt", "best.torchscript", "best.onnx"):
        assert (trained / "runs" / "first" / "weights" / name).is_file()
    assert sum(1 for _ in trained.glob("train*/weights/best.pt")) == 2  # on the command line, and in Python


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != README and " yolo " in "".join(commands(page))])
def test_yolo_commands(page, trained, pretrained):
    """In their order, as later commands use what earlier ones wrote."""
    exported = trained / "runs" / "first" / "weights" / "best.onnx"
    exported.unlink(missing_ok=True)
    found = [command for command in commands(page) if " yolo " in command]
    run_commands([yolo_arguments(command, trained) for command in found], trained)
    assert exported.is_file() == any("format=onnx" in command for command in found)


class ParsedError(Exception):
    """The command line was accepted."""


@pytest.mark.parametrize("page", [page for page in PAGES if "scripts/" in "".join(commands(page))])
def test_script_arguments(page, monkeypatch):
    """Each script accepts the arguments in the pages; what it does has its own tests."""

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    for command in commands(page):
        if "scripts/" in command:
            script, *arguments = script_arguments(command)
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            with pytest.raises(ParsedError):
                importlib.import_module(Path(script).stem).main()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compare", "explain"])
def test_scripts_on_the_first_run(name, trained):
    pattern = re.compile(rf"scripts/{name}\.py .*runs/first\b")
    (command,) = (command for page in PAGES for command in commands(page) if pattern.search(command))
    script, *arguments = script_arguments(command)
    run_process([sys.executable, str(ROOT / script), *arguments], trained)
    if name == "explain":
        assert (trained / "runs" / "explain" / "best" / "contact.png").is_file()
    else:
        assert "rtdetr-tiny-FLA" in (trained / "runs" / "studies" / "first" / "table.md").read_text()


def test_launches():
    """The options of `torchrun` in the page are torch's, and it launches `yolo`."""
    text = "".join(code_blocks("docs/distributed.md", "bash")).replace("\\\n", "")
    lines = [line for line in text.splitlines() if "torchrun" in line]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(re.sub(r"\$\w+", "1", line))
        arguments = torchrun_parser().parse_args(words[words.index("torchrun") + 1 :])
        assert arguments.no_python and arguments.training_script == "yolo"
        assert arguments.training_script_args[0] == "train"


@pytest.mark.parametrize("page", [README, "docs/adding-a-module.md"])
def test_module_of_the_readme(page, tmp_path):
    """The row in a page builds the README's module."""
    file = tmp_path / "Gate.py"
    file.write_text(code_blocks(README, "python")[1])
    gate = load_file(file).Gate
    try:
        row = eval(re.search(r"row\s+`(\[.*?\])`\s+(?:now )?builds", PAGES[page])[1], {"Gate": "Gate"})
        d = {"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 2]], row], "head": []}
        layers, _ = tasks.parse_model(d, ch=3, verbose=False)
        assert type(layers[1]) is gate and layers[1].weight.shape[0] == 8 and layers[1].power == 2.0
    finally:  # the registry of the other tests does not have it
        del registry.NAMES["Gate"], registry.READERS[gate], tasks.Gate


def test_table_of_models_has_every_model():
    assert sorted(table_of_models()) == MODELS


def table_of_models() -> dict[str, list[str]]:
    """Return the cells behind each model's name."""
    rows = re.findall(r"(?m)^\| `(rtdetr[^`]+)` \| ((?:as published|–) \|.*)\|$", PAGES["docs/models.md"])
    return {name: [cell.strip() for cell in row.split("|")] for name, row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", mark_nightly(MODELS, {*TINY, "rtdetr-l-Biformer", "rtdetr-l-EMO_2M"}))
def test_table_of_models(name):
    """A model's row has its own counts and the published ones."""
    reproduce = importlib.import_module("reproduce")
    published = reproduce.PUBLISHED.get(name)
    counts = reproduce.count_totals(tasks.RTDETRDetectionModel(f"{name}.yaml", verbose=False))
    assert table_of_models()[name] == [
        "as published" if published else "–",
        f"{counts['parameters']:,}",
        f"{counts['layers']}" + (f" ({published['layers']})" if published else ""),
        str(published["gflops"]) if published else "–",
        f"{counts['gflops']:.1f}",
    ]


def test_table_of_the_worked_study():
    """The page has columns of the recorded table."""
    recorded = read_table((ROOT / "benchmarks" / "shapes" / "table.md").read_text(encoding="utf-8"))
    shown = read_table(PAGES["docs/comparing.md"])
    renamed = {"mAP50-95, %": "mAP50-95", "difference, 95 % interval": "difference [95 %]"}
    assert len(shown) == len(recorded) == 5
    for row, record in zip(shown, recorded, strict=True):
        assert {renamed.get(column, column): cell.strip("`") for column, cell in row.items()}.items() <= record.items()


@pytest.mark.parametrize("data", ["shapes", "crowd"])
def test_tables_of_the_losses(data):
    """The page has columns of the recorded tables."""
    recorded = read_table((ROOT / "benchmarks" / "losses" / f"{data}.md").read_text(encoding="utf-8"))
    shown = read_table(PAGES["docs/losses.md"].partition(f"On `{data}.yaml`")[2])
    renamed = {"mAP50-95, %": "mAP50-95", "difference, 95 % interval": "difference [95 %]"}
    assert len(shown) == len(recorded) == 3
    for row, record in zip(shown, recorded, strict=True):
        assert {renamed.get(column, column): cell.strip("`") for column, cell in row.items()}.items() <= record.items()


def read_table(text: str) -> list[dict[str, str]]:
    """Return the rows of the first Markdown table of models in a text."""
    lines = re.search(r"(?m)^\| model .*\n(?:\|.*\n)+", text)[0].splitlines()
    columns, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_tables_of_benchmarks():
    """Every recorded table is in one page, between its markers."""
    tables = 0
    for file in (ROOT / "benchmarks").glob("*.json"):
        for section, record in json.loads(file.read_text(encoding="utf-8")).items():
            for number, table in enumerate(bench.report.SUMMARIES[section.split()[0]](record["results"])):
                shown = f"<!-- table: {file.stem} {section} {number} -->\n\n{table}\n\n<!-- end of table -->\n"
                assert sum(shown in text for text in PAGES.values()) == 1, (file.name, section, number)
                tables += 1
    assert sum(text.count("<!-- table: ") for text in PAGES.values()) == tables > 8


def test_a_stale_table_is_written_again(monkeypatch, tmp_path, capsys):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "docs").mkdir()
    for page in ("benchmarks", "deploying", "training"):
        text = PAGES[f"docs/{page}.md"]
        (tmp_path / "docs" / f"{page}.md").write_text(re.sub(r"(?m)^\| rtdetr-.*\n", "", text), encoding="utf-8")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "pages"])
    assert bench.main() == 0
    assert capsys.readouterr().out.split() == ["docs/benchmarks.md", "docs/deploying.md"]
    for page in ("benchmarks", "deploying"):
        assert (tmp_path / "docs" / f"{page}.md").read_text(encoding="utf-8") == PAGES[f"docs/{page}.md"]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_and_paths(file):
    """Links lead to files and headings that exist, pictures too; so do paths of this repository in code style."""
    text = file.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, heading = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not heading or heading in anchors(target), link
    folders = "ultralytics/nn/AddModules|ultralytics/fork|cfg_custom|patches|scripts|tests|docs|benchmarks|findings"
    for path in set(re.findall(rf"`((?:{folders})/[\w./-]*)`", text)):
        assert (ROOT / path).exists() or path.endswith("/Gate.py"), path


def anchors(file: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
