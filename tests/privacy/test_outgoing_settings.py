"""What upstream's settings would send is off until the user turns it on, and stays on then."""

import json
import re
from pathlib import Path

import pytest
from watched_workplace import THEIRS, workplace  # noqa: F401 - a fixture

from ultralytics.fork.privacy.telemetry import OUTGOING_SETTINGS, turned_on_file
from ultralytics.utils import SettingsManager

# After each of some commands, an event is sent to the loopback, as each command sends one to upstream's makers
SENDS = """
import http.server, sys, threading
from ultralytics import utils
from ultralytics.cfg import entrypoint, get_cfg
utils.ONLINE = True  # without a network nothing would be sent
from ultralytics.utils import events

class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        got.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass

server = http.server.HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
events.Events.url = f"http://127.0.0.1:{server.server_port}"
for command in sys.argv[1:]:
    got, before = [], set(threading.enumerate())
    if command:
        entrypoint(f"yolo {command}")
    events.Events()(get_cfg(overrides={"mode": "val", "task": "detect"}))
    for thread in set(threading.enumerate()) - before:
        thread.join()
    print("SENT", len(got), file=sys.stderr)
"""


def test_analytics_are_sent_only_where_they_are_turned_on(workplace):
    def sent(*commands: str) -> list[int]:
        return [int(n) for n in re.findall(r"SENT (\d)", workplace.python("-c", SENDS, *commands))]

    assert json.loads(workplace.settings.read_text())["sync"] is True
    assert sent("", "settings runs_dir=runs", "settings sync=True") == [0, 0, 1]
    assert sent("", "settings sync=False", "settings sync=True", "settings reset") == [1, 0, 1, 0]
    assert sent("") == [0]


@pytest.fixture
def file(tmp_path):
    """A settings file that upstream wrote."""
    file = tmp_path / "settings.json"
    folders = {f"{name}_dir": str(tmp_path / name) for name in ("datasets", "weights", "runs")}
    file.write_text(json.dumps({**THEIRS, **folders}))
    return file


def on(file: Path) -> set[str]:
    """What a new process finds turned on, of what sends something out."""
    return {key for key in OUTGOING_SETTINGS if SettingsManager(file).get(key)}


def test_what_upstream_turned_on_is_off_and_the_rest_stays(file):
    settings = SettingsManager(file)
    assert on(file) == set() and settings["runs_dir"] == str(file.parent / "runs") and settings["raytune"] is True
    settings.update(runs_dir="elsewhere")
    assert on(file) == set() and SettingsManager(file)["runs_dir"] == "elsewhere"


def test_what_the_user_turned_on_stays_on(file):
    SettingsManager(file).update({"comet": True, "sync": True})
    assert on(file) == {"comet", "sync"}
    SettingsManager(file)["wandb"] = True
    SettingsManager(file).update(comet=False, runs_dir="elsewhere")
    assert on(file) == {"sync", "wandb"}
    SettingsManager(file, version="0.0.9")  # of another release, which migrates them
    assert on(file) == {"sync", "wandb"}
    SettingsManager(file).reset()
    assert on(file) == set()


def test_new_settings_send_nothing(tmp_path):
    assert on(tmp_path / "settings.json") == set()


def test_upstream_finds_its_settings_as_it_knows_them(file):
    """Its keys and no other, or it would write them anew, with a warning."""
    SettingsManager(file).update(sync=True)
    assert json.loads(file.read_text()).keys() == SettingsManager(file).defaults.keys()


def test_a_choice_that_cannot_be_read_is_none(file):
    SettingsManager(file).update(sync=True)
    for text in ("", "3", "[[]]", "\0"):
        turned_on_file(SettingsManager(file)).write_text(text)
        assert on(file) == set()
