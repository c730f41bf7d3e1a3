"""A run loses nothing and stays finite: checkpoints, resume, Ctrl-C, full disks, losses that are not finite."""

import errno
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, load_file

from ultralytics import RTDETR
from ultralytics.nn.AddModules import checkpoints, finite
from ultralytics.nn.AddModules.gradients import lay_out
from ultralytics.nn.tasks import RTDETRDetectionModel

EPOCHS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten images to learn from, and four to validate with."""
    root = tmp_path_factory.mktemp("data")
    load_file(ROOT / "cfg_custom" / "datasets" / "shapes.py").generate(root / "data", train=10, val=4, size=64)
    file = root / "shapes10.yaml"
    file.write_text(f"path: {root / 'data'}\ntrain: images/train\nval: images/val\nnames: [circle, square, triangle]\n")
    return file


class Crash(RuntimeError):
    """What stands for a power cut."""


def train(folder, data, model="rtdetr-tiny-FLA.yaml", stop=None, callbacks=(), **kwargs):
    """Train four epochs of four batches, the last of one image, a step each three batches; crash at (epoch, batch)."""
    model = RTDETR(model)
    seen = {"batch": 0}

    def count(trainer):
        if stop and (trainer.epoch, seen["batch"]) == stop:
            raise Crash
        seen["batch"] += 1

    model.add_callback("on_train_epoch_start", lambda trainer: seen.update(batch=0))
    model.add_callback("on_train_batch_start", count)
    for event, callback in callbacks:
        model.add_callback(event, callback)
    settings = dict(epochs=EPOCHS, imgsz=64, batch=3, nbs=9, close_mosaic=2, optimizer="AdamW", lr0=1e-3, plots=False)
    settings |= dict(warmup_epochs=1, project=folder, name="run", exist_ok=True, mixup=0.3)
    model.train(**({"data": data} | settings | kwargs))
    return model


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing interrupts: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, data)
    return folder / "run"


def weights(file):
    """Read the tensors of a checkpoint's model."""
    checkpoint = torch.load(file, weights_only=False)
    return (checkpoint.get("ema") or checkpoint["model"]).state_dict()


def columns(run):
    """Read results.csv without the times."""
    lines = (run / "results.csv").read_text().splitlines()
    return [[c for i, c in enumerate(line.split(",")) if i != 1] for line in lines]


def same(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("stop", [(0, 2), (1, 0), (2, 1), (3, 3)], ids=str)
def test_a_resumed_run_ends_like_one_that_was_never_stopped(whole, data, tmp_path, stop):
    with pytest.raises(Crash):
        train(tmp_path, data, stop=stop)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert checkpoints.epochs_of(torch.load(last, weights_only=False)) == stop[0]
    torch.rand(5), random.random(), np.random.rand()  # another process has its own random state
    RTDETR(last).train(resume=True)
    for name in ("last.pt", "best.pt"):
        assert same(whole / "weights" / name, last.with_name(name))
    assert columns(tmp_path / "run") == columns(whole)


def test_a_moved_run_goes_on_where_it_is(whole, data, tmp_path):
    """And what is now in the folder that it had stays as it is."""
    with pytest.raises(Crash):
        train(tmp_path, data, stop=(1, 0))
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    model = RTDETR(tmp_path / "moved" / "weights" / "last.pt")
    model.train(resume=True)
    assert columns(tmp_path / "moved") == columns(whole) and not list((tmp_path / "run").iterdir())
    assert model.trainer.args.save_dir == str(tmp_path / "moved")


def test_a_run_that_is_over_is_not_resumed(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = whole / "weights" / "last.pt"
    with yolo("train", "resume", f"model={last}") as process:
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in said
    assert f"{last} is the result of a training that is over: there is nothing to resume" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is the result of a training that is over"):
        RTDETR("rtdetr-tiny.yaml").train(resume=str(last), data="none.yaml")


def test_a_checkpoint_beside_others_goes_on_with_its_run(whole, data, tmp_path):
    """A folder `weights` is a run's only beside its arguments."""
    with pytest.raises(Crash):
        train(tmp_path / "runs", data, stop=(1, 0))
    (tmp_path / "weights").mkdir()
    kept = shutil.copy(tmp_path / "runs" / "run" / "weights" / "last.pt", tmp_path / "weights" / "kept.pt")
    RTDETR(kept).train(resume=True)
    assert columns(tmp_path / "runs" / "run") == columns(whole)
    assert [file.name for file in (tmp_path / "weights").iterdir()] == ["kept.pt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["runs", "weights"]


def test_a_new_run_may_begin_below_a_folder_called_weights(data, tmp_path, monkeypatch):
    (tmp_path / "weights" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "weights" / "here")
    with pytest.raises(Crash):
        train(tmp_path, data, stop=(0, 0))
    assert (tmp_path / "run" / "weights" / "last.pt").exists()


def test_the_mean_loss_is_that_of_the_steps_that_were_taken():
    self = SimpleNamespace(good=0, pending=0, named=9, tloss=None)
    seen = []
    for i, value in enumerate([1.0, math.nan, math.nan, 4.0, 4.0, 4.0]):
        self.loss_items = {"a": torch.tensor(value)}  # then as upstream, before the backward pass
        means = {key: (self.tloss[key] * i + v) / (i + 1) for key, v in self.loss_items.items()} if self.tloss else None
        self.tloss = means or self.loss_items
        finite.look(self, self.loss_items["a"])
        seen.append(self.tloss["a"].item())
    assert seen == [1, 1, 1, 2.5, 3, 3.25]


def test_the_state_is_not_in_what_a_run_leaves(whole):
    for name in ("last.pt", "best.pt"):
        assert checkpoints.KEY not in torch.load(whole / "weights" / name, weights_only=False)


def test_a_kill_between_two_files_loses_no_best(data, tmp_path, monkeypatch):
    """Killed when last.pt of a new best epoch was written, and best.pt was not yet."""
    write = checkpoints.write
    state = {"writes": 0}

    def one_only(file, content):
        if Path(file).name == "best.pt" and state["writes"] >= 2:
            raise Crash
        state["writes"] += 1
        write(file, content)

    monkeypatch.setattr(checkpoints, "write", one_only)
    with pytest.raises(Crash):
        train(tmp_path, data)
    monkeypatch.undo()
    last, best = (tmp_path / "run" / "weights" / name for name in ("last.pt", "best.pt"))
    assert not same(last, best)
    with pytest.raises(Crash):
        model = RTDETR(last)

        def crash(trainer):
            raise Crash

        model.add_callback("on_train_epoch_start", crash)
        model.train(resume=True)
    assert same(last, best)


def test_a_checkpoint_is_old_or_new_at_any_moment(tmp_path):
    """Killed 20 times while it writes 8 MB again and again, the file is always one of what was written."""
    file = tmp_path / "last.pt"
    code = f"""
import itertools, torch
from ultralytics.nn import AddModules
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


def yolo(*args, **kwargs):
    """Start the command `yolo`."""
    code = "import sys; from ultralytics.cfg import entrypoint; sys.argv[0] = 'yolo'; entrypoint()"
    pipes = dict(
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], **pipes, **kwargs)


def arguments(folder, data):
    sizes = ("epochs=200", "imgsz=64", "batch=4", "plots=False", "val=False")
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
        wait_for(lambda: torch.load(last, weights_only=False)["epoch"] > epoch + 1, process)
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
        if len(written) > 4:  # best.pt and last.pt of before the first step and of the first epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError) as e:
        train(tmp_path, data)
    said, last = str(e.value), tmp_path / "run" / "weights" / "last.pt"
    assert e.value.errno == errno.ENOSPC and e.value.plain
    assert f"{last}" in said and "No space left on device" in said and "is whole" in said
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
        checkpoints.write(disk / "last.pt", b"old")
        with pytest.raises(OSError, match=r"last\.pt \(2\.0 MiB\) could not be saved: No space left on device"):
            torch.save(torch.zeros(2**19), disk / "last.pt")
        assert (disk / "last.pt").read_bytes() == b"old" and len(list(disk.iterdir())) == 1
    finally:
        subprocess.run(["umount", disk], check=True)


class Poison:
    """Makes the output of a module NaN in given batches of the run."""

    def __init__(self, name, batches):
        self.name, self.batches, self.batch = name, batches, -1

    def start(self, trainer):
        self.batch += 1
        if self.batch == 0:
            trainer.model.get_submodule(self.name).register_forward_hook(self.spoil)

    def spoil(self, module, _, out):
        return out * float("nan") if module.training and self.batch in self.batches else None


@pytest.mark.parametrize("batches", [range(2, 3), range(5, 7)], ids=["once", "twice"])
def test_a_loss_that_is_not_finite_names_the_layer_and_spoils_nothing(data, tmp_path, monkeypatch, batches):
    said = []
    monkeypatch.setattr(finite.LOGGER, "error", said.append)
    poison = Poison("model.5.cv.proj", batches)
    model = train(tmp_path, data, callbacks=[("on_train_batch_start", poison.start)], nbs=3)
    assert len(said) == len(batches)
    for line in said:
        assert "layer 5, HGBlock_FLA, in cv.proj (Linear)" in line and "The step is left out" in line
    run = tmp_path / "run"
    assert all(torch.isfinite(t).all() for t in weights(run / "weights" / "best.pt").values())
    assert all(torch.isfinite(t).all() for t in weights(run / "weights" / "last.pt").values())
    rows = columns(run)
    assert len(rows) == EPOCHS + 1 and model.trainer.best.exists()
    assert all(math.isfinite(float(v)) for row in rows[1:] for v in row)  # the mean is of the good steps


def test_a_run_that_stays_not_finite_ends_with_good_checkpoints(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(finite.LOGGER, "error", said.append)
    poison = Poison("model.7.ec", range(6, 10_000))
    with pytest.raises(RuntimeError, match="NaN persisted"):
        train(tmp_path, data, callbacks=[("on_train_batch_start", poison.start)], nbs=3)
    assert 1 <= len(said) <= finite.NAMED and all("layer 7, HGBlock, in ec (Conv)" in line for line in said)
    for name in ("best.pt", "last.pt"):
        file = tmp_path / "run" / "weights" / name
        assert all(torch.isfinite(t).all() for t in weights(file).values())
    # The second epoch had two good batches, the third none
    assert checkpoints.epochs_of(torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)) == 2


def test_a_gradient_that_is_not_finite_is_left_out(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(finite.LOGGER, "error", said.append)

    def spoil(trainer):
        trainer.model.model[3].ec.conv.weight.register_hook(lambda g: g * float("nan") if trainer.epoch == 1 else g)

    train(tmp_path, data, callbacks=[("on_train_start", spoil)], nbs=3)
    assert said and all("gradient of model.3.ec.conv.weight is not finite" in line for line in said)
    assert len(said) == finite.NAMED
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run" / "weights" / "last.pt").values())


def test_steps_left_out_for_ever_end_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "LIMIT", 3)

    def spoil(trainer):
        trainer.model.model[3].ec.conv.weight.register_hook(lambda g: g * float("nan"))

    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*last\.pt is the last good checkpoint"):
        train(tmp_path, data, callbacks=[("on_train_start", spoil)], nbs=3)
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run" / "weights" / "best.pt").values())


def test_a_run_killed_before_its_last_validation_makes_it_when_resumed(data, tmp_path):
    """All epochs are saved, and the files are not yet stripped."""

    def crash(validator):
        if not validator.training:
            raise Crash

    model = RTDETR("rtdetr-tiny.yaml")
    model.add_callback("on_val_start", crash)
    settings = dict(epochs=1, imgsz=64, batch=5, plots=False, project=tmp_path, name="run", exist_ok=True)
    keep = pytest.MonkeyPatch()
    keep.setattr("ultralytics.engine.trainer.strip_optimizer", lambda *_, **__: {})
    with pytest.raises(Crash):
        model.train(data=data, **settings)
    keep.undo()
    last = tmp_path / "run" / "weights" / "last.pt"
    assert checkpoints.KEY in torch.load(last, weights_only=False)
    said = RTDETR(last)
    said.train(resume=True)
    assert said.metrics.box.map >= 0
    for name in ("last.pt", "best.pt"):
        done = torch.load(last.with_name(name), weights_only=False)
        assert checkpoints.KEY not in done and done["optimizer"] is None


def test_autocast_s_overflow_is_found_under_autocast(data, monkeypatch):
    """What overflows in half precision only is named by a forward pass in half precision."""

    from ultralytics.nn.tasks import RTDETRDetectionModel

    said = []
    monkeypatch.setattr(finite.LOGGER, "error", said.append)
    model = RTDETRDetectionModel("rtdetr-tiny.yaml", nc=3, verbose=False).train()
    model.nc = 3
    model.model[0].stem1.conv.weight.data.fill_(3e4)
    batch = {
        "img": torch.ones(2, 3, 64, 64),
        "cls": torch.zeros(1, 1),
        "bboxes": torch.full((1, 4), 0.5),
        "batch_idx": torch.zeros(1),
    }
    trainer = SimpleNamespace(model=model, batch=batch, amp=True, epoch=0, pending=0, good=0)
    trainer.device, trainer.args = torch.device("cpu"), SimpleNamespace(amp=True)
    finite.look(trainer, torch.tensor(float("nan")))
    assert "layer 0, HGStem, in stem1.conv (Conv2d)" in said[0] and trainer.spoiled and not trainer.good


def test_the_report_of_a_run_is_of_what_it_starts_from(data, tmp_path):
    """Also where weights were loaded into a model before it is trained, in a copy of it."""
    RTDETR("rtdetr-tiny.yaml").save(tmp_path / "tiny.pt")
    settings = dict(data=data, epochs=1, imgsz=64, batch=5, plots=False, val=False, project=tmp_path, exist_ok=True)
    RTDETR("rtdetr-tiny-FLA.yaml").train(pretrained=tmp_path / "tiny.pt", name="by-argument", **settings)
    RTDETR("rtdetr-tiny-FLA.yaml").load(tmp_path / "tiny.pt").train(name="by-load", **settings)
    reports = [(tmp_path / name / "transfer.csv").read_text().splitlines() for name in ("by-argument", "by-load")]
    assert reports[0] == reports[1] and f"{tmp_path / 'tiny.pt'},5 HGBlock,5 HGBlock_FLA,48,57,0.842" in reports[0]


# Gradients ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TINY)
def test_gradients_of_one_image_are_right(name):
    """As those of the same image twice, of which the loss is the same: on a CPU torch's own are of another order."""
    torch.manual_seed(0)
    model = RTDETRDetectionModel(f"{name}.yaml", verbose=False).train()
    model.nc = 3
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
        elif isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    model.model[-1].num_denoising = 0  # whose noise is drawn for each image
    image = torch.rand(1, 3, 96, 96)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.7, 0.3, 0.2]])
    objects = {"cls": torch.tensor([[0.0], [2.0]]), "bboxes": boxes}

    def gradients(copies: int) -> list[torch.Tensor]:
        model.zero_grad()
        indices = torch.arange(copies).repeat_interleave(2).float()
        batch = {k: v.repeat(copies, 1) for k, v in objects.items()} | {"batch_idx": indices}
        loss, _ = model.loss({"img": image.repeat(copies, 1, 1, 1), **batch})
        loss.sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    hooks = lay_out(model)
    one = gradients(1)
    for hook in hooks:
        hook.remove()
    two = gradients(2)
    assert len(one) == len(two) > 100
    for a, b in zip(one, two):
        assert (a - b).norm() <= 2e-3 * b.norm() + 1e-6


def test_a_trainer_on_a_cpu_lays_gradients_out(data, tmp_path):
    seen = []

    def look(trainer):
        norms = [m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        seen.append(all(m._forward_hooks for m in norms))
        averaged = [m for m in trainer.ema.ema.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        seen.append(not any(m._forward_hooks for m in averaged))  # it is what a checkpoint holds

    model = RTDETR("rtdetr-tiny.yaml")
    model.add_callback("on_train_start", look)
    model.train(data=data, epochs=1, imgsz=64, batch=1, plots=False, val=False, project=tmp_path, name="run", workers=0)
    assert seen == [True, True]
