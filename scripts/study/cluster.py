"""Do a study's runs as tasks of a Ray cluster that is there, and gather what they leave in the study's folder.

Every node needs this project installed in the same version, and the data set under the same path. The study's folder
may be on a file system that the nodes share: then a run whose node was lost goes on from its checkpoint on another
one. Else it begins anew there, and what it leaves comes back as an archive.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

import ultralytics
from study.cost import costs
from study.local import duration, report_failure, say
from study.plan import OUTCOME, Run, Study
from study.run import perform
from ultralytics.nn.AddModules.errors import Refused

SCRIPTS = Path(__file__).resolve().parents[1]
TOKEN = ".token"  # tells a task whether the folder it sees is the driver's
POLL = 5.0  # seconds between two looks at what the runs say


def connect(address: str) -> Any:
    """Join the cluster.

    Raises:
        Refused: If Ray is not installed, or no cluster is there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    try:
        import ray
    except ImportError:
        raise Refused("--on ray needs the package ray: uv run --extra cluster python scripts/compare.py …") from None
    try:
        if host and "://" not in address:  # Ray itself waits for minutes, and ends the process then
            socket.create_connection((host, int(port)), 5).close()
        variables = {name: os.environ[name] for name in ("YOLO_OFFLINE", "YOLO_CONFIG_DIR") if name in os.environ}
        code = {"working_dir": str(SCRIPTS), "excludes": ["*.pyc"], "env_vars": variables}
        ray.init(address=address, runtime_env=code, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as e:
        raise Refused(
            f"--on ray: no cluster at {address} ({str(e).splitlines()[0]}). `ray start --head` begins one, and "
            "`ray start --address=HOST:PORT` on each other machine joins it; one that was started with a token takes "
            "RAY_AUTH_MODE=token here, too"
        ) from None
    return ray


def run_all(study: Study, address: str, resources: dict[str, float], retries: int) -> None:
    """Do what is not done, as many runs at a time as the cluster has room for.

    Args:
        study: The study.
        address: Of the cluster.
        resources: What a run takes: `num_cpus`, `num_gpus`.
        retries: How often a run is tried again whose node or process was lost.

    Raises:
        Refused: If there is no cluster, or none of its nodes has what a run takes.
    """
    ray = connect(address)
    try:
        open_runs = [run for run in study.runs if not run.is_done]
        for run in open_runs:
            if run.taken:  # it is on this machine
                perform(run, study.settings)
        open_runs = [run for run in open_runs if not run.taken]
        if not has_room(ray, resources):
            raise Refused(f"--on ray: {no_room(ray, resources)}; --cpus and --gpus say what a run takes")
        token = secrets.token_hex(8)
        (study.folder / TOKEN).write_text(token, encoding="utf-8")
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        task = ray.remote(max_retries=retries, **resources)(work)
        settings = {**study.settings, "arguments": {"device": device(resources), **study.settings["arguments"]}}
        folder, release = study.folder.resolve(), ultralytics.__version__
        waiting = {}
        for run in open_runs:
            there = replace(run, folder=run.folder.resolve())
            waiting[task.remote(there, settings, folder, token, contents(run), board, release)] = run
        say(f"{len(waiting)} of {len(study.runs)} runs are with the cluster at {address}")
        gather(ray, study, waiting, board, resources)
    finally:
        (study.folder / TOKEN).unlink(missing_ok=True)
        ray.shutdown()


def gather(ray: Any, study: Study, waiting: dict, board: Any, resources: dict[str, float]) -> None:
    """Wait for the runs, and put into the study's folder what comes back of each."""
    total, said, had_room = len(waiting), {}, True
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=POLL)
        for found in ready:
            run = waiting.pop(found)
            try:
                outcome, archive = ray.get(found)
            except ray.exceptions.RayError as e:
                error = f"{type(e).__name__}: {str(e).strip().splitlines()[0]}"
                outcome, archive = {"state": "failed", "error": error, "traceback": str(e)}, None
            if archive is not None:
                unpack(archive, run.folder)
            if not run.is_done:  # else it was over when its node was lost
                run.conclude(outcome)
            where = f"{run.label} with seed {run.seed}"
            say(f"{where} is over, {total - len(waiting)} of {total}")
            report_failure(where, run)
            study.save()
        room = has_room(ray, resources)
        if waiting and had_room and not room:
            say(f"{no_room(ray, resources)}: waiting for one that joins")
        had_room = room
        at_work = {f"{run.label} with seed {run.seed}" for run in waiting.values()}
        for where, (epoch, epochs, seconds) in ray.get(board.lines.remote()).items():
            if where in at_work and said.get(where) != epoch:
                said[where] = epoch
                left = duration(seconds / epoch * (epochs - epoch))
                say(f"{where}: epoch {epoch} of {epochs}; {left} left of this run")


def has_room(ray: Any, resources: dict[str, float]) -> bool:
    """Whether any node has what a run takes, now or when it is free."""
    wanted = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes)


def no_room(ray: Any, resources: dict[str, float]) -> str:
    """Say what a run takes and what nodes have."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    return (
        f"a run takes {resources['num_cpus']:g} CPUs and {resources['num_gpus']:g} GPUs, and no node has them ({have})"
    )


def device(resources: dict[str, float]) -> str:
    """Name the devices of a run as it sees them: Ray shows a task its own GPUs only."""
    return ",".join(map(str, range(int(resources["num_gpus"])))) or "cpu"


class Board:
    """Where tasks write how far they are, and the driver reads it."""

    def __init__(self):
        self.said: dict[str, tuple[int, int, float]] = {}

    def write(self, where: str, epoch: int, epochs: int, seconds: float) -> None:
        self.said[where] = epoch, epochs, seconds

    def lines(self) -> dict[str, tuple[int, int, float]]:
        return self.said


def work(
    run: Run, settings: dict, folder: Path, token: str, model: bytes | None, board: Any, release: str
) -> tuple[dict, bytes | None]:
    """Do a run on a node: in the study's folder where that is there, else in one of its own, which is given back."""
    if ultralytics.__version__ != release:
        raise RuntimeError(f"ultralytics is {ultralytics.__version__} on this node, and {release} where the study is")

    def watch(trainer: Any) -> None:
        seconds = time.time() - trainer.train_time_start
        board.write.remote(f"{run.label} with seed {run.seed}", trainer.epoch + 1, trainer.epochs, seconds)

    mark = folder / TOKEN
    if mark.is_file() and mark.read_text(encoding="utf-8") == token:
        run.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(run.folder / ".lock"):  # a run whose node was lost may be writing yet
            return perform(run, settings, watch), None
    with tempfile.TemporaryDirectory() as temporary:
        mine = replace(run, folder=Path(temporary) / run.label / run.folder.name)
        if model is not None:
            file = Path(temporary) / Path(run.model).name
            file.write_bytes(model)
            mine = replace(mine, model=str(file))
        return perform(mine, settings, watch), pack(mine.folder)


def contents(run: Run) -> bytes | None:
    """Give what is in a model file of the user's own, which other nodes may not have."""
    return Path(run.model).read_bytes() if Path(run.model).is_file() else None


def pack(folder: Path) -> bytes:
    """Put a folder's files into an archive."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.add(folder, arcname=".")
    return data.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    """Put an archive's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = sorted(archive.getmembers(), key=lambda member: Path(member.name).name == OUTCOME)
        archive.extractall(folder, members, filter="data")  # the outcome last, which says that all is there


def time_models(
    models: dict[str, Path], imgsz: int, batch: int, address: str, resources: dict[str, float]
) -> dict[str, Any]:
    """Measure what models cost, all of them in one task."""
    ray = connect(address)
    try:
        task = ray.remote(**resources)(measure)
        weights = {label: file.read_bytes() for label, file in models.items()}
        return ray.get(task.remote(weights, imgsz, batch, device(resources)))
    finally:
        ray.shutdown()


def measure(weights: dict[str, bytes], imgsz: int, batch: int, name: str) -> dict[str, Any]:
    """Measure on a node what models cost."""
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        files = {label: Path(temporary) / f"{i}.pt" for i, label in enumerate(weights)}
        for label, file in files.items():
            file.write_bytes(weights[label])
        return costs(files, imgsz, torch.device("cpu" if name == "cpu" else "cuda:0"), batch)
