"""Settings of their own for the tests, made before anything imports ultralytics."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterable
from pathlib import Path

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and not sys.pycache_prefix:
    # Else each of the processes that tests start would compile torch anew, which takes longer than all that it does
    _bytecode = tempfile.TemporaryDirectory(prefix="ultralytics-bytecode-")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _bytecode.name  # for the workers of pytest-xdist, too
    sys.dont_write_bytecode = False
_config = tempfile.TemporaryDirectory(prefix="ultralytics-tests-")
os.environ["YOLO_CONFIG_DIR"] = _config.name
os.environ["YOLO_OFFLINE"] = "true"  # the tests need no network, and so no look-ups that wait for one

import pytest  # noqa: E402
import torch  # noqa: E402

from ultralytics import settings  # noqa: E402

pytest_plugins = ["tiers"]
pytest.register_assert_rewrite("compare_study", "rebase_checkout", "setup_checkout", "watched_workplace")

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(file.stem for file in (ROOT / "cfg_custom" / "models").glob("*.yaml"))
TINY = [name for name in MODELS if "tiny" in name]

settings.update(
    runs_dir=str(Path(_config.name, "runs")),
    datasets_dir=str(Path(_config.name, "datasets")),
    weights_dir=str(Path(_config.name, "weights")),
)


def pytest_addoption(parser):
    parser.addoption(
        "--nightly", action="store_true", help="as many random cases as SECURITY.md promises; takes hours, not minutes"
    )
    parser.addoption(
        "--measure", action="store_true", help="write the processor time of each test to tests/durations.json"
    )


@pytest.fixture(autouse=True)
def end_determinism():
    """Leave torch as a test found it: a trainer makes its algorithms deterministic, and only a training ends that."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def often(request):
    """Give a function that chooses how many random cases a test takes: some in the suite, many in the nightly run."""
    return lambda suite, nightly: nightly if request.config.getoption("--nightly") else suite


@pytest.fixture
def chance() -> random.Random:
    """Random numbers; a test that fails shows what they were drawn from."""
    seed = time.time_ns()
    print(f"random.Random({seed})")
    return random.Random(seed)


def mark_nightly(cases: Iterable, kept: Container) -> list:
    """Mark the cases of a parametrization `nightly`, except for the kept ones, which stand for them in each run."""
    marks = {True: (), False: pytest.mark.nightly}
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks[case in kept]) for case in cases]


can_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")


def killed_in_time(command: list[str], seconds: float, chance: random.Random, **environment: str) -> bool:
    """Run a command and kill it, alone or with all that it has started, at some moment of the time that it takes.

    Returns:
        Whether it was killed before its end.
    """
    none = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=none, stdout=none, stderr=none, start_new_session=True
    )
    try:
        process.wait(chance.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        chance.choice([os.kill, os.killpg])(process.pid, signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0
    return False


def on_small_disks(folder: Path, disk: Path, command: list[str], following: list[str], times: int) -> None:
    """Run a command in a copy of a checkout on disks with ever less space, bisecting where it begins to be too little.

    Where it is, the command says so in one line and leaves the checkout as it was; what follows, with space again, ends
    as on a large disk.

    Args:
        folder: The checkout.
        disk: An empty folder, where the copy will be.
        command: The command.
        following: What a user runs next.
        times: How often to halve.
    """

    def run(free: int) -> dict:
        commands = json.dumps(command), json.dumps(following)
        file = ROOT / "tests" / "upstream" / "small_disk.py"
        script = [sys.executable, *map(str, (file, folder, disk, free)), *commands]
        done = subprocess.run(["unshare", "--mount", *script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    disk.mkdir(exist_ok=True)
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(disk)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    low, high = 0, 2**16
    large, small = run(high), run(low)
    assert large["status"] == 0 and small["status"], large["stderr"]
    failed = [small]
    for _ in range(times):
        free = (low + high) // 2
        done = run(free)
        if done["status"]:
            low = free
            failed.append(done)
        else:
            assert done["files"] == large["files"], free
            high = free
    for done in failed:
        assert done["untouched"] and done["files"] == large["files"] and done["following"]["status"] == 0, done
        assert "the disk is full" in done["stderr"].splitlines()[-1], done["stderr"]


PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def find_python(version: str) -> str:
    """Find an interpreter of a version on this machine, as uv does; those that pyenv keeps off PATH, too."""
    if not shutil.which("uv"):
        pytest.skip("uv is not on PATH")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    path = os.pathsep.join([*map(str, pyenv.glob(f"{version}.*/bin")), os.environ["PATH"]])
    done = subprocess.run(
        ["uv", "python", "find", "--no-project", "--no-python-downloads", version],
        env={**os.environ, "PATH": path, "VIRTUAL_ENV": ""},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or pytest.skip(f"no Python {version} here")


def load_file(path: Path):
    """Import a Python file that is in no package."""
    return load_module(path.stem, path)


def load_module(name: str, path: Path):
    """Import a Python file under a name, such as that of a user's file in `ultralytics.nn.AddModules`."""
    spec = importlib.util.spec_from_file_location(name, path)
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
    from ultralytics.fork.export.compare_detections import make_inputs

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
            model.model(torch.cat(list(make_inputs(1, (96, 96)).values())))
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
