"""Settings of their own for the tests, made before anything imports ultralytics."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

_config = tempfile.TemporaryDirectory(prefix="ultralytics-tests-")
os.environ["YOLO_CONFIG_DIR"] = _config.name
os.environ["YOLO_OFFLINE"] = "true"  # the tests need no network, and so no look-ups that wait for one

import pytest  # noqa: E402
import torch  # noqa: E402

from ultralytics import settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(file.stem for file in (ROOT / "cfg_custom" / "models").glob("*.yaml"))
TINY = [name for name in MODELS if "tiny" in name]

settings.update(
    runs_dir=str(Path(_config.name, "runs")),
    datasets_dir=str(Path(_config.name, "datasets")),
    weights_dir=str(Path(_config.name, "weights")),
)


def load_file(path: Path):
    """Import a Python file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small `shapes` data set: the path of its YAML."""
    return draw_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=4)


def draw_shapes(root: Path, train: int, val: int) -> Path:
    """Draw a `shapes` data set of some images of 96 pixels: the path of its YAML."""
    load_file(ROOT / "cfg_custom" / "datasets" / "shapes.py").generate(root / "data", train=train, val=val, size=96)
    file = root / "small.yaml"
    file.write_text(
        f"path: {root / 'data'}\ntrain: images/train\nval: images/val\nnames: [circle, square, triangle]\n",
        encoding="utf-8",
    )
    return file


def lively(name: str, settled: bool = False):
    """Build a model whose decoder layers differ and whose scores are spread: those of a fresh one do nothing.

    Settled, the norms have the statistics of photographs, so that each part counts as in a trained model; in a large
    one, with random weights, then also what rounding does.
    """
    from ultralytics import RTDETR
    from ultralytics.nn.AddModules.parity import inputs

    torch.manual_seed(0)
    model = RTDETR(f"{name}.yaml")
    for p in model.model.parameters():
        p.data.add_(torch.randn_like(p) * (0.05 if p.ndim < 2 else 0.2 * p.std()))
    norms = [m for m in model.model.modules() if settled and isinstance(m, torch.nn.BatchNorm2d)]
    for m in norms:
        m.momentum = None  # the mean of what it sees
        m.reset_running_stats()
        m.train()
    if norms:
        with torch.no_grad():
            model.model(torch.cat(list(inputs(1, (96, 96)).values())))
    for m in norms:
        m.momentum = 0.03
        m.eval()
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> dict[str, Path]:
    """One tiny model as a checkpoint and in each format, by suffix, under names that say nothing."""
    from ultralytics import RTDETR

    file = tmp_path_factory.mktemp("exported") / "mine.pt"
    lively("rtdetr-tiny").save(file)
    forms = "torchscript", "onnx", "openvino", "mnn"
    found = (Path(RTDETR(file).export(format=form, imgsz=96)) for form in forms)
    return {".pt": file, **{path.suffix or path.name.removeprefix("mine"): path for path in found}}
