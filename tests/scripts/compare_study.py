"""A small study, the command that makes it, and the browser in which its page opens."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, draw_shapes

import compare

MODELS = ["rtdetr-tiny.yaml", "rtdetr-tiny-FLA.yaml"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """16 images to learn from, 8 to validate on."""
    return draw_shapes(tmp_path_factory.mktemp("shapes 16"), train=16, val=8)  # a folder with a space


def arguments(data: Path, out: Path, *models: str, seeds: str = "0 1") -> list[str]:
    chosen = ["--models", *(models or MODELS), "--data", str(data), "--seeds", *seeds.split(), "--out", str(out)]
    return [*chosen, "--epochs", "1", "imgsz=64", "batch=8", "plots=False", "--workers=0"]


def start(*argv: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})


@pytest.fixture
def priced(monkeypatch):
    """Costs are made up, which takes no time; that they are measured, the fixture `folder` shows."""

    def costs(models, *_):
        one = {
            "parameters": 1e6,
            "GFLOPs published": 1.0,
            "GFLOPs honest": 2.0,
            "spread": 0.0,
            "MiB": 3.0,
            "failures": [],
        }
        found = {model: {**one, "ms": 4.0 + i, "over_first": 1 + i / 4} for i, model in enumerate(models)}
        return {"machine": "none", "models": found}

    monkeypatch.setattr(compare, "measure_costs", costs)


def main(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, argv)])
    return compare.main()


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    """A study of two models and two seeds that was killed in its second run, and gone on with."""
    out = tmp_path_factory.mktemp("study")
    first, second = (out / "runs" / Path(model).stem / "seed-0" for model in MODELS)
    with start(*arguments(data, out)) as process:
        while not (second / "weights" / "last.pt").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (second / "run.json").exists()
    before = written(first)
    with start(*arguments(data, out)) as process:
        (out / "log").write_text(process.communicate(timeout=400)[0], encoding="utf-8")
    assert process.returncode == 0, (out / "log").read_text()
    assert written(first) == before
    return out


def written(folder: Path) -> dict[Path, int]:
    """When each file of a run was written, but for what is worked out from it."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "resamples.npy")
    return {file: file.stat().st_mtime_ns for file in files}


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def browser(tmp_path):
    """A Chromium with an empty profile that notes what it asks for."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium and chromedriver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"
    for flag in (*flags, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def column(driver, index: int) -> list[str]:
    rows = driver.find_elements("css selector", ".results tbody tr")
    return [row.find_elements("css selector", "th, td")[index].text for row in rows]
