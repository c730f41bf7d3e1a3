"""Do a study's runs as tasks of an existing Ray cluster, and collect their files in the study's folder.

Every node needs this project installed in the same version, and the data set under the same path. If the nodes share
the file system of the study's folder, a run whose node was lost continues from its checkpoint on another node.
Otherwise it starts again there, and its files come back as an archive.
"""

from __future__ import annotations

import io
import math
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
from _compare.cost import measure_costs
from _compare.local_runs import format_duration, print_progress, report_failure
from _compare.progress_board import ProgressBoard
from _compare.study_folder import Run, Study
from _compare.training_run import perform_run, summarise_error
from ultralytics.fork.errors import Refused

SCRIPTS = Path(__file__).resolve().parents[1]
TOKEN = ".token"  # by which a task knows whether it sees the driver's folder
POLL = 5.0  # seconds between two polls of the runs


def connect_cluster(address: str) -> Any:
    """Connect to the cluster.

    Raises:
        Refused: If Ray is not installed, or no cluster is there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else, under `uv run`, Ray would make the project's environment again for each task and look for pyproject.toml in
    # the working folder; the nodes have the project installed
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    host, _, port = address.rpartition(":")
    try:
        import ray
    except ImportError:
        raise Refused("--on ray needs the package ray: uv run --extra cluster python scripts/compare.py …") from None
    try:
        if host and "://" not in address:  # Ray itself would wait for minutes and then end the process
            socket.create_connection((host, int(port)), 5).close()
        variables = {name: os.environ[name] for name in ("YOLO_OFFLINE", "YOLO_CONFIG_DIR") if name in os.environ}
        code = {"working_dir": str(SCRIPTS), "excludes": ["*.pyc"], "env_vars": variables}
        print_progress(f"joining the cluster at {address}")
        ray.init(address=address, runtime_env=code, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as e:
        raise Refused(
            f"--on ray: no cluster at {address} ({str(e).splitlines()[0]}). `ray start --head` starts one, and "
            "`ray start --address=HOST:PORT` on each other machine joins it; one that was started with a token takes "
            "RAY_AUTH_MODE=token here, too"
        ) from None
    return ray


def run_on_cluster(study: Study, address: str, resources: dict[str, float], retries: int) -> None:
    """Do the runs that are not done, as many at a time as the cluster has room for.

    Args:
        study: The study.
        address: Of the cluster.
        resources: What a run takes: `num_cpus`, `num_gpus`.
        retries: How often a run is tried again whose node or process was lost.

    Raises:
        Refused: If there is no cluster, or none of its nodes has what a run takes.
    """
    for run in [run for run in study.runs if run.taken]:  # their files are on this machine
        perform_run(run, study.settings)
    open_runs = [run for run in study.runs if not run.is_done and not run.taken]
    if not open_runs:
        return
    ray = connect_cluster(address)
    try:
        if not has_room(ray, resources):
            raise Refused(f"--on ray: {describe_room(ray, resources)}; --cpus and --gpus say what a run takes")
        token = secrets.token_hex(8)
        (study.folder / TOKEN).write_text(token, encoding="utf-8")
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressBoard).remote()
        task = ray.remote(max_retries=retries, **resources)(run_task)
        settings = {**study.settings, "arguments": {"device": device_names(resources), **study.settings["arguments"]}}
        folder, release = study.folder.resolve(), ultralytics.__version__
        waiting = {}
        for run in open_runs:
            there = replace(run, folder=run.folder.resolve())
            waiting[task.remote(there, settings, folder, token, read_model_file(run), board, release)] = run
        print_progress(f"{len(waiting)} of {len(study.runs)} runs are with the cluster at {address}")
        gather_results(ray, study, waiting, board, resources)
    except ray.exceptions.RayError as e:
        raise Refused(f"--on ray: {summarise_error(e)}; the same command continues") from e
    finally:
        (study.folder / TOKEN).unlink(missing_ok=True)
        ray.shutdown()


def gather_results(ray: Any, study: Study, waiting: dict, board: Any, resources: dict[str, float]) -> None:
    """Wait for the runs, and write their results into the study's folder."""
    total, said, lost = len(waiting), {}, False
    while waiting:
        for found in wait_for_tasks(ray, list(waiting), resources):
            run = waiting.pop(found)
            try:
                outcome, archive = ray.get(found)
            except ray.exceptions.RayError as e:
                error = summarise_error(
                    getattr(e, "cause", None) or e
                )  # the text of a task's error begins with a traceback
                outcome, archive = {"state": "failed", "error": error, "traceback": str(e)}, None
            if archive is not None and (outcome["state"] == "done" or not run.last.is_file()):
                unpack_folder(archive, run.folder)  # a failed run does not overwrite a checkpoint here
            if not run.is_done:  # else it had ended before its node was lost
                run.conclude(outcome)
            print_progress(f"{run.title} is over, {total - len(waiting)} of {total}")
            report_failure(run.title, run)
            study.save()
        try:
            lines = ray.get(board.lines.remote())
        except ray.exceptions.RayActorError as e:  # the runs go on without
            lines = {}
            if not lost:
                print_progress(f"no progress is shown until a run is over: {str(e).strip().splitlines()[-1]}")
            lost = True
        lines = {run: lines[run.title] for run in waiting.values() if run.title in lines}
        for run, (epoch, epochs, _) in lines.items():
            if said.get(run) != epoch:
                said[run] = epoch
                left = format_duration(estimate_remaining(lines, len(waiting)))
                print_progress(f"{run.title}: epoch {epoch} of {epochs}; {left} left")


def estimate_remaining(lines: dict[Run, tuple[int, int, float]], runs: int) -> float:
    """Estimate the remaining seconds of the runs, with as many at a time as now.

    Args:
        lines: Of each run at work the epochs that it has done and has to do, and the seconds that it has taken.
        runs: How many are not over; those that have not begun take what those at work do.
    """
    left = [seconds / epoch * (epochs - epoch) for epoch, epochs, seconds in lines.values()]
    whole = [seconds / epoch * epochs for epoch, epochs, seconds in lines.values()]
    return (sum(left) + (runs - len(lines)) * sum(whole) / len(whole)) / len(lines)


def wait_for_tasks(ray: Any, tasks: list, resources: dict[str, float]) -> list:
    """Wait a while and return the tasks that have ended; print a message if they wait for a node."""
    ready, _ = ray.wait(tasks, timeout=POLL)
    if not ready and not has_room(ray, resources):
        print_progress(f"{describe_room(ray, resources)}: waiting for one that joins")
        ready, _ = ray.wait(tasks, timeout=12 * POLL)
    return ready


def has_room(ray: Any, resources: dict[str, float]) -> bool:
    """Whether any node has the resources of a run, free or in use."""
    wanted = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes)


def describe_room(ray: Any, resources: dict[str, float]) -> str:
    """Describe the resources of a run and of the nodes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    return (
        f"a run takes {resources['num_cpus']:g} CPUs and {resources['num_gpus']:g} GPUs, and no node has them ({have})"
    )


def device_names(resources: dict[str, float]) -> str:
    """Return the devices of a run: Ray shows a task only its own GPUs."""
    return ",".join(map(str, range(math.ceil(resources["num_gpus"])))) or "cpu"


def run_task(
    run: Run, settings: dict, folder: Path, token: str, model: bytes | None, board: Any, release: str
) -> tuple[dict, bytes | None]:
    """Do a run on a node, in the study's folder if the node has it, else in a temporary folder that is sent back."""
    if ultralytics.__version__ != release:
        raise RuntimeError(f"ultralytics is {ultralytics.__version__} on this node, and {release} where the study is")

    def watch(trainer: Any) -> None:
        seconds = time.time() - trainer.train_time_start
        board.write.remote(run.title, trainer.epoch + 1, trainer.epochs, seconds)

    mark = folder / TOKEN
    if mark.is_file() and mark.read_text(encoding="utf-8") == token:
        run.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(run.folder / ".lock"):  # a run whose node was lost may still be writing
            return perform_run(run, settings, watch), None
    with tempfile.TemporaryDirectory() as temporary:
        mine = replace(run, folder=Path(temporary) / run.label / run.folder.name)
        if model is not None:
            file = Path(temporary) / Path(run.model).name
            file.write_bytes(model)
            mine = replace(mine, model=str(file))
        return perform_run(mine, settings, watch), pack_folder(mine.folder)


def read_model_file(run: Run) -> bytes | None:
    """Read a model file of the user's, which other nodes may not have."""
    return Path(run.model).read_bytes() if Path(run.model).is_file() else None


def pack_folder(folder: Path) -> bytes:
    """Pack a folder's files into an archive."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.add(folder, arcname=".")
    return data.getvalue()


def unpack_folder(data: bytes, folder: Path) -> None:
    """Replace a folder by the files of an archive; the folder is never incomplete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(new, filter="data")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def measure_costs_on_cluster(
    models: dict[str, Path], sizes: dict[str, int], batch: int, address: str, resources: dict[str, float]
) -> dict[str, Any]:
    """Measure the costs of all models in one task."""
    ray = connect_cluster(address)
    try:
        task = ray.remote(**resources)(measure_costs_on_node)
        weights = {label: file.read_bytes() for label, file in models.items()}
        found = task.remote(weights, sizes, batch, device_names(resources))
        while not wait_for_tasks(ray, [found], resources):
            pass
        return ray.get(found)
    finally:
        ray.shutdown()


def measure_costs_on_node(weights: dict[str, bytes], sizes: dict[str, int], batch: int, name: str) -> dict[str, Any]:
    """Measure the costs of models on a node."""
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        files = {label: Path(temporary) / f"{i}.pt" for i, label in enumerate(weights)}
        for label, file in files.items():
            file.write_bytes(weights[label])
        return measure_costs(files, sizes, torch.device("cpu" if name == "cpu" else "cuda:0"), batch)
