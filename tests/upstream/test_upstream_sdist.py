"""A source distribution of upstream's is of the pinned release, safe and whole, and is kept, or it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_release import PACKAGE, RELEASE, make_sdist, make_wheel

from _upstream.fetch import sdist
from _upstream.pin import Pin, UpstreamError


@pytest.fixture
def release(tmp_path) -> Path:
    return make_wheel(tmp_path / f"ultralytics-{RELEASE}-py3-none-any.whl")


@pytest.mark.parametrize(
    "package, named",
    [
        ({**PACKAGE, "ultralytics/__init__.py": "answer = 41\n"}, "ultralytics/__init__.py"),
        ({**PACKAGE, "ultralytics/more.py": ""}, "ultralytics/more.py"),
        ({"ultralytics/__init__.py": PACKAGE["ultralytics/__init__.py"]}, "ultralytics/cfg/default.yaml"),
    ],
)
def test_an_sdist_of_another_release_is_refused(tmp_path, release, package, named):
    (tmp_path / "wheels").mkdir()
    make_sdist(tmp_path / "wheels" / f"ultralytics-{RELEASE}.tar.gz", {}, package)
    with pytest.raises(UpstreamError, match=f"{named} not as in {release.name}.*remove the file"):
        sdist.fetch_sdist(tmp_path, Pin(RELEASE, "", ""), release, tmp_path)


@pytest.mark.parametrize("folder", ["../evil", "/evil", "..\\evil"])
def test_an_sdist_with_an_unsafe_path_is_refused(tmp_path, release, folder):
    with pytest.raises(UpstreamError, match="unsafe path"):
        sdist.read_members(make_sdist(tmp_path / "a.tar.gz", {}, folder=folder))


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_broken_sdist_is_named(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(UpstreamError, match="a.tar.gz .*damaged archive.*run this again"):
        sdist.read_members(tmp_path / "a.tar.gz")


def test_a_downloaded_sdist_is_kept(tmp_path, release, monkeypatch):
    """It is whole or not there, and asked for once."""
    (tmp_path / ".upstream").mkdir()
    (tmp_path / "download").mkdir()
    downloads = []

    def download(pin, folder):
        downloads.append(pin.release)
        return make_sdist(folder / f"ultralytics-{pin.release}.tar.gz", {"tests/test_a.py": ""})

    monkeypatch.setattr(sdist, "download_sdist", download)
    for _ in range(2):
        found = sdist.fetch_sdist(tmp_path, Pin(RELEASE, "", ""), release, tmp_path / "download")
    kept = tmp_path / ".upstream" / "sdists"
    assert downloads == [RELEASE] and found == kept / f"ultralytics-{RELEASE}.tar.gz"
    assert [file.name for file in kept.iterdir()] == [found.name]
    sdist.unpack_tests(found, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pyproject.toml", "tests"]


def test_an_sdist_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UpstreamError, match=rf"could not download ultralytics-{RELEASE}.tar.gz: .*into wheels/"):
        sdist.download_sdist(Pin(RELEASE, "", ""), tmp_path)
