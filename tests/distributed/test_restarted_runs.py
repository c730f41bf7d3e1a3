"""A restarted process finds the run of its own launcher, and goes on with it or leaves it as complete."""

import os
import sys
import types

import pytest
import torch

from ultralytics.fork.distributed import elastic_launch, launched_trainer, run_folder
from ultralytics.fork.training import resume
from ultralytics.utils import USER_CONFIG_DIR


def test_upstreams_own_launch_is_upstreams(monkeypatch):
    assert not elastic_launch.is_launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert elastic_launch.is_launched()
    monkeypatch.setattr(sys, "argv", [str(USER_CONFIG_DIR / "DDP" / "_temp_1.py")])  # `device=0,1`
    assert not elastic_launch.is_launched()
    trainer = types.SimpleNamespace()
    assert not launched_trainer.join_launcher(trainer, {}) and type(trainer) is types.SimpleNamespace


def test_a_run_is_found_by_its_launchers_only(tmp_path):
    for name, launchers, number in (("train", ["a"], 1), ("train2", ["b", "c"], 1), ("train3", ["b", "c"], 2)):
        run_folder.record_run(tmp_path / name, {"launchers": launchers, "number": number})
    new = tmp_path / "train4"
    assert run_folder.find_run(new, ["c", "d"], 1)[0] == tmp_path / "train2"  # one launcher is left of two
    assert run_folder.find_run(new, ["b"], 2)[0] == tmp_path / "train3"  # the second training of a script
    assert run_folder.find_run(new, ["d"], 1) is None
    (tmp_path / "train" / run_folder.RECORD).write_text("{")
    assert run_folder.find_run(new, ["a"], 1) is None
    assert run_folder.find_run(tmp_path / "none" / "train", ["b"], 1) is None


def test_workers_restarted_after_a_resumed_run_was_over_have_nothing_to_do(tmp_path, monkeypatch):
    """It is the end of their own launcher's run; another launch is told that there is nothing to resume."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "log" / "attempt_1" / "0" / "error.json"))
    run, last = tmp_path / "train", tmp_path / "train" / "weights" / "last.pt"
    run_folder.record_run(run, {"launchers": [run_folder.name_launcher()], "number": 1})
    model = types.SimpleNamespace(ckpt={"train_args": {"epochs": 1}, "optimizer": None}, ckpt_path=str(last))
    with pytest.raises(SystemExit) as e:
        resume.refuse_finished_run(model)
    assert e.value.code == 0
    run_folder.record_run(run, {"launchers": ["elsewhere:/tmp/x"], "number": 1})
    with pytest.raises(ValueError, match="there is nothing to resume"):
        resume.refuse_finished_run(model)


@pytest.mark.parametrize(
    "epoch, optimizer, more, expected",
    [
        (0, {}, {}, (True, False)),
        (1, {}, {}, (True, True)),
        (1, {}, {"training": {}}, (True, False)),  # its last validation is still to be made
        (-1, None, {}, (True, True)),
        (-1, {}, {}, (False, False)),
    ],
)
def test_what_a_restart_goes_on_with(tmp_path, epoch, optimizer, more, expected):
    """A checkpoint of an epoch is gone on with, a complete run, stripped or not, is left, all else begins anew."""
    last = tmp_path / "train" / "weights" / "last.pt"
    args = types.SimpleNamespace(save_dir=str(tmp_path / "train"))  # as with exist_ok=True

    def restart(launchers):
        run = launched_trainer.choose_run(args, launchers, 1)
        run_folder.record_run(tmp_path / "train", {"launchers": launchers, "number": 1, "before": run.before})
        assert run.folder == args.save_dir
        return bool(run.last), run.complete

    def save():
        torch.save({"epoch": epoch, "optimizer": optimizer, "train_args": {"epochs": 2}, **more}, last)

    assert restart(["a"]) == restart(["a"]) == (False, False)
    save()
    assert restart(["a"]) == restart(["a"]) == expected
    assert restart(["b"]) == restart(["b"]) == (False, False)  # another launch, restarted before it has written one
    save()
    os.utime(last, ns=(1, 1))  # whatever the clock's resolution
    assert restart(["b"]) == expected
