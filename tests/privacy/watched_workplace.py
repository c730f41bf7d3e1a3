"""A folder in which commands run without a network and are watched for what they send.

Python's own sockets are seen by an audit hook in each of its processes, those of native code by strace, where it is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ultralytics.fork.privacy.telemetry import OPT_OUT_VARIABLES

# What upstream's 8.4.190 writes for one who has chosen nothing, and what earlier releases of it had on
THEIRS = {
    "settings_version": "0.0.8",
    "uuid": "0" * 64,
    "sync": True,
    "api_key": "",
    "openai_api_key": "",
    "raytune": True,
    "tensorboard": False,
    "vscode_msg": True,
    "openvino_msg": True,
    **dict.fromkeys(("clearml", "comet", "dvc", "mlflow", "wandb"), True),
}
# Imported by each Python process that has its folder on the path
WATCH = """
import os, sys

ASKED = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname", "socket.sendmsg",
         "socket.sendto"}
AT_HOME = {None, "", "localhost", "::1", "0.0.0.0", "::"}
FETCHES = {"clone", "curl", "download", "fetch", "install", "pull", "update", "wget"}

def watch(event, args):
    if event in ASKED:
        address = args[0] if "get" in event else args[1]
        host = address[0] if isinstance(address, tuple) else address if "get" in event else None
        host = host.decode() if isinstance(host, bytes) else host
        if host in AT_HOME or host.startswith("127."):
            return
        what = f"{event} {host}"
    elif event == "subprocess.Popen" and FETCHES & {os.path.basename(os.fspath(word)) for word in args[1]}:
        what = f"{event} {args[1]}"
    else:
        return
    with open(os.environ["WATCH"], "a") as f:
        f.write(f"{what} in {sys.argv}\\n")

sys.addaudithook(watch)
"""
# `yolo` with several commands, one after the other
SEVERAL = """
import sys
from ultralytics.cfg import entrypoint
for command in sys.argv[1:]:
    entrypoint(command)
"""


@cache
def apart() -> tuple[str, ...]:
    """The command that takes the network away from another one; none where this machine does not allow it."""
    for way in (("unshare", "-n"), ("unshare", "-rn")):
        script = ["sh", "-c", "ip link set lo up || ifconfig lo up"]
        if shutil.which(way[0]) and subprocess.run([*way, *script], capture_output=True).returncode == 0:
            return *way, "sh", "-c", '(ip link set lo up || ifconfig lo up) && exec "$@"', "sh"
    return ()


@cache
def traced() -> tuple[str, ...]:
    """The command that notes what a command and its children send; none where this machine does not allow it."""
    way = "strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg"
    works = shutil.which("strace") and subprocess.run([*way, "true"], capture_output=True).returncode == 0
    return way if works else ()


class Workplace:
    """A folder with settings that upstream wrote, in which commands are run and watched."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "watch").mkdir(parents=True)
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        (folder / "yolo").write_text(SEVERAL)
        self.settings = folder / "config" / "Ultralytics" / "settings.json"
        self.settings.parent.mkdir(parents=True)
        folders = {f"{name}_dir": str(folder / name) for name in ("datasets", "weights", "runs")}
        self.settings.write_text(json.dumps({**THEIRS, **folders}))
        self.log, self.calls = folder / "log", folder / "calls"
        # What a test or a CI says of itself would keep upstream's analytics off
        ours = {"YOLO_OFFLINE", "PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "YOLO_AUTOINSTALL", *OPT_OUT_VARIABLES}
        self.env = {name: value for name, value in os.environ.items() if name not in ours}
        self.env |= {
            "HOME": str(folder),
            "PYTHONPATH": str(folder / "watch"),
            "WATCH": str(self.log),
            "YOLO_CONFIG_DIR": str(folder / "config"),
        }

    def run(self, *argv: object, **variables: str) -> str:
        """Run a command without a network; give what it printed."""
        trace = [*traced(), "-A", "-o", str(self.calls)] if traced() else []
        argv = [*apart(), *trace, *map(str, argv)]
        done = subprocess.run(argv, cwd=self.folder, env=self.env | variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def python(self, *argv: object, **variables: str) -> str:
        return self.run(sys.executable, *argv, **variables)

    def yolo(self, *commands: str, **variables: str) -> str:
        return self.python("yolo", *(f"yolo {command}" for command in commands), **variables)

    def seen(self) -> list[str]:
        """What went out, or was tried to."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        out = [call for call in calls if re.search(r"sa_family=AF_INET6?\b", call)]
        return lines + [call for call in out if not re.search(r'"((::ffff:)?127\.[\d.]+|::1|0\.0\.0\.0|::)"', call)]


@pytest.fixture
def workplace(tmp_path):
    return Workplace(tmp_path / "work")
