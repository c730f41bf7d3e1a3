"""An archive is unpacked into its own folder only, makes no links, and does not fill the disk."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from untrusted_data_set import lies_elsewhere, marker  # noqa: F401 - a fixture

from ultralytics.data import utils
from ultralytics.fork.data import archives
from ultralytics.utils.downloads import safe_download


def zipped(file: Path, size: int = 4, name: str = "set/a.txt") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, bytes(size))
    return file


def tarred(file: Path, size: int = 4, name: str = "set/a.txt") -> Path:
    with tarfile.open(file, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = size
        tar.addfile(member, io.BytesIO(bytes(size)))
    return file


@pytest.mark.parametrize("pack, suffix", [(zipped, "zip"), (tarred, "tar.gz")])
def test_an_archive_is_unpacked_into_its_place_only(pack, suffix, tmp_path, monkeypatch):
    out = tmp_path / "out"
    safe_download(pack(tmp_path / f"good.{suffix}"), dir=out)
    assert (out / "set" / "a.txt").read_bytes() == bytes(4)
    for name in ("../evil.txt", str(tmp_path / "evil.txt"), "set/../../evil.txt"):
        safe_download(pack(tmp_path / f"evil.{suffix}", name=name), dir=out, exist_ok=True)
        assert not list(tmp_path.rglob("evil.txt"))
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 2**16)
    bomb = pack(tmp_path / f"bomb.{suffix}", size=2**20, name="bomb/a.txt")
    with pytest.raises(ValueError, match=rf"bomb.{suffix} is not unpacked: 0.0 MiB .*unpack it yourself"):
        safe_download(bomb, dir=out)
    assert not (out / "bomb").exists() and bomb.exists()


def test_an_archive_makes_no_links(tmp_path):
    """Nor devices; nor is anything written through a link that is there."""
    file, out = tmp_path / "links.tar", tmp_path / "out"
    with tarfile.open(file, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"set/{kind!r}")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("set/elsewhere/a"))
    (out / "set").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (out / "set" / "elsewhere").symlink_to(tmp_path / "elsewhere")
    safe_download(file, dir=out)
    assert [f.name for f in (out / "set").iterdir()] == ["elsewhere"] and not list((tmp_path / "elsewhere").iterdir())


def test_a_damaged_archive_is_one_line(tmp_path):
    file = tarred(tmp_path / "cut.tar.gz", size=100_000)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="cut.tar.gz") as e:
        utils.check_det_dataset(file)
    assert e.value.plain and "\n" not in str(e.value)


def test_a_dataset_in_an_archive_runs_nothing(tmp_path, marker, monkeypatch):
    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "datasets")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as z:
        z.write(lies_elsewhere(tmp_path, f"open({str(marker)!r}, 'w')"), "set/data.yaml")
    with pytest.raises(FileNotFoundError) as e:
        utils.check_det_dataset(tmp_path / "set.zip")
    assert e.value.plain and not marker.exists()
