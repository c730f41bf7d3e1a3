"""Training on many machines: two hosts, or two launchers, train as one process does, and go on after a death."""

import csv
import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, load_file

from ultralytics import YOLO
from ultralytics.fork.distributed import run_folder

IMAGES, BATCH = 18, 8  # the last batch has two images, for four processes
STILL = {"mosaic": 0, "fliplr": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "translate": 0, "scale": 0, "erasing": 0}
OPTIONS = {"imgsz": 64, "batch": BATCH, "device": "cpu", "optimizer": "SGD", "lr0": 0.001, "plots": False, **STILL}
OFFICIAL = {**OPTIONS, "loss": "official"}  # whose terms are sums over all processes, as those of Ultralytics' are
ALONE = {**OPTIONS, "workers": 0}  # where it does not matter how images are loaded
LINUX = sys.platform == "linux"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The YAML of a data set that does not come out: 18 images to train, 10 to validate."""
    root = tmp_path_factory.mktemp("nodes")
    load_file(ROOT / "cfg_custom" / "datasets" / "shapes.py").generate(root / "data", train=IMAGES, val=10, size=96)
    file = root / "small.yaml"
    file.write_text(
        f"path: {root / 'data'}\ntrain: images/train\nval: images/val\nnames: [circle, square, triangle]\n",
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The folder of a run of one process."""
    project = tmp_path_factory.mktemp("one")
    YOLO("rtdetr-tiny.yaml").train(data=data, epochs=2, project=project, name="run", **OFFICIAL)
    return project / "run"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(prefix, *options, command, **environment) -> subprocess.Popen:
    """Start a launcher, as on one host."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "torch.distributed.run", *map(str, options), *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*launchers) -> tuple[list[int], str]:
    """Wait for launchers: their exit codes, and all that they and their workers have printed."""
    try:
        printed = [x.communicate(timeout=300)[0] for x in launchers]
    finally:
        for x in launchers:
            x.kill()
    return [x.returncode for x in launchers], "\n".join(printed)


def command(**arguments) -> list[str]:
    """The `yolo train` command of this environment, for `--no-python`."""
    yolo = shutil.which("yolo", path=os.path.dirname(sys.executable))
    return ["--no-python", yolo, "train", *(f"{k}={v}" for k, v in arguments.items())]


def curve(folder) -> list[dict]:
    """The rows of a run's results, without the time."""
    with open(folder / "results.csv", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them: for each host the command's prefix, address and environment."""
    ip = shutil.which("ip", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if ip is None:
        pytest.skip("there is no `ip` command (Debian: iproute2) to make network namespaces with")
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    tag = f"n{os.getpid() % 100000}"
    names = [f"{tag}a", f"{tag}b"]
    try:
        try:
            for name in names:
                run([ip, "netns", "add", name])
            run([ip, "link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1]])
            for name, address in zip(names, ("10.77.0.1/24", "10.77.0.2/24")):
                run([ip, "-n", name, "address", "add", address, "dev", name])
                for device in ("lo", name):
                    run([ip, "-n", name, "link", "set", device, "up"])
        except subprocess.CalledProcessError as e:
            pytest.skip(f"network namespaces are not to be had here: {e.stderr.strip()}")
        yield [([ip, "netns", "exec", name], {"GLOO_SOCKET_IFNAME": name}) for name in names]
    finally:
        for name in names:
            subprocess.run([ip, "netns", "delete", name], capture_output=True)


def assert_same_run(folder, reference):
    """A run equals one process's: losses, metrics and learning rates to the digits that are written, and weights."""
    rows, expected = curve(folder), curve(reference)
    assert [row.keys() for row in rows] == [row.keys() for row in expected] and len(rows) == 2
    for row, other in zip(rows, expected):
        for key, value in row.items():
            assert math.isclose(value, other[key], rel_tol=1e-4, abs_tol=2e-5), (key, value, other[key])
    models = [
        torch.load(run / "weights" / "last.pt", map_location="cpu", weights_only=False)["model"].float()
        for run in (folder, reference)
    ]
    assert {type(m) for m in models[0].modules()} == {type(m) for m in models[1].modules()}
    for (key, ours), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values()):
        assert torch.allclose(ours, theirs, rtol=2e-3, atol=1e-4), key  # saved in fp16


@pytest.mark.nightly
@pytest.mark.skipif(not LINUX, reason="network namespaces are Linux's")
def test_two_hosts_train_as_one_process(hosts, data, one, tmp_path):
    """Two processes on each of two hosts, with denoising, and a last batch that leaves two of them without an image."""
    train = command(model="rtdetr-tiny.yaml", data=data, epochs=2, project=tmp_path, name="run", **OFFICIAL)
    options = ("--nnodes=2", "--nproc-per-node=2", "--master-addr=10.77.0.1", "--master-port=29400")
    codes, printed = finish(
        *(
            launch(prefix, *options, f"--node-rank={i}", command=train, **environment)
            for i, (prefix, environment) in enumerate(hosts)
        )
    )
    assert codes == [0, 0], printed
    assert_same_run(tmp_path / "run", one)
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


@pytest.mark.end_to_end("two processes")
def test_two_launchers_on_loopback_train_as_one_process(data, one, tmp_path):
    train = command(model="rtdetr-tiny.yaml", data=data, epochs=2, project=tmp_path, name="run", **OFFICIAL)
    options = (
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--local-addr=127.0.0.1",
    )
    codes, printed = finish(*(launch([], *options, command=train) for _ in range(2)))
    assert codes == [0, 0], printed
    assert_same_run(tmp_path / "run", one)


def write_deadly(tmp_path, data, name):
    """Write a script that trains for two epochs, and whose second process is killed when the second one begins."""
    options = {**ALONE, "data": str(data), "epochs": 2, "val": False, "project": str(tmp_path), "name": name}
    script = tmp_path / "deadly.py"
    script.write_text(
        f"""
import os, signal
from ultralytics import YOLO

def die(trainer):
    if trainer.epoch == 1 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)

model = YOLO("rtdetr-tiny.yaml")
model.add_callback("on_train_epoch_start", die)
model.train(**{options!r})
""",
        encoding="utf-8",
    )
    return script


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no SIGKILL")
def test_a_killed_worker_ends_the_job_and_resume_works(data, tmp_path):
    script = write_deadly(tmp_path, data, "run")
    options = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}")
    codes, printed = finish(*(launch([], *options, f"--node-rank={i}", command=[script]) for i in range(2)))
    assert all(codes) and "SIGKILL" in printed
    last = tmp_path / "run" / "weights" / "last.pt"
    assert "rank 0 of 2 lost another process" in printed and f"`resume model={last}`" in printed
    assert [row["epoch"] for row in curve(tmp_path / "run")] == [1]
    YOLO(last).train(resume=True)  # by one process
    assert [row["epoch"] for row in curve(tmp_path / "run")] == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no SIGKILL")
@pytest.mark.nightly
def test_an_elastic_restart_goes_on_with_its_own_run(data, tmp_path):
    """The second attempt finds its run by the launcher, and leaves another launch's, which had the name first."""
    other = tmp_path / "run"
    (other / "weights").mkdir(parents=True)
    (other / run_folder.RECORD).write_text(json.dumps({"launchers": ["elsewhere:/tmp/x"], "number": 1}))
    script = write_deadly(tmp_path, data, "run")
    codes, printed = finish(launch([], "--standalone", "--nproc-per-node=2", "--max-restarts=1", command=[script]))
    assert codes == [0], printed
    assert "Resuming training" in printed
    assert sorted(f.name for f in tmp_path.iterdir() if f.is_dir()) == ["run", "run-2"]
    assert [row["epoch"] for row in curve(tmp_path / "run-2")] == [1, 2]
    assert not list((other / "weights").iterdir())
    # What was lost is trained again, as it would have been
    script.write_text(script.read_text().replace("SIGKILL", "SIGCONT"))
    codes, printed = finish(launch([], "--standalone", "--nproc-per-node=2", command=[script]))
    assert codes == [0], printed
    runs = [tmp_path / name / "weights" / "last.pt" for name in ("run-2", "run-3")]
    models = [torch.load(run, weights_only=False)["model"].state_dict() for run in runs]
    for (key, ours), theirs in zip(models[0].items(), models[1].values()):
        assert torch.equal(ours, theirs), key


def write_script(tmp_path, data, model, name, extra="", after="", **options):
    """Write a script that trains a model, with lines of its own before and after."""
    options = {"data": str(data), "epochs": 2, "project": str(tmp_path), "name": name, **ALONE, **options}
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import hashlib, json, os, time
from datetime import timedelta
from pathlib import Path
import torch
from ultralytics import YOLO
from ultralytics.fork.distributed import elastic_launch

rank, folder = os.environ["RANK"], Path({str(tmp_path)!r})
model = YOLO({model!r})
{extra}
model.train(**{options!r})
{after}
""",
        encoding="utf-8",
    )
    return script


@pytest.mark.nightly
def test_a_silent_worker_ends_the_job(data, tmp_path):
    """It lives, and does not answer: after the time that a step may take, all is over and the checkpoint is named."""
    wait = """
elastic_launch.STEP_TIMEOUT = timedelta(seconds=5)
model.add_callback("on_train_epoch_start", lambda t: time.sleep(600) if (t.epoch, rank) == (1, "1") else None)
"""
    script = write_script(tmp_path, data, "rtdetr-tiny.yaml", "run", wait)
    codes, printed = finish(launch([], "--standalone", "--nproc-per-node=2", command=[script]))
    assert all(codes)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert "rank 0 of 2 lost another process" in printed and f"`resume model={last}`" in printed
    assert torch.load(last, weights_only=False)["epoch"] == 0


@pytest.mark.nightly
def test_a_script_goes_on_after_training(data, tmp_path):
    """A model of upstream's own is trained and validated, and then an RT-DETR, whose bad step both processes leave out.

    Each process validates by itself, and finds what one process finds.
    """
    after = """
found = []
for device in ("cpu", None):
    tensors = b"".join(v.numpy().tobytes() for v in model.model.state_dict().values())
    metrics = model.val(data=OPTIONS["data"], imgsz=64, device=device, plots=False)
    found.append([int(metrics.nt_per_class.sum()), metrics.box.map, hashlib.sha256(tensors).hexdigest()])
model = YOLO("rtdetr-tiny.yaml")

class Poison:
    batch = 0
    def begin(self, trainer):
        self.batch += 1
        if self.batch == 1:
            trainer.model.module.model[4].register_forward_hook(self.spoil)
        if self.batch == 3:
            states.append(hashlib.sha256(torch.get_rng_state().numpy()).hexdigest())
    def spoil(self, layer, _, out):
        return out * float("nan") if layer.training and self.batch == 2 and rank == "1" else None

states = []
model.add_callback("on_train_batch_start", Poison().begin)
model.train(**{**OPTIONS, "name": "second"})
torch.save(model.trainer.model.module.state_dict(), folder / f"{rank}.pt")
weights = hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.trainer.model.module.state_dict().values()))
(folder / f"{rank}.json").write_text(json.dumps([found, states, weights.hexdigest()]))
"""
    script = write_script(tmp_path, data, "yolo11n.yaml", "run", after=after)
    text = script.read_text()
    call = re.search(r"(?m)^model\.train\(\*\*(.*)\)$", text)[1]
    script.write_text(f"OPTIONS = {call}\n{text}")
    codes, printed = finish(launch([], "--standalone", "--nproc-per-node=2", command=[script]))
    assert codes == [0], printed
    (found, states, weights), other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = YOLO(tmp_path / "run" / "weights" / "best.pt").val(data=data, imgsz=64, device="cpu", plots=False)
    boxes = int(alone.nt_per_class.sum())
    best = torch.load(tmp_path / "run" / "weights" / "best.pt", weights_only=False)["model"].float().state_dict()
    trained = hashlib.sha256(b"".join(v.numpy().tobytes() for v in best.values())).hexdigest()
    assert found[0] == other[0][0] == [boxes, pytest.approx(alone.box.map, rel=1e-6), trained] and boxes > 10
    assert found[1][:2] == other[0][1][:2] == found[0][:2]  # the first validation has fused the model
    assert len(states) == 1 and states != other[1]  # dropout is drawn apart
    assert weights == other[2]
    assert printed.count("The step is skipped") == 2 and "is that of layer 4, " in printed
    for name in ("run", "second"):
        rows = curve(tmp_path / name)
        assert len(rows) == 2 and all(math.isfinite(v) for row in rows for v in row.values())
