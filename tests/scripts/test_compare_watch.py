"""A page of a running study: what it says, that it is read only, and to whom it is served."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from _compare import study_folder, watch
from ultralytics.fork.errors import Refused


@pytest.fixture
def folder(tmp_path):
    """A study with a run that is over, one at work, one that has failed and one that waits."""
    settings = {"models": {"a<b>": "rtdetr-tiny.yaml", "b": "rtdetr-tiny.yaml"}, "taken": {}, "data": "shapes.yaml"}
    study = study_folder.Study(tmp_path, {**settings, "seeds": [0, 1], "arguments": {}})
    study.save(results=[])
    first, second, third, _ = study.runs
    first.conclude({"state": "done", "figures": {"mAP50-95": 0.123}, "taken": None})
    second.folder.mkdir(parents=True)
    (second.folder / "results.csv").write_text(f"epoch,time,{watch.METRIC}\n1,2,0.1\n2,4,0.456\n")
    third.conclude({"state": "failed", "error": "a <reason>", "taken": None})
    return tmp_path


@pytest.fixture
def address(folder):
    server = watch.make_server(folder, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_the_page(folder, address):
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    status, page = get(f"{address}/")
    assert status == 200 and "1 of 4 runs are over" in page and "data:image/svg+xml" in page
    assert "<td>a&lt;b&gt;</td><td>0</td><td>done</td><td>12.3</td>" in page
    assert "<td>b</td><td>0</td><td>epoch 2</td><td>45.6</td>" in page
    assert "failed: a &lt;reason&gt;" in page and "<td>waits</td>" in page
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_nothing_else_is_served(address):
    assert get(f"{address}/study.json")[0] == 404
    assert get(f"{address}/", Host="example.com:80")[0] == 404


def test_no_study(tmp_path):
    with pytest.raises(Refused, match="there is no study"):
        watch.make_server(tmp_path, 0)


def test_studies_of_several_data_sets(folder, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    (above / "one").symlink_to(folder)
    (above / "study.json").write_text(json.dumps({"data": ["one"], "results": []}))
    assert watch.list_studies(above) == [above / "one"]
