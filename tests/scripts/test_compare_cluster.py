"""A study's runs on a Ray cluster: two nodes on this machine, of which one is lost in the middle."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from conftest import ROOT

from _compare import ray_cluster, study_folder, training_run
from ultralytics.fork.errors import Refused
from ultralytics.utils import YAML

MODELS = ["rtdetr-tiny.yaml", "rtdetr-tiny-FLA.yaml"]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # else whoever is on this machine may join
ENVIRONMENT = {
    **os.environ,
    **TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else other tests take all the time
    "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def end(process: subprocess.Popen) -> None:
    """Kill a node: what `ray start` has started, and all that came of it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        for member in [*family, psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


@contextlib.contextmanager
def node(*arguments: str):
    """Start a node of one CPU, in the foreground of a process of its own."""
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--block", "--num-cpus=1", "--disable-usage-stats", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        yield process
    finally:
        end(process)


@pytest.fixture
def nodes(tmp_path_factory):
    """A cluster of two nodes: its address, and the second node's process."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with node("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"):
        end_of_wait = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < end_of_wait
            time.sleep(0.5)
        with node(f"--address={address}", "--node-ip-address=127.0.0.1") as second:
            yield address, second


@pytest.mark.nightly
def test_a_node_is_lost(nodes, shapes, tmp_path):
    """What it ran goes on from its checkpoint on the other."""
    address, second = nodes
    out = tmp_path / "study"
    chosen = ["--models", *MODELS, "--data", str(shapes), "--seeds", "0", "--epochs", "12", "--out", str(out)]
    where = ["--on", "ray", "--address", address]
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *chosen, *where]
    settings = ["imgsz=64", "batch=4", "plots=False", "val=False", "--workers=0"]
    with open(tmp_path / "log", "w") as log:
        study = subprocess.Popen([*command, *settings], stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    try:
        runs = [out / "runs" / Path(model).stem / "seed-0" for model in MODELS]
        end_of_wait = time.monotonic() + 300
        while not all((folder / "results.csv").is_file() for folder in runs):  # both are some epochs ahead
            assert study.poll() is None and time.monotonic() < end_of_wait, (tmp_path / "log").read_text()
            time.sleep(0.1)
        end(second)
        assert study.wait(timeout=500) == 0, (tmp_path / "log").read_text()
    finally:
        study.kill()
    found = json.loads((out / "study.json").read_text())
    assert [(r["state"], r["epochs"]) for r in found["runs"]] == [("done", 12)] * 2
    resumed = [bool(YAML.load(folder / "args.yaml").get("resume")) for folder in runs]
    assert sorted(resumed) == [False, True]
    said = (tmp_path / "log").read_text()
    assert "2 of 2 runs are with the cluster" in said and "is over, 2 of 2" in said
    assert (out / "report.html").is_file() and not (out / ray_cluster.TOKEN).exists()
    assert all(row["cost"]["ms"] > 0 for row in found["results"])


class Silent:
    """A board that nobody reads."""

    class write:
        remote = staticmethod(lambda *_: None)


def test_a_node_that_does_not_see_the_folder(shapes, tmp_path):
    """It works in a folder of its own, and the run comes back as an archive; a model of the user's own goes with it."""
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "cfg_custom" / "models" / "rtdetr-tiny.yaml").read_text(), encoding="utf-8")
    there = study_folder.Run("mine", str(mine), 0, tmp_path / "study" / "runs" / "mine" / "seed-0")
    arguments = {"epochs": 1, "imgsz": 64, "batch": 4, "plots": False, "workers": 0, "device": "cpu"}
    settings = {"data": str(shapes), "arguments": arguments}
    content, elsewhere = ray_cluster.read_model_file(there), replace(there, model="only/there/mine.yaml")
    release = ray_cluster.ultralytics.__version__
    outcome, archive = ray_cluster.run_task(elsewhere, settings, tmp_path / "study", "token", content, Silent, release)
    assert not (tmp_path / "study").exists()
    ray_cluster.unpack_folder(archive, there.folder)
    assert (
        there.is_done
        and there.outcome == outcome
        and there.best.is_file()
        and len(training_run.read_epochs(there.folder)) == 1
    )
    with pytest.raises(RuntimeError, match="ultralytics is .* on this node, and 1.0 where the study is"):
        ray_cluster.run_task(there, settings, tmp_path / "study", "token", None, Silent, "1.0")


def test_what_comes_back_replaces_what_was_there(tmp_path):
    """All of it, or nothing where it cannot be read."""
    there, come = tmp_path / "runs" / "seed-0", tmp_path / "come"
    for folder, name in ((there, "old"), (come, "new")):
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
    with pytest.raises(tarfile.ReadError):
        ray_cluster.unpack_folder(ray_cluster.pack_folder(come)[:700], there)
    assert [file.name for file in there.iterdir()] == ["old"]
    ray_cluster.unpack_folder(ray_cluster.pack_folder(come), there)
    assert [file.name for file in there.iterdir()] == ["new"] and list(there.parent.iterdir()) == [there]


def test_progress_board_is_lost(tmp_path, capsys):
    """The runs go on, and one line says why no progress is shown."""
    run = study_folder.Run("tiny", "tiny.yaml", 0, tmp_path / "runs" / "tiny" / "seed-0")
    run.folder.mkdir(parents=True)

    class study:
        save = staticmethod(lambda: None)

    polls = iter([[], [], ["task"]])

    class Ray:
        exceptions = ray.exceptions

        @staticmethod
        def wait(tasks, timeout):
            return next(polls), tasks

        @staticmethod
        def nodes():
            return [{"Alive": True, "Resources": {"CPU": 1.0}}]

        @staticmethod
        def get(reference):
            if reference == "task":
                return {"state": "failed", "error": "as ever"}, None
            raise ray.exceptions.RayActorError(error_msg="In its creation task:\nno more threads")

    class board:
        class lines:
            remote = staticmethod(lambda: "lines")

    ray_cluster.gather_results(Ray, study, {"task": run}, board, {"num_cpus": 1, "num_gpus": 0})
    said = capsys.readouterr()
    assert (said.out + said.err).count("no progress is shown until a run is over: no more threads") == 1
    assert run.outcome["error"] == "as ever"


def test_progress_board_needs_no_torch():
    """It starts in a moment, and with few threads."""
    code = "import sys, _compare.progress_board; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")})


def test_time_left():
    """Two runs at work have 50 s and 5 s to go; a third takes 60 s, the mean of what those take; two at a time."""
    at_work = {"a": (5, 10, 50.0), "b": (3, 4, 15.0)}
    assert ray_cluster.estimate_remaining(at_work, 3) == pytest.approx((50 + 5 + (100 + 20) / 2) / 2)


def test_no_cluster_is_one_line():
    with pytest.raises(Refused, match="no cluster at 127.0.0.1:9 .*`ray start --head` starts one"):
        ray_cluster.connect_cluster("127.0.0.1:9")


def test_what_no_node_has():
    class Ray:
        @staticmethod
        def nodes():
            return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}}]

    assert ray_cluster.has_room(Ray, {"num_cpus": 2, "num_gpus": 0})
    none = {"num_cpus": 1, "num_gpus": 1}
    assert not ray_cluster.has_room(Ray, none)
    assert (
        ray_cluster.describe_room(Ray, none) == "a run takes 1 CPUs and 1 GPUs, and no node has them (2 CPUs, 0 GPUs)"
    )
    assert (
        ray_cluster.device_names({"num_gpus": 0.5}) == "0"
        and ray_cluster.device_names({"num_gpus": 2}) == "0,1"
        and ray_cluster.device_names({"num_gpus": 0}) == "cpu"
    )
