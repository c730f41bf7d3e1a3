"""Kills, Ctrl-C and full disks: a checkpoint is complete at any moment, and one line says how to go on."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from short_runs import EPOCHS, columns, data, train  # noqa: F401 - fixtures

from ultralytics import RTDETR
from ultralytics.fork import atomic_write


def test_a_run_that_is_over_is_not_resumed(data, tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = tmp_path_factory.mktemp("over")
    train(project, data, model="rtdetr-tiny.yaml", epochs=1)
    last = project / "run" / "weights" / "last.pt"
    with yolo("train", "resume", f"model={last}") as process:
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in said
    assert f"{last} is the result of a training that is over: there is nothing to resume" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is the result of a training that is over"):
        RTDETR("rtdetr-tiny.yaml").train(resume=str(last), data="none.yaml")


def test_a_checkpoint_is_old_or_new_at_any_moment(tmp_path):
    """Killed 20 times while it writes 8 MB again and again, the file is always one of what was written."""
    file = tmp_path / "last.pt"
    code = f"""
import itertools, torch
import ultralytics.nn.tasks
print("go", flush=True)
for i in itertools.count():
    torch.save({{"i": torch.full((2_000_000,), float(i))}}, {str(file)!r})
"""
    kills = 0
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while not file.exists():
            time.sleep(0.01)
        while kills < 20:  # a stop at any moment shows the disk as a kill would leave it
            time.sleep(random.uniform(0.001, 0.05))
            process.send_signal(signal.SIGSTOP)
            tensor = torch.load(file)["i"]
            assert (tensor == tensor[0]).all()
            process.send_signal(signal.SIGCONT)
            kills += 1
        process.kill()


def test_an_error_of_the_disk_is_not_hidden_by_torch_s_writer(tmp_path, monkeypatch):
    """Which ends with `unexpected pos`, and would hide Ctrl-C, too."""
    file = tmp_path / "last.pt"
    file.write_bytes(b"old")
    for error, expected in ((OSError(errno.ENOSPC, "full"), OSError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def save(f, error=error):
            def write(data):
                if f.tell() > 2**20:
                    raise error
                return f.write(data)

            stream = SimpleNamespace(write=write, flush=f.flush)
            torch.serialization.save([torch.zeros(2**19)] * 2 + [torch.ones(2**19)], stream)

        with pytest.raises(expected) as e:
            atomic_write.write_atomically(file, save)
        assert file.read_bytes() == b"old" and [found.name for found in tmp_path.iterdir()] == ["last.pt"]
        assert expected is KeyboardInterrupt or re.search(r"last\.pt \(after \d\.\d MiB\).*is complete", str(e.value))


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_is_linked_stays_as_it_is(has_links, tmp_path, monkeypatch):
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    best.write_bytes(b"older")
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    atomic_write.write_atomically(last, b"first")
    atomic_write.link_atomically(last, best)
    assert best.read_bytes() == b"first" and os.path.samefile(last, best) == has_links
    atomic_write.write_atomically(last, b"second")
    assert best.read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 2


def yolo(*args, **kwargs):
    """Start the command `yolo`."""
    code = "import sys; sys.argv[0] = 'yolo'; from ultralytics.cfg import entrypoint; entrypoint()"
    pipes = dict(
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], **pipes, **kwargs)


def arguments(folder, data):
    sizes = ("epochs=200", "imgsz=64", "batch=4", "workers=0", "plots=False", "val=False")
    return ("train", "model=rtdetr-tiny.yaml", f"data={data}", *sizes, f"project={folder}", "name=run", "exist_ok=True")


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.02)


def test_kill_and_ctrl_c(data, tmp_path):
    run = tmp_path / "run"
    last = run / "weights" / "last.pt"
    with yolo(*arguments(tmp_path, data)) as process:
        wait_for(lambda: (run / "results.csv").exists() and len(columns(run)) > 2, process)
        process.kill()
    epoch = torch.load(last, weights_only=False)["epoch"]
    assert epoch >= 0
    with yolo("train", "resume", f"model={last}") as process:
        wait_for(lambda: len(columns(run)) > 1 + (epoch + 1) + 1, process)  # the names, what was saved, another epoch
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    saved = torch.load(last, weights_only=False)["epoch"] + 1
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in said, said
    assert f"Stopped by Ctrl-C. {last} holds {saved} of 200 epochs; go on with: yolo train resume model={last}" in said
    numbers = [int(line[0]) for line in columns(run)[1:]]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= saved


def test_a_full_disk_ends_the_run_with_one_line(data, tmp_path, monkeypatch):
    written = []

    def full(fd):
        written.append(fd)
        if len(written) > 2:  # last.pt of before the first step and of the first epoch; best.pt is linked to it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_write.os, "fsync", full)
    with pytest.raises(OSError) as e:
        train(tmp_path, data)
    said, last = str(e.value), tmp_path / "run" / "weights" / "last.pt"
    assert e.value.errno == errno.ENOSPC and e.value.plain
    assert f"{last}" in said and "No space left on device" in said and "is complete" in said
    assert f"holds 1 of {EPOCHS} epochs; go on with: yolo train resume model={last}" in said
    assert torch.load(last, weights_only=False)["epoch"] == 0
    assert [file.name for file in last.parent.iterdir() if file.suffix == ".part"] == []


@pytest.mark.parametrize("command, lines", [("yolo", 1), ("script", 4)])
def test_a_plain_error_is_one_line_of_the_command(command, lines):
    code = f"import sys; sys.argv[0] = {command!r}; from ultralytics import RTDETR; RTDETR('absent.pt')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line and "WARNING" not in line]
    assert done.returncode == 1 and len(said) >= lines and ("Traceback" in done.stderr) == (lines > 1)
    assert "absent.pt does not exist, and could not be downloaded. Expected a checkpoint" in said[-1]
    assert lines > 1 or len(said) == 1


def test_a_small_disk_for_real(tmp_path):
    """A file system of 1 MiB, where this process may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        atomic_write.write_atomically(disk / "last.pt", b"old")
        with pytest.raises(OSError, match=r"last\.pt \(after \d\.\d MiB\) could not be saved: No space left on device"):
            torch.save(torch.zeros(2**19), disk / "last.pt")
        assert (disk / "last.pt").read_bytes() == b"old" and len(list(disk.iterdir())) == 1
    finally:
        subprocess.run(["umount", disk], check=True)
