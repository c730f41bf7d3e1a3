"""`yolo` on the device: train with AMP, stop and resume, validate, predict in half precision, export; two processes."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from _bench.step_process import stand_in_for_polars
from _gpu.checks import NotHere, Options, require, run_check
from _shared.small_data import write_shapes
from ultralytics import ASSETS, RTDETR

MODEL = "rtdetr-tiny-FLA.yaml"
EPOCHS = 2
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from _bench.step_process import stand_in_for_polars
stand_in_for_polars()
import torch.distributed as dist
dist.is_nccl_available = lambda: False  # NCCL takes one process a card
from ultralytics import RTDETR
RTDETR(sys.argv[2]).train(data=sys.argv[3], project=sys.argv[4], device=sys.argv[5], name="two", epochs=1, imgsz=64,
    batch=4, workers=0, amp=False, plots=False, optimizer="AdamW", lr0=1e-4, mosaic=0.0, close_mosaic=0, exist_ok=True)
"""


class Stop(Exception):
    """Ends a training in its second epoch."""


def check_commands(_: str, options: Options) -> None:
    """Run all checks in one folder; each needs what those before it have left."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        checks = CommandChecks(Path(name), options)
        for title, check in {
            f"train, {EPOCHS} epochs, AMP": checks.train,
            "resume": checks.resume,
            "val": checks.validate,
            "predict, half": checks.predict,
            "export, TorchScript": lambda: checks.export("torchscript"),
            "export, ONNX": lambda: checks.export("onnx"),
            "two processes on one device, gloo": checks.train_in_two_processes,
        }.items():
            run_check("commands", title, check)


class CommandChecks:
    """The checks, in one folder.

    Args:
        folder: Gets the data set and the runs.
        options: Of all parts.
    """

    def __init__(self, folder: Path, options: Options):
        stand_in_for_polars()
        self.folder, self.device, self.size = folder, "0" if options.device == "cuda" else "cpu", 64
        few = options.small
        self.data = write_shapes(folder / "shapes", 8 if few else 64, 4 if few else 16, size=96)
        self.arguments = {
            **{"data": str(self.data), "imgsz": self.size, "batch": 4, "device": self.device, "project": str(folder)},
            **{"epochs": EPOCHS, "workers": 0 if few else 4, "plots": not few, "verbose": False, "exist_ok": True},
        }

    def find_weights(self, run: str, file: str = "best.pt") -> Path:
        """Give a checkpoint of a run."""
        return self.folder / run / "weights" / file

    def train(self) -> dict:
        """All epochs, with finite losses."""
        RTDETR(MODEL).train(**self.arguments, name="whole", amp=True)
        return self.read_losses("whole")

    def read_losses(self, run: str, epochs: int = EPOCHS) -> dict:
        """Read the last losses of a run."""
        with open(self.folder / run / "results.csv", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        require(len(rows) == epochs, f"{len(rows)} epochs in results.csv")
        figures = {key: float(value) for key, value in rows[-1].items() if "loss" in key}
        require(all(torch.tensor(value).isfinite() for value in figures.values()), f"losses are {figures}")
        return figures

    def resume(self) -> dict:
        """Stopped in the second epoch, and gone on to the end."""
        model = RTDETR(MODEL)

        def stop(trainer: object) -> None:
            if getattr(trainer, "epoch", 0) == 1:
                raise Stop

        model.add_callback("on_train_batch_start", stop)
        with contextlib.suppress(Stop):
            model.train(**self.arguments, name="stopped", amp=True)
        RTDETR(self.find_weights("stopped", "last.pt")).train(resume=True, device=self.device)
        return self.read_losses("stopped")

    def validate(self) -> dict:
        """A finite mAP."""
        metrics = RTDETR(self.find_weights("whole")).val(
            data=str(self.data), imgsz=self.size, device=self.device, batch=4, workers=0, project=str(self.folder)
        )
        require(0 <= metrics.box.map <= 1, f"mAP50-95 is {metrics.box.map}")
        return {"mAP50-95": metrics.box.map}

    def predict(self) -> dict:
        """Detections on a photograph, in half precision on a GPU."""
        half = self.device != "cpu"
        (result,) = RTDETR(self.find_weights("whole")).predict(
            ASSETS / "bus.jpg", imgsz=self.size, device=self.device, half=half, conf=0.0, project=str(self.folder)
        )
        require(len(result.boxes) > 0 and bool(result.boxes.data.isfinite().all()), "no finite detections")
        return {"detections": len(result.boxes)}

    def export(self, kind: str) -> dict:
        """An export from the device, with the parity that the exporter finds itself."""
        if kind == "onnx" and not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
            raise NotHere("onnx and onnxruntime are not installed")
        file = RTDETR(self.find_weights("whole")).export(format=kind, imgsz=self.size, device=self.device)
        (result,) = RTDETR(file).predict(
            ASSETS / "bus.jpg", imgsz=self.size, device=self.device, conf=0.0, project=str(self.folder)
        )
        require(len(result.boxes) > 0, "no detections")
        return {"MiB": Path(file).stat().st_size / 2**20}

    def train_in_two_processes(self) -> dict:
        """The same loss as in one process, from two that share the device as two nodes of one process each would."""
        common = [MODEL, str(self.data), str(self.folder), self.device]
        scripts = str(Path(__file__).resolve().parents[1])
        environment = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port()), "OMP_NUM_THREADS": "1"}
        environment |= {"TORCHELASTIC_RUN_ID": "gpu", "TORCHELASTIC_RESTART_COUNT": "0", "PYTHONPATH": python_path()}
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, scripts, *common],
                env={**os.environ, **environment, "RANK": str(rank), "GROUP_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            said = [worker.communicate(timeout=150)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        for worker, text in zip(workers, said, strict=True):
            require(worker.returncode == 0, (text.strip().splitlines() or ["killed"])[-1])
        return self.read_losses("two", 1)


def find_free_port() -> int:
    """Find a port of this machine that nobody listens to."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def python_path() -> str:
    """Give the path that this process imports from, for another."""
    return os.pathsep.join(path for path in sys.path if path)
