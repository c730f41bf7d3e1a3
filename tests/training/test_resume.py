"""A run that stops at any moment is resumed as if it had never stopped."""

import random
import shutil

import numpy as np
import pytest
import torch
from short_runs import Crash, columns, data, same, train, whole  # noqa: F401 - fixtures

from ultralytics import RTDETR
from ultralytics.fork.training import resumable_checkpoint, resume
from ultralytics.fork.training.resumable_checkpoint import TRAINING_STATE_KEY
from ultralytics.fork.training.resume import count_epochs

NIGHTLY = [pytest.param(stop, marks=pytest.mark.nightly) for stop in ((1, 1), (2, 3))]


@pytest.mark.parametrize("stop", [(0, 2), *NIGHTLY], ids=str)
def test_a_resumed_run_ends_like_one_that_was_never_stopped(whole, data, tmp_path, stop):
    with pytest.raises(Crash):
        train(tmp_path, data, stop=stop)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert count_epochs(torch.load(last, weights_only=False)) == stop[0]
    torch.rand(5), random.random(), np.random.rand()  # another process has its own random state
    RTDETR(last).train(resume=True)
    for name in ("last.pt", "best.pt"):
        assert same(whole / "weights" / name, last.with_name(name))
    assert columns(tmp_path / "run") == columns(whole)


@pytest.mark.end_to_end("resume")
def test_a_moved_run_goes_on_where_it_is(whole, data, tmp_path):
    """And what is now in the folder that it had stays as it is."""
    with pytest.raises(Crash):
        train(tmp_path, data, stop=(1, 0))
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    model = RTDETR(tmp_path / "moved" / "weights" / "last.pt")
    model.train(resume=True)
    assert columns(tmp_path / "moved") == columns(whole) and not list((tmp_path / "run").iterdir())
    for name in ("last.pt", "best.pt"):
        assert same(whole / "weights" / name, tmp_path / "moved" / "weights" / name)
    assert model.trainer.args.save_dir == str(tmp_path / "moved")


@pytest.mark.nightly
def test_a_run_goes_on_after_images_were_removed(data, tmp_path):
    root = shutil.copytree(data.parent / "data", tmp_path / "data")
    file = tmp_path / "mine.yaml"
    file.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [circle, square, triangle]\n")
    with pytest.raises(Crash):
        train(tmp_path, file, stop=(1, 2), close_mosaic=0, epochs=2)
    for image in sorted((root / "images" / "train").iterdir())[4:]:
        image.unlink()
    last, said = tmp_path / "run" / "weights" / "last.pt", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.LOGGER, "warning", said.append)
        RTDETR(last).train(resume=True)
    assert len(columns(tmp_path / "run")) == 1 + 2
    assert sum("has 4 images, and had more when the run stopped" in line for line in said) == 1


def test_a_checkpoint_beside_others_goes_on_with_its_run(whole, data, tmp_path):
    """A folder `weights` is a run's only beside its arguments."""
    with pytest.raises(Crash):
        train(tmp_path / "runs", data, stop=(2, 3))
    (tmp_path / "weights").mkdir()
    kept = shutil.copy(tmp_path / "runs" / "run" / "weights" / "last.pt", tmp_path / "weights" / "kept.pt")
    RTDETR(kept).train(resume=True)
    assert columns(tmp_path / "runs" / "run") == columns(whole)
    for name in ("last.pt", "best.pt"):
        assert same(whole / "weights" / name, tmp_path / "runs" / "run" / "weights" / name)
    assert [file.name for file in (tmp_path / "weights").iterdir()] == ["kept.pt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["runs", "weights"]


def test_a_new_run_may_begin_below_a_folder_called_weights(data, tmp_path, monkeypatch):
    (tmp_path / "weights" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "weights" / "here")
    with pytest.raises(Crash):
        train(tmp_path, data, stop=(0, 0))
    assert (tmp_path / "run" / "weights" / "last.pt").exists()


def test_the_state_is_not_in_what_a_run_leaves(whole):
    for name in ("last.pt", "best.pt"):
        assert TRAINING_STATE_KEY not in torch.load(whole / "weights" / name, weights_only=False)


def test_a_kill_between_two_files_loses_no_best(data, tmp_path, monkeypatch):
    """Killed when last.pt of a new best epoch was written, and best.pt was not yet."""
    link, links = resumable_checkpoint.link_atomically, []

    def one_only(source, file):
        if links:  # the first is of before the first epoch
            raise Crash
        links.append(file)
        link(source, file)

    monkeypatch.setattr(resumable_checkpoint, "link_atomically", one_only)
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
    assert TRAINING_STATE_KEY in torch.load(last, weights_only=False)
    said = RTDETR(last)
    said.train(resume=True)
    assert said.metrics.nt_per_class.sum() > 4 and said.metrics.box.map == said.trainer.metrics["metrics/mAP50-95(B)"]
    for name in ("last.pt", "best.pt"):
        done = torch.load(last.with_name(name), weights_only=False)
        assert TRAINING_STATE_KEY not in done and done["optimizer"] is None


def test_the_report_of_a_run_is_of_what_it_starts_from(data, tmp_path):
    """Also where weights were loaded into a model before it is trained, in a copy of it."""
    RTDETR("rtdetr-tiny.yaml").save(tmp_path / "tiny.pt")
    settings = dict(data=data, epochs=1, imgsz=64, batch=5, plots=False, val=False, project=tmp_path, exist_ok=True)
    RTDETR("rtdetr-tiny-FLA.yaml").train(pretrained=tmp_path / "tiny.pt", name="by-argument", **settings)
    RTDETR("rtdetr-tiny-FLA.yaml").load(tmp_path / "tiny.pt").train(name="by-load", **settings)
    reports = [(tmp_path / name / "transfer.csv").read_text().splitlines() for name in ("by-argument", "by-load")]
    assert reports[0] == reports[1] and f"{tmp_path / 'tiny.pt'},5 HGBlock,5 HGBlock_FLA,48,57,0.842" in reports[0]
