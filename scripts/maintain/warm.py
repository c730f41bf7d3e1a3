"""The command `yolo` of upstream's tests, forked from a process that has torch and the like imported already.

Upstream's tests start it some eighty times, and most of what each costs is such imports. Upstream's package is not
among them: each command imports it anew. A copy of this file is put beside each side:

    python warm.py --serve     import, then fork for each command that comes in at the socket
    python warm.py ARG …       hand a command over, and end as it ends; without a socket, run it here

The environment variable WARM_YOLO names the socket.
"""

from __future__ import annotations

import os
import sys

# What every command, or every training, imports
MODULES = ("torch", "torchvision", "torch._dynamo", "torch._inductor.standalone_compile", "matplotlib.pyplot", "cv2")
SECONDS_BETWEEN_LOOKS = 0.02


def serve(path: str) -> None:
    """Wait for commands; returns only in a process that has one to run, with its arguments and all as its own."""
    import importlib
    import socket

    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    for module in MODULES:
        importlib.import_module(module)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            return attend(connection)
        connection.close()
        reap()


def reap() -> None:
    """Wait for what has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def attend(connection) -> None:
    """Fork the command, and send its exit status; end it where the one who asked has gone."""
    import json
    import select
    import signal
    import socket

    size = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.recv(size, socket.MSG_WAITALL))
    pid = os.fork()
    if pid == 0:
        connection.close()
        return become(request, streams)
    for stream in streams:
        os.close(stream)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            connection.sendall(bytes([os.waitstatus_to_exitcode(status) & 255]))
            os._exit(0)
        if select.select([connection], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            os.kill(pid, signal.SIGKILL)


def become(request: dict, streams: list[int]) -> None:
    """Take over what the asking process has: streams, folder, variables, arguments."""
    import random

    import numpy as np

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.argv[:] = request["arguments"]
    random.seed()
    np.random.seed()


def ask(path: str) -> int:
    """Hand over the command that this process was started with; returns its exit status."""
    import json
    import socket

    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = {"folder": os.getcwd(), "variables": dict(os.environ), "arguments": sys.argv}
    data = json.dumps(request).encode()
    connection.sendall(len(data).to_bytes(8, "big"))
    socket.send_fds(connection, [b" "], [0, 1, 2])
    connection.sendall(data)
    status = connection.recv(1)
    return status[0] if status else 1


def main() -> None:
    """Do what the arguments and the environment say."""
    path = os.environ.get("WARM_YOLO")
    if sys.argv[1:] == ["--serve"]:
        serve(path)
    elif path and os.path.exists(path):
        sys.exit(ask(path))
    from ultralytics.cfg import entrypoint

    sys.exit(entrypoint())


if __name__ == "__main__":
    main()
