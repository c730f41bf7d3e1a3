"""Installing: each way of it gives a working `yolo` and finds a model by its bare name, from any folder.

Dependencies come from the environment that runs the tests, so that none is downloaded; what is installed is asserted to
be the copy that is imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import PYTHONS, find_python

from _upstream.pin import Pin

ROOT = Path(__file__).resolve().parents[2]
BUILD_MODEL = """
import sys, ultralytics
print(ultralytics.__file__)
from ultralytics import YOLO
model = YOLO(sys.argv[1])
assert sum(p.numel() for p in model.model.parameters()) > 0
"""


def run(*command: str | Path, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run a command with the user's settings but none of a Python or uv environment."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "ULTRALYTICS_WHEEL", "UV_PROJECT_ENVIRONMENT"}
    kept = {key: value for key, value in os.environ.items() if key not in hidden and not key.startswith("GIT_")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**kept, **environment}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 or not check, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done


def version() -> str:
    """Read the version of pyproject.toml."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version = "))


class Environment:
    """A virtual environment of its own that borrows the dependencies of the running one."""

    def __init__(self, folder: Path):
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / "python"
        paths = {"base": str(folder), "platbase": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", "venv" if os.name != "nt" else "nt", paths))
        self.folder = folder

    def pip(self, *what: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        """Install something without its dependencies."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-deps"]
        return run(*pip, *what, cwd=self.folder, check=check, **environment)

    def works(self, elsewhere: Path, copy: Path) -> None:
        """Assert that `yolo version` and a model by its bare name work, on the copy of the package in a folder."""
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.packages / "zz_borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
        settings = {"YOLO_CONFIG_DIR": str(self.folder)}
        out = run(self.scripts / "yolo", "version", cwd=elsewhere, **settings).stdout
        assert out.split()[-1] == version(), out
        out = run(self.python, "-c", BUILD_MODEL, "rtdetr-tiny-FLA.yaml", cwd=elsewhere, **settings).stdout
        assert Path(out.splitlines()[0]).samefile(copy / "ultralytics" / "__init__.py"), out


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """A git repository of what the working tree would commit."""
    root = tmp_path_factory.mktemp("origin") / "repository"
    names = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    who = ["-c", "user.name=tests", "-c", "user.email=tests@example.invalid"]
    run("git", "init", "--quiet", ".", cwd=root)
    run("git", "add", "--all", ".", cwd=root)
    run("git", *who, "commit", "--quiet", "-m", "Working tree", cwd=root)
    return root


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Upstream's wheel: the one that set-up has kept, else a download."""
    kept = ROOT / ".upstream" / "wheels" / Pin.read(ROOT).wheel
    if kept.is_file():
        return kept
    folder = tmp_path_factory.mktemp("wheel")
    release = version().partition("+")[0]
    run(sys.executable, "-m", "pip", "download", "--no-deps", f"ultralytics=={release}", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture
def clone(repository, tmp_path) -> Path:
    """A fresh clone in a folder that has spaces and letters beyond ASCII in its name."""
    root = tmp_path / "my projects, größer 目录" / "ultralytics addmodules"
    run("git", "clone", "--quiet", repository, root, cwd=tmp_path)
    return root


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


@pytest.mark.nightly
def test_editable(clone, environment, elsewhere, wheel):
    environment.pip("-e", clone, ULTRALYTICS_WHEEL=str(wheel))
    environment.works(elsewhere, clone)
    status = run("git", "status", "--porcelain", cwd=clone).stdout
    assert status == "", "set-up left files that git sees"


@pytest.mark.nightly
def test_plain(clone, environment, elsewhere, wheel):
    environment.pip(clone, ULTRALYTICS_WHEEL=str(wheel))
    shutil.rmtree(clone)
    environment.works(elsewhere, environment.packages)


@pytest.mark.nightly
def test_from_git(repository, environment, elsewhere, wheel):
    environment.pip(f"git+{repository.as_uri()}", ULTRALYTICS_WHEEL=str(wheel))
    environment.works(elsewhere, environment.packages)


def test_sdist_and_wheel(clone, environment, elsewhere, wheel, tmp_path):
    pytest.importorskip("build")
    out = tmp_path / "dist"
    run(sys.executable, "-m", "build", "--outdir", out, clone, cwd=tmp_path, ULTRALYTICS_WHEEL=str(wheel))
    shutil.rmtree(clone)
    assert sorted(file.name for file in out.iterdir()) == [
        f"ultralytics-{version()}-py3-none-any.whl",
        f"ultralytics-{version()}.tar.gz",
    ]
    built = next(out.glob("*.whl"))
    check_content(built)
    environment.pip(built)
    environment.works(elsewhere, environment.packages)


def check_content(built: Path) -> None:
    """Assert that a wheel has what it needs and nothing that it should not."""
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        metadata = archive.read(f"ultralytics-{version()}.dist-info/METADATA").decode()
    for folder in ("cfg_custom/models", "cfg_custom/datasets"):
        ours = {file.name for file in (ROOT / folder).iterdir() if file.is_file()}
        assert {Path(name).name for name in names if name.startswith(f"ultralytics/{folder}/")} >= ours
    for folder in ("ultralytics/nn/AddModules", "ultralytics/fork"):
        ours = {file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob("*.py")}
        assert {name for name in names if name.startswith(f"{folder}/")} == ours
    assert {"ultralytics/__init__.py", "ultralytics/nn/tasks.py", "ultralytics/cfg/default.yaml"} <= set(names)
    assert f"ultralytics-{version()}.dist-info/licenses/LICENSE" in names
    assert "\nLicense-Expression: AGPL-3.0" in metadata and f"\nVersion: {version()}\n" in metadata
    assert len(names) == len(set(names))
    strangers = [name for name in names if not name.startswith(("ultralytics/", f"ultralytics-{version()}.dist-info/"))]
    assert not strangers
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".part"))]


def test_a_clone_has_the_same_bytes_whatever_git_does_to_line_ends(repository, wheel, tmp_path):
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", "--config=core.autocrlf=true", repository, clone, cwd=tmp_path)
    for command in ("apply", "export"):
        run(sys.executable, "scripts/upstream.py", command, cwd=clone, ULTRALYTICS_WHEEL=str(wheel))
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
    for name in run("git", "ls-files", "-z", cwd=clone).stdout.split("\0")[:-1]:
        assert (clone / name).read_bytes() == (repository / name).read_bytes(), name


@pytest.mark.parametrize("cause", ["no network", "wrong hash"])
def test_a_failure_is_one_clear_line_in_what_pip_prints(clone, environment, wheel, tmp_path, cause):
    settings = {}
    if cause == "wrong hash":
        tampered = tmp_path / wheel.name
        tampered.write_bytes(wheel.read_bytes() + b"\0")
        settings["ULTRALYTICS_WHEEL"] = str(tampered)
        says = "pinned is"
    else:  # for the hook's pip alone: this one has the build's requirements to get
        hook = clone / "hatch_build.py"
        text = hook.read_text(encoding="utf-8").replace(
            "from _upstream.queue.apply import apply\n",
            "import os\n\n        os.environ.update(PIP_NO_INDEX='1', PIP_FIND_LINKS='')\n"
            "        from _upstream.queue.apply import apply\n",
        )
        hook.write_text(text, encoding="utf-8")
        says = "could not download ultralytics=="
    before = run("git", "status", "--porcelain", "--ignored", cwd=clone).stdout
    done = environment.pip("-e", clone, check=False, **settings)
    text = done.stdout + done.stderr
    assert done.returncode and says in text, text
    assert [says in line and "ultralytics set-up: " in line for line in text.splitlines()].count(True) == 1, text
    assert "Traceback" not in text, text
    left = run("git", "status", "--porcelain", "--ignored", cwd=clone).stdout.splitlines()
    assert [line for line in left if line not in before and "pycache" not in line] == ["!! .upstream/"]


# uv -------------------------------------------------------------------------------------------------------------------
needs_uv = pytest.mark.skipif(
    not shutil.which("uv") or subprocess.run(["uv", "--version"], capture_output=True).returncode != 0,
    reason="uv is not on PATH",
)


@needs_uv
@pytest.mark.nightly
def test_uv_build(clone, environment, elsewhere, wheel, tmp_path):
    run("uv", "build", "--quiet", "--out-dir", tmp_path / "dist", cwd=clone, ULTRALYTICS_WHEEL=str(wheel))
    built = next((tmp_path / "dist").glob("*.whl"))
    check_content(built)
    environment.pip(built)
    environment.works(elsewhere, environment.packages)


@needs_uv
def test_uv_editable(clone, environment, elsewhere, wheel):
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--python", environment.python, "-e", clone]
    run(*install, cwd=elsewhere, ULTRALYTICS_WHEEL=str(wheel))
    environment.works(elsewhere, clone)
    status = run("git", "status", "--porcelain", cwd=clone).stdout
    assert status == "", "set-up left files that git sees"


@needs_uv
@pytest.mark.nightly
@pytest.mark.parametrize("version", PYTHONS)
def test_uv_run_on_each_python(clone, elsewhere, wheel, version):
    """The README's way, from an empty environment: some gigabytes, and so at night."""
    command = ["uv", "run", "--quiet", "--no-dev", "--project", clone, f"--python={find_python(version)}", "python"]
    settings = {"ULTRALYTICS_WHEEL": str(wheel), "YOLO_CONFIG_DIR": str(elsewhere)}
    out = run(*command, "-c", BUILD_MODEL, "rtdetr-tiny-FLA.yaml", cwd=elsewhere, **settings).stdout
    assert Path(out.splitlines()[-1]).samefile(clone / "ultralytics" / "__init__.py"), out
