"""The command that begins a module: its files work at once, and are not written over others."""

import subprocess
import sys

import pytest
from conftest import ROOT, mark_nightly

import new_module
from ultralytics.fork.errors import Refused


@pytest.mark.parametrize("reader", mark_nightly(new_module.TEMPLATES, {"changes_channels"}))
def test_files_work_at_once(tmp_path, reader):
    """The test passes, with the module in a folder of the user's; both files are in this project's style."""
    module, test = new_module.write_module("Brandnew", reader, tmp_path)
    code = (
        "import sys, pytest, ultralytics.nn.AddModules as added; "
        f"added.__path__.append({str(module.parent)!r}); import ultralytics.nn.AddModules.Brandnew; "
        f"sys.exit(pytest.main(['-q', '-n', '0', '-p', 'no:cacheprovider', '-c', '/dev/null', {str(test)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    style = ["check", "--config", str(ROOT / "pyproject.toml"), "--extend-ignore=D103", str(tmp_path)]  # as in tests/
    ruff = subprocess.run([sys.executable, "-m", "ruff", *style], capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout


@pytest.mark.parametrize(
    "name, line",
    [
        ("EMO", "the name EMO is taken by ultralytics.nn.AddModules.EMO"),
        ("Conv", "is taken by ultralytics.nn.modules.conv"),
        ("Linear", "is taken by torch.nn"),
        ("my-module", "expected the name of a class"),
        ("../Mine", "expected the name of a class"),
        ("lower", "expected the name of a class"),
    ],
)
def test_refusals(tmp_path, name, line):
    with pytest.raises(Refused, match=line):
        new_module.write_module(name, "keeps_channels", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_not_written_over(tmp_path):
    new_module.write_module("Brandnew", "keeps_channels", tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.py")}
    with pytest.raises(Refused, match=r"Brandnew.py exists"):
        new_module.write_module("Brandnew", "changes_channels", tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.py")} == before


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(new_module, "ROOT", tmp_path)
    monkeypatch.setattr(new_module.write_module, "__defaults__", (tmp_path,))
    monkeypatch.setattr(sys, "argv", ["new_module.py", "Brandnew"])
    new_module.main()
    assert "uv run pytest tests/modules/test_Brandnew.py" in capsys.readouterr().out
