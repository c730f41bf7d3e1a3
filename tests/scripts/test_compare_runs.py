"""A run of a study: its settings, its device, the digest of its model, and what the trainer changes of them."""

import pytest
import torch
from compare_study import MODELS, arguments, data, main  # noqa: F401 - a fixture

from _compare import study_folder
from _compare.training_run import choose_device, perform_run, train_run
from _compare.validation import Validation
from ultralytics.fork.errors import Refused


def test_data_that_cannot_be_read(data, tmp_path, monkeypatch, capsys):
    for text in ("{", "train: images\n", f"path: {tmp_path}\ntrain: no\nval: no\nnames: [a]\n"):
        file = tmp_path / "bad.yaml"
        file.write_text(text, encoding="utf-8")
        assert main(monkeypatch, *arguments(file, tmp_path / "out")) == 2
        err = capsys.readouterr().err.strip().splitlines()[-1]
        assert err.startswith(f"compare.py: --data {file}: ")
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_with_what_the_machine_has_now(tmp_path, monkeypatch):
    """Its device and workers may be others than when it began; nothing that is trained changes."""
    given = {}

    class Model:
        def __init__(self, file):
            given["file"] = file
            self.trainer = None

        def train(self, **arguments):
            given.update(arguments)

    begun = study_folder.Run("x", "x.yaml", 0, tmp_path / "x" / "seed-0")
    begun.last.parent.mkdir(parents=True)
    torch.save({"optimizer": {}}, begun.last)
    monkeypatch.setattr("_compare.training_run.YOLO", Model)
    settings = {"arguments": {"workers": 1, "device": "cpu", "imgsz": 96, "verbose": False}}
    assert train_run(begun, settings)
    assert given == {"file": begun.last, "resume": True, "workers": 1, "device": "cpu"}


def test_digests_of_model_files(tmp_path):
    """Upstream's scaled names are no files; a comment is no other model; what cannot be parsed has a digest, too."""
    small, large = study_folder.describe_file("yolo11n.yaml"), study_folder.describe_file("yolo11x.yaml")
    assert small["file"] == "yolo11n.yaml" and small["digest"] != large["digest"]
    mine = tmp_path / "mine.yaml"
    digests = []
    for text in ("a: 1", "a: 1  # one", "a: 2", "{"):
        mine.write_text(text, encoding="utf-8")
        digests.append(study_folder.describe_file(str(mine))["digest"])
    assert digests[0] == digests[1] and len(set(digests)) == 3
    with pytest.raises(Refused, match="nothing.pt does not exist"):
        study_folder.describe_file("nothing.pt")


def test_devices(monkeypatch):
    """What a run was trained on may not be here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device({"device": "0"}, {"arguments": {}}) == ""
    assert choose_device({"device": "cpu"}, {"arguments": {}}) == "cpu"
    assert choose_device({"device": "cpu"}, {"arguments": {"device": "0"}}) == "0"


def test_what_the_trainer_rounds_and_renames(data, tmp_path):
    """A side that is no multiple of the stride, a batch that is chosen, one class."""
    trained = study_folder.Run("one", MODELS[0], 0, tmp_path / "one" / "seed-0")
    arguments = {"epochs": 1, "imgsz": 50, "batch": -1, "single_cls": True, "plots": False, "workers": 0}
    outcome = perform_run(trained, {"data": str(data), "arguments": arguments})
    assert outcome["state"] == "done", outcome["traceback"]
    assert outcome["imgsz"] == 64 and list(outcome["figures"]["classes"]) == ["item"]
    assert list(Validation.load(trained.folder / study_folder.FOUND).names) == ["item"]
