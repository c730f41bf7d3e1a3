"""What is verified of a patched tree, and `check` over several releases, on made-up upstreams that build models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from _upstream.pin import Pin, UpstreamError
from _upstream.queue import check
from _upstream.queue.apply import apply
from _upstream.queue.export import export
from _upstream.queue.tree import manifest, tree_sha256
from _upstream.verify import build_models

ROOT = Path(__file__).resolve().parents[2]
TASKS = "ultralytics/nn/tasks.py"

# A made-up upstream: RTDETR and YOLO hold a network of one layer, whose width a patch may change
FILES = {
    "ultralytics/__init__.py": '__version__ = "{release}"\nfrom ultralytics.nn.tasks import RTDETR, YOLO\n',
    "ultralytics/cfg/models/rtdetr-l.yaml": "nc: 2\n",
    "ultralytics/cfg/models/yolov8-seg.yaml": "nc: 2\n",
    "ultralytics/nn/__init__.py": "",
    TASKS: """\
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, name):
        super().__init__()
        ours = not name.startswith(("rtdetr-l", "yolo"))
        width = 3
        self.ours = ours
        self.bias = nn.Parameter(torch.rand(width))
        self.unused = nn.Parameter(torch.rand(width))
        layer = nn.Identity()
        layer.i, layer.f, layer.type, layer.np = 0, -1, "Identity", 0
        self.model, self.save, self.yaml = nn.Sequential(layer), [0], {"nc": 2}

    def forward(self, x):
        image = x["img"] if isinstance(x, dict) else x
        y = image.mean((2, 3)) * self.bias[:3] + self.used()
        return (y.sum(), None) if isinstance(x, dict) else (y,)

    def used(self):
        return self.unused[:3]

    def fuse(self, verbose=True):
        return self


class RTDETR:
    def __init__(self, name):
        self.model = Network(name)


class YOLO(RTDETR):
    pass
""",
}
WAYS = ("-gradient", "-nan", "-raise", "-fuse")  # to be wrong
GOOD = ("        width = 3\n", "        width = 4 if ours else 3\n")


def make_wheel(folder: Path, release: str, *changes: tuple[str, str]) -> Path:
    """Write a release's wheel, with lines of tasks.py replaced."""
    wheel = folder / f"ultralytics-{release}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in FILES.items():
            for old, new in changes if name == TASKS else ():
                assert text.count(old) == 1
                text = text.replace(old, new)
            archive.writestr(name, text.replace("{release}", release))
        needs = "Requires-Dist: torch\nRequires-Dist: numpy\n"
        archive.writestr(f"ultralytics-{release}.dist-info/METADATA", f"Name: ultralytics\nVersion: {release}\n{needs}")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout with one patch, `GOOD`, on release 9.0.0."""
    root = tmp_path_factory.mktemp("verify") / "checkout"
    (root / "patches").mkdir(parents=True)
    (root / "ultralytics" / "nn" / "AddModules").mkdir(parents=True)
    (root / "ultralytics" / "nn" / "AddModules" / "__init__.py").write_text("")
    (root / "cfg_custom" / "models").mkdir(parents=True)
    parameters = dict.fromkeys(("ours-large", *(f"ours-tiny{way}" for way in ("", *WAYS))), 8)
    for name in parameters:
        (root / "cfg_custom" / "models" / f"{name}.yaml").write_text("nc: 2\n")
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "scripts/_upstream/verify/parameters.json").write_text(json.dumps(parameters))
    wheel = make_wheel(root / "wheels", "9.0.0")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "unpacked", [name for name in archive.namelist() if "dist-info" not in name])
    digests = hashlib.sha256(wheel.read_bytes()).hexdigest(), tree_sha256(manifest(root / "unpacked"))
    shutil.rmtree(root / "unpacked")
    (root / "patches" / "upstream.toml").write_text(Pin("9.0.0", *digests).text())
    apply(root)
    file = root / TASKS
    file.write_text(file.read_text().replace(*GOOD))
    export(root, "Widen ours", new=True)
    return root


@pytest.fixture
def here(monkeypatch) -> None:
    """Build the models with this environment, which has torch."""
    monkeypatch.setattr(build_models, "python_command", lambda needs: [sys.executable])


def found(root: Path, release: str) -> check.Finding:
    (finding,) = check.check(root, [release], 1, lambda _: None)
    return finding


@pytest.fixture(scope="module")
def several(checkout) -> tuple[list[check.Finding], list[str]]:
    """What `check` finds of several releases, of which one is right, and what it says meanwhile."""
    make_wheel(checkout / "wheels", "9.3.0", ("        self.ours = ours\n", "        self.ours = bool(ours)\n"))
    make_wheel(checkout / "wheels", "9.4.0", (GOOD[0], "        width = 2 + 1\n"))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_models, "python_command", lambda needs: [sys.executable])
        patch.setenv("PIP_NO_INDEX", "1")
        findings = check.check(checkout, ["9.0.0", "9.3.0", "9.4.0", "9.9.0", "8.3.41"], 2, seen.append)
    return findings, seen


# What a patched tree can be -------------------------------------------------------------------------------------------
def test_right(several):
    finding = several[0][0]
    v = finding.verdict
    assert finding.is_right and (v.models, v.of_models, v.vanilla, v.of_vanilla) == (6, 6, 2, 2)
    assert finding.applied == "1 clean" and finding.problems == []


def test_what_is_wrong_on_a_new_release_is_named(checkout, here):
    """Each model but one fails in a way of its own."""
    change = """\
        if self.name == "ours-tiny-gradient.yaml":
            return 0
        if self.name == "ours-tiny-nan.yaml":
            return self.unused[:3] * float("nan")
        if self.name == "ours-tiny-raise.yaml":
            return 1 / 0
        return self.unused[:3]
"""
    lines = "        self.ours = ours\n        self.name = name\n        larger = 'large' in name\n"
    more = ("        self.ours = ours\n", lines)
    wider = ("self.bias = nn.Parameter(torch.rand(width))", "self.bias = nn.Parameter(torch.rand(width + larger))")
    fused = ("        return self\n", "        return nn.Identity() if 'fuse' in self.name else self\n")
    make_wheel(checkout / "wheels", "9.1.0", ("        return self.unused[:3]\n", change), more, wider, fused)
    finding = found(checkout, "9.1.0")
    v = finding.verdict
    assert not finding.is_right and (v.models, v.of_models, v.vanilla, v.of_vanilla) == (1, 6, 2, 2)
    assert finding.problems == [
        "ours-large: has 9 parameters, not 8",
        "ours-tiny-fuse: fused is wrong",
        "ours-tiny-gradient: 1 parameters get no gradient: unused, …",
        "ours-tiny-nan: output is wrong",
        "ours-tiny-nan: loss is wrong",
        "ours-tiny-nan: fused is wrong",
        "ours-tiny-nan: 1 parameters get no gradient: unused, …",
        "ours-tiny-raise: ZeroDivisionError: division by zero",
    ]
    text = check.format_findings([finding])
    assert "9.1.0 falls short:\n  ours-large: has" in text and "0 of 1 releases right" in text


def test_a_release_that_does_not_import(checkout, here):
    make_wheel(checkout / "wheels", "9.1.1", ("import torch\nfrom", "import torch, no_such_module\nfrom"))
    finding = found(checkout, "9.1.1")
    assert not finding.is_right and finding.verdict.models == finding.verdict.vanilla == 0
    assert "ultralytics does not import: ModuleNotFoundError: No module named 'no_such_module'" in finding.problems


def test_a_vanilla_model_that_the_queue_changes(checkout, here, tmp_path):
    root = shutil.copytree(checkout, tmp_path / "checkout", symlinks=True)
    file = root / TASKS
    file.write_text(file.read_text().replace("4 if ours else 3", "4 if ours or 'seg' in name else 3"))
    export(root)
    finding = found(root, "9.0.0")
    v = finding.verdict
    assert (v.models, v.vanilla, v.of_vanilla) == (6, 1, 2) and not finding.is_right
    (problem,) = finding.problems
    assert problem == "yolov8n-seg.yaml is not the untouched release's: ours builds, untouched builds"


def test_an_untouched_release_that_does_not_work_proves_nothing(checkout, here):
    make_wheel(checkout / "wheels", "9.2.0", ("        layer = nn.Identity()\n", "        layer = 1 / ours\n"))
    finding = found(checkout, "9.2.0")
    assert finding.verdict.vanilla == 0 and not finding.is_right
    assert any("untouched ZeroDivisionError" in problem for problem in finding.problems)


def test_the_two_sides_are_built_from_the_two_trees(checkout, here, tmp_path):
    """A tree that is shadowed by an installed ultralytics is noticed."""
    (tmp_path / "empty").mkdir()
    _found, problems = build_models.run_probe([], tmp_path / "empty", "vanilla", [], lambda _: None)
    assert len(problems) == 1 and "the models were built from" in problems[0] and "empty" in problems[0]


def test_model_files_and_their_counts_belong_together(checkout, tmp_path):
    root = shutil.copytree(checkout, tmp_path / "checkout", symlinks=True)
    (root / "cfg_custom" / "models" / "new.yaml").write_text("nc: 1\n")
    with pytest.raises(UpstreamError, match="new is not in scripts/_upstream/verify/parameters.json"):
        build_models.read_expected_parameters(root)
    (root / "cfg_custom" / "models" / "new.yaml").unlink()
    (root / "cfg_custom" / "models" / "ours-large.yaml").unlink()
    with pytest.raises(UpstreamError, match="ours-large is not in cfg_custom/models"):
        build_models.read_expected_parameters(root)


def test_vanilla_models_are_those_that_the_release_has():
    names = build_models.list_vanilla_models(ROOT)
    assert {"rtdetr-l.yaml", "yolo26n-seg.yaml", "yolov8s-worldv2.yaml", "yoloe-11s.yaml", "yolov9c.yaml"} <= set(names)
    assert len(names) == len(build_models.VANILLA), "a name that the pinned release does not have"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals on this system")
@pytest.mark.parametrize(
    "command, number",
    [
        (["check", "9.6.0"], signal.SIGINT),
        (["rebase", "9.6.0"], signal.SIGTERM),
        pytest.param(["check", "9.6.0"], signal.SIGTERM, marks=pytest.mark.nightly),
        pytest.param(["rebase", "9.6.0"], signal.SIGINT, marks=pytest.mark.nightly),
    ],
)
def test_an_interrupt_leaves_nothing_behind(checkout, tmp_path, command, number):
    """Neither a process that builds models nor a folder; and a rebase can be taken up again."""
    root = shutil.copytree(checkout, tmp_path / "checkout", symlinks=True)
    sleep = "import os, time, torch; open(os.environ['PID'], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)\nfrom"
    make_wheel(root / "wheels", "9.6.0", ("import torch\nfrom", sleep))
    words = [sys.executable, "-c", RUN_HERE.format(scripts=str(root / "scripts")), *command]
    environment = {**os.environ, "PID": str(tmp_path / "pid"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(words, env=environment, stdout=-1, stderr=-1, text=True)
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().endswith("\n"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 1 and "interrupted" in err and "Traceback" not in err, out + err
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert list((tmp_path / "tmp").iterdir()) == []
    left = {path.name for path in (root / ".upstream").iterdir()}
    assert left - {"rebase"} == {"lock", "repo", "wheels"} and ("rebase" in left) == (command[0] == "rebase")


RUN_HERE = """
import sys
sys.path.insert(0, {scripts!r})
import upstream
from _upstream.verify import build_models
build_models.python_command = lambda needs: [sys.executable]
upstream.main(sys.argv[1:])
"""


# Several releases -----------------------------------------------------------------------------------------------------
def test_check_goes_on_where_a_release_falls_short(checkout, several):
    findings, seen = several
    assert sorted(seen) == sorted(f"{f.release} {'right' if f.is_right else 'falls short'}" for f in findings)
    assert [finding.is_right for finding in findings] == [True, False, False, False, False]
    assert [finding.applied for finding in findings] == ["1 clean", "conflict", "conflict", "no", "no"]
    assert findings[1].problems == [f"patches/0001-Widen-ours.patch: conflict: {TASKS}, line 9 (Network.__init__)"]
    assert "could not download" in findings[3].problems[0] and "malware" in findings[4].problems[0]
    assert "1 of 5 releases right" in check.format_findings(findings)
    assert [f["right"] for f in json.loads(check.findings_as_json(findings))] == [f.is_right for f in findings]
    left = {path.name for path in (checkout / ".upstream").iterdir()}
    assert left == {"lock", "repo", "wheels"}


def test_the_command_from_the_outside(checkout, monkeypatch):
    """In an environment that uv makes, and then in this one, with the exit status and what is printed where."""
    if not shutil.which("uv"):
        pytest.skip("uv is not installed")
    make_wheel(checkout / "wheels", "9.5.0", ("return self.unused[:3]", "return 0"))
    command = [sys.executable, str(checkout / "scripts" / "upstream.py")]
    done = subprocess.run([*command, "check", "9.0.0"], capture_output=True, text=True)
    assert done.returncode == 0 and "| 9.0.0 | 1 clean | 6 of 6 | 2 of 2 |" in done.stdout, done.stdout + done.stderr
    assert "1 of 1 releases right" in done.stdout
    before = sorted((path, path.stat().st_mtime_ns) for path in (checkout / "patches").iterdir())
    here = [sys.executable, "-c", RUN_HERE.format(scripts=str(checkout / "scripts"))]
    done = subprocess.run([*here, "rebase", "9.5.0", "--dry-run", "--json"], capture_output=True, text=True)
    assert done.returncode == 1 and json.loads(done.stdout)["outcome"] == "wrong"
    assert sorted((path, path.stat().st_mtime_ns) for path in (checkout / "patches").iterdir()) == before
    for arguments in (["check"], ["rebase", "--abort", "9.1.0"], ["rebase", "--continue", "--dry-run"]):
        assert subprocess.run([*command, *arguments], capture_output=True).returncode == 2
    done = subprocess.run([*command, "rebase", "8.3.41", "--json"], capture_output=True, text=True)
    assert done.returncode == 1 and json.loads(done.stdout)["outcome"] == "error"
    assert done.stderr.startswith("upstream.py: ultralytics 8.3.41 carried malware") and done.stderr.count("\n") == 1
    done = subprocess.run([*command, "check", "9.0.0"], capture_output=True, text=True, env={"PATH": "", "UV": ""})
    assert done.returncode == 1 and "git was not found" in done.stdout + done.stderr
