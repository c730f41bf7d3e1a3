"""Model and data files are found by bare name from anywhere, and a model's head tells its kind, not its file's name."""

import shutil

import pytest
from conftest import MODELS, ROOT

from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel
from ultralytics.utils.checks import check_file


@pytest.mark.parametrize("name", [*(f"{name}.yaml" for name in MODELS), "shapes.yaml"])
def test_bare_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (found,) = (ROOT / "cfg_custom").rglob(name)
    assert check_file(name) == str(found)


def test_upstreams_files_and_the_users_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_file("rtdetr-l.yaml").startswith(str(ROOT / "ultralytics"))
    (tmp_path / "rtdetr-tiny.yaml").write_text("")
    assert check_file("rtdetr-tiny.yaml") == "rtdetr-tiny.yaml"
    with pytest.raises(FileNotFoundError, match="'rtdetr-tinny.yaml' does not exist"):
        check_file("rtdetr-tinny.yaml")


def test_no_name_is_upstreams_too():
    theirs = {f.name for f in (ROOT / "ultralytics").rglob("*.yaml")}
    assert not theirs & {f.name for f in (ROOT / "cfg_custom").rglob("*.yaml")}


@pytest.mark.parametrize("name", ["rtdetr-tiny-FLA", "rtdetr-tiny-EMO"])
def test_any_file_name_builds_an_rtdetr(name, tmp_path):
    shutil.copy(ROOT / "cfg_custom" / "models" / f"{name}.yaml", tmp_path / "foo.yaml")
    for interface in (YOLO, RTDETR):
        model = interface(tmp_path / "foo.yaml")
        assert type(model) is RTDETR and type(model.model) is RTDETRDetectionModel and model.task == "detect"
    model.save(tmp_path / "best.pt")
    again = YOLO(tmp_path / "best.pt")
    assert type(again) is RTDETR and type(again.model) is RTDETRDetectionModel


def test_other_heads_stay_what_they_are():
    assert type(YOLO("yolo26n.yaml")) is YOLO
    assert type(YOLO("yolo26n.yaml").model) is DetectionModel
    assert YOLO("yolo26n-seg.yaml").task == "segment"
