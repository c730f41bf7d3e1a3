"""Lay down the pinned upstream release with the patch queue on it, and turn edits made in place into patches again.

    python scripts/upstream.py apply      make ultralytics/ the recorded tree: what installing the project does
    python scripts/upstream.py status     the pin, the queue with its changed lines, the state of ultralytics/
    python scripts/upstream.py export     fold what was edited under ultralytics/ into patches/

Upstream's wheel comes from the package registry through pip, or from a file: the environment variable
ULTRALYTICS_WHEEL names it (or a folder that holds it), else the folder wheels/ of the checkout is looked at. Releases
and queue are commits in a scratch repository, .upstream/repo, so that the work is git's own.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    try:
        import tomli as tomllib
    except ModuleNotFoundError:  # outside of the build environment; pip has it
        from pip._vendor import tomli as tomllib

PACKAGE = "ultralytics"
OURS = f"{PACKAGE}/nn/AddModules/"
STAMP = f"{PACKAGE}/.addmodules.json"  # what was laid down: release, queue and the hash of each file
SOURCES = {".py", ".yaml"}  # a new file of these is an edit, anything else is left alone
WHEEL_VARIABLE = "ULTRALYTICS_WHEEL"
APPLY = "python scripts/upstream.py apply"

# The same input gives the same commits, and so the same patches, on every machine
IDENTITY = {"NAME": "ultralytics-addmodules", "EMAIL": "addmodules@example.invalid", "DATE": "2026-01-01T00:00:00+0000"}
GIT_ENVIRONMENT = {
    **{f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    "TZ": "UTC",
}
GIT_CONFIG = {"core.autocrlf": "false", "core.safecrlf": "false", "commit.gpgsign": "false", "gc.auto": "0"}
FORMAT_PATCH = "--no-signature --zero-commit --no-numbered --no-stat --full-index --no-renames --unified=3".split()


class UpstreamError(Exception):
    """What stops set-up, in one line that names the file and the remedy."""


@dataclass(frozen=True)
class Pin:
    """The upstream release that the queue is for, from patches/upstream.toml."""

    release: str
    wheel_sha256: str
    tree_sha256: str

    @classmethod
    def read(cls, root: Path) -> Pin:
        file = root / "patches" / "upstream.toml"
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
            return cls(data["release"], data["wheel-sha256"], data["tree-sha256"])
        except FileNotFoundError:
            raise UpstreamError(f"{file} is missing: this is no whole checkout, clone it again") from None
        except KeyError as e:
            raise UpstreamError(f"{file} has no {e}; `git checkout patches/upstream.toml` restores it") from None
        except ValueError as e:  # neither TOML nor UTF-8
            raise UpstreamError(f"{file}: {e}; `git checkout patches/upstream.toml` restores it") from None

    @property
    def wheel(self) -> str:
        return f"{PACKAGE}-{self.release}-py3-none-any.whl"


def patches(root: Path) -> list[Path]:
    """List the queue in order."""
    return sorted((root / "patches").glob("[0-9]*.patch"))


def queue_sha256(root: Path) -> str:
    """Hash everything that determines the tree: the pin and the queue."""
    digest = hashlib.sha256()
    for file in [root / "patches" / "upstream.toml", *patches(root)]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


# Trees ----------------------------------------------------------------------------------------------------------------
def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def manifest(base: Path) -> dict[str, str]:
    """Hash each file of a tree under `base`/ultralytics but ours, byte code and the stamp, by its path."""
    files = {}
    for folder, folders, names in os.walk(base / PACKAGE):
        folders[:] = sorted(f for f in folders if f != "__pycache__")
        for name in sorted(names):
            path = Path(folder) / name
            relative = path.relative_to(base).as_posix()
            if not relative.startswith(OURS) and relative != STAMP:
                files[relative] = sha256(path)
    return files


def tree_sha256(files: dict[str, str]) -> str:
    """Hash a tree, given the hash of each of its files."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_stamp(root: Path) -> dict:
    """Give what was laid down last, with `pending` in it if that was interrupted."""
    try:
        return json.loads((root / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def absent(root: Path, files: dict[str, str]) -> list[str]:
    """List the laid-down files that are gone."""
    return [path for path in sorted(files) if not (root / path).is_file()]


def created(root: Path, files: dict[str, str]) -> list[str]:
    """List the source files under ultralytics/ that were not laid down."""
    new = (PurePosixPath(path) for path in manifest(root) if path not in files)
    return [str(path) for path in new if path.suffix in SOURCES and not any(p.startswith(".") for p in path.parts)]


def edits(root: Path, *known: dict[str, str]) -> list[str]:
    """List the laid-down files whose content is none of the known ones."""
    paths = {path for files in known for path in files}
    return sorted(
        path
        for path in paths
        if (root / path).is_file() and sha256(root / path) not in {files.get(path) for files in known}
    )


# Git ------------------------------------------------------------------------------------------------------------------
def git(*args: str, cwd: Path, stdin: str | None = None, check: bool = True, **environment: str) -> str:
    """Run git with its own fixed settings and give what it prints."""
    config = [word for key, value in GIT_CONFIG.items() for word in ("-c", f"{key}={value}")]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *config, *args],
            cwd=cwd,
            env={**inherited, **GIT_ENVIRONMENT, **environment},
            input=None if stdin is None else stdin.encode(errors="surrogateescape"),
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
        )
    except FileNotFoundError:
        raise UpstreamError("git was not found; install git and run this again") from None
    if check and done.returncode:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no message"]
        # git does not always say so, and what it has cut short is no patch that does not apply
        if any("No space left" in line for line in lines) or shutil.disk_usage(cwd).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise UpstreamError(f"git {args[0]} failed: {lines[-1]}")
    return done.stdout.decode(errors="surrogateescape")


def make_repository(repo: Path, wheel: Path, pin: Pin) -> None:
    """Make a repository whose only commit, tagged with the release, is upstream's package."""
    repo.mkdir(parents=True)
    git("init", "--quiet", "--template=", "--initial-branch=queue", ".", cwd=repo)
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text("* -text\n*.py diff=python\n")
    unpack(wheel, repo)
    git("add", "--all", "--force", ".", cwd=repo)
    git("commit", "--quiet", "-m", f"{PACKAGE} {pin.release}", cwd=repo)
    git("tag", release_tag(pin), cwd=repo)


def release_tag(pin: Pin) -> str:
    return f"release/{pin.release}"


def apply_queue(repo: Path, queue: list[Path]) -> None:
    """Commit each patch of the queue.

    Raises:
        UpstreamError: For a patch that does not apply, with the file and the hunk.
    """
    for patch in queue:
        text = patch.read_bytes().replace(b"\r\n", b"\n").decode(errors="surrogateescape")
        if "\ndiff --git " not in text:
            raise UpstreamError(f"patches/{patch.name} holds no patch; `git checkout patches` restores it")
        try:
            git("am", "--quiet", "--keep-cr", "--keep-non-patch", "-", cwd=repo, stdin=text)
        except UpstreamError as e:
            where = first_rejected_hunk(repo, text)
            git("am", "--abort", cwd=repo, check=False)
            if where is None:
                raise UpstreamError(f"patches/{patch.name}: {e}") from None
            raise UpstreamError(f"patches/{patch.name} does not apply to {where}") from None


def first_rejected_hunk(repo: Path, patch: str) -> str | None:
    """Name the file and the hunk of a patch that git refuses, or None if it refuses the patch for something else."""
    try:
        git("apply", "--check", "-", cwd=repo, stdin=patch)
    except UpstreamError:
        pass
    else:
        return None
    path, number = None, 0
    parts = re.split(r"(?m)^(?=diff --git |@@ )", patch)
    header = ""
    for part in parts:
        if part.startswith("diff --git "):
            header, number = part, 0
            path = re.search(r"^diff --git a/(\S+)", part)[1]
            if not (repo / path).exists() and "new file mode" not in part:
                return f"{path}: upstream has no such file"
        elif part.startswith("@@ "):
            number += 1
            hunk = re.split(r"(?m)^-- ?$", part)[0]
            try:
                git("apply", "--check", "--recount", "-", cwd=repo, stdin=header + hunk)
            except UpstreamError:
                return f"{path}, hunk {number} ({part.splitlines()[0]})"
    return path


# The wheel ------------------------------------------------------------------------------------------------------------
def find_wheel(root: Path, pin: Pin) -> Path | None:
    """Find the release's wheel on disk, where the user or an earlier run has put it."""
    named = os.environ.get(WHEEL_VARIABLE)
    if named:
        wheel = Path(named).expanduser()
        wheel = wheel / pin.wheel if wheel.is_dir() else wheel
        if not wheel.is_file():
            raise UpstreamError(f"{WHEEL_VARIABLE}={named}: there is no {wheel.name}; unset it to download the wheel")
        return wheel
    wheel = root / "wheels" / pin.wheel
    return wheel if wheel.is_file() else None


def fetch(root: Path, pin: Pin, folder: Path) -> Path:
    """Get the release's wheel, by pip where it is not on disk, and verify it.

    Raises:
        UpstreamError: Where pip cannot get it, or its sha256 is not the pinned one.
    """
    wheel = find_wheel(root, pin)
    kept = root / ".upstream" / "wheels" / pin.wheel
    if wheel is None and kept.is_file() and sha256(kept) == pin.wheel_sha256:
        return kept
    if wheel is None:
        wheel = download(pin, folder)
    digest = sha256(wheel)
    if digest != pin.wheel_sha256:
        raise UpstreamError(
            f"{wheel} has sha256 {digest}, pinned is {pin.wheel_sha256} (patches/upstream.toml): not the file that "
            "was published, do not use it"
        )
    return wheel


def download(pin: Pin, folder: Path) -> Path:
    """Download the release's wheel with pip, whose index, proxy and certificate settings hold."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--retries=2", f"--dest={folder}", f"{PACKAGE}=={pin.release}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheel = folder / pin.wheel
    if done.returncode or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        reason = lines[0].removeprefix("ERROR: ") if lines else f"pip exited with {done.returncode}"
        raise UpstreamError(
            f"could not download {PACKAGE}=={pin.release}: {reason}; connect to the network, or set {WHEEL_VARIABLE} "
            f"to a local {pin.wheel}"
        )
    return wheel


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack upstream's package, and nothing that would land elsewhere."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                path = PurePosixPath(entry.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
                    raise UpstreamError(f"{wheel}: unsafe path {entry.filename!r} in the archive, do not use it")
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise UpstreamError(f"{wheel}: symbolic link {entry.filename!r} in the archive, do not use it")
                if path.parts[:1] == (PACKAGE,) and not path.as_posix().startswith(OURS):
                    archive.extract(entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
        raise UpstreamError(f"{wheel} is no sound archive: {e}") from None


# Apply ----------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the checkout's lock, so that two set-ups at once run one after the other."""
    scratch = root / ".upstream"
    scratch.mkdir(exist_ok=True)
    with open(scratch / "lock", "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        for left in [*scratch.glob("stage-*"), *scratch.glob("export-*")]:  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def clear_errors(root: Path) -> Iterator[None]:
    """Say what an operating system's error means for set-up, in one line."""
    try:
        yield
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise UpstreamError(f"the disk is full ({root}); free some space and run `{APPLY}`") from None
        if e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UpstreamError(f"cannot write {e.filename or root}: set-up needs a writable checkout") from None
        raise UpstreamError(f"{e.filename or root}: {e.strerror or e}") from None


def apply(root: Path, discard_edits: bool = False) -> str:
    """Make `root`/ultralytics the pinned release with the queue on it, around our nn/AddModules.

    Everything is staged beside the tree and renamed into place at the end. Files that the user edited are kept where
    the queue did not change them; where it did, nothing is touched and the edits are named.

    Args:
        root: The checkout, or an unpacked source distribution.
        discard_edits: Overwrite edited files.

    Returns:
        One line that says what was done.

    Raises:
        UpstreamError: When the tree cannot be made; then it is as it was.
    """
    with clear_errors(root), locked(root):
        pin, queue, stamp = Pin.read(root), queue_sha256(root), read_stamp(root)
        edited = edits(root, stamp.get("files", {}))
        complete = "pending" not in stamp and not absent(root, stamp.get("files", {}))
        if stamp.get("queue") == queue and complete and not (edited and discard_edits):
            kept = f"; kept {count(edited)}: {', '.join(edited)} (--discard-edits drops them)" if edited else ""
            return f"{PACKAGE}/ is up to date{kept}"
        stage = Path(tempfile.mkdtemp(prefix="stage-", dir=root / ".upstream"))
        try:
            repo = stage / "repo"
            wheel = fetch(root, pin, stage)
            make_repository(repo, wheel, pin)
            apply_queue(repo, patches(root))
            files = manifest(repo)
            if tree_sha256(files) != pin.tree_sha256:
                raise UpstreamError(
                    f"the patched tree has sha256 {tree_sha256(files)}, patches/upstream.toml records "
                    f"{pin.tree_sha256}; `git checkout patches && git clean -f patches` restores the queue; to change "
                    f"it, edit under {PACKAGE}/ and run `export`"
                )
            kept = lay_down(root, repo, stage, stamp, {"release": pin.release, "queue": queue}, files, discard_edits)
            with contextlib.suppress(OSError):  # the tree is complete; the next run makes again what is not kept
                keep_repository(root, repo)
                keep_wheel(root, wheel, pin)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    line = f"{PACKAGE}/ is {pin.release} with {len(patches(root))} patches"
    return line + (f"; kept {count(kept)}: {', '.join(kept)}" if kept else "")


def count(edited: list[str]) -> str:
    return f"{len(edited)} edited file{'s' if len(edited) > 1 else ''}"


def lay_down(
    root: Path, source: Path, stage: Path, stamp: dict, new: dict, files: dict[str, str], discard_edits: bool
) -> list[str]:
    """Rename the staged files into place; returns the edited files that were kept.

    All copying is done beforehand, so that each file of the tree changes by one rename. Until the last one, the stamp
    names the old and the new state, so that an interrupted run is no user's edit to the next one; an error half-way
    puts everything back.
    """
    pending = stamp.get("pending", [])
    known = [stamp.get("files", {}), *pending]
    mine = edits(root, *known, files)
    lost = [path for path in mine if {state[path] for state in known if path in state} != {files.get(path)}]
    if lost and not discard_edits:
        raise UpstreamError(
            f"{', '.join(lost)} {'was' if len(lost) == 1 else 'were'} edited and would be overwritten; "
            "`python scripts/upstream.py export` on the old queue makes patches of edits, "
            f"`{APPLY} --discard-edits` drops them"
        )
    kept = [] if discard_edits else mine
    changed = [
        path
        for path in sorted({path for state in [*known, files] for path in state} - set(kept))
        if (sha256(root / path) if (root / path).is_file() else None) != files.get(path)
    ]
    for path in [*changed, STAMP]:
        copy(root / path, stage / "old" / path)
        copy(source / path, stage / "new" / path)
    try:
        write_stamp(root, {**stamp, "pending": [*pending, files]})
        for path in changed:
            move(stage / "new" / path, root / path)
        write_stamp(root, {**new, "files": files})
    except BaseException:
        for path in [*changed, STAMP]:
            move(stage / "old" / path, root / path)
        raise
    return kept


def copy(source: Path, target: Path) -> None:
    """Copy a file, if it is there."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def move(source: Path, target: Path) -> None:
    """Rename a file over another; without the first, remove the other and the folders that this leaves empty."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        return
    target.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for folder in target.parents:
            folder.rmdir()


def write_stamp(root: Path, stamp: dict) -> None:
    file = root / STAMP
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(".part")
    try:
        temporary.write_text(json.dumps(stamp, indent=0, sort_keys=True), encoding="utf-8")
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep_repository(root: Path, repo: Path) -> None:
    """Keep the repository for `export`, under the hash of the queue that it holds."""
    kept = root / ".upstream" / "repo"
    (repo / ".git" / "queue").write_text(queue_sha256(root))
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(repo, kept)


def keep_wheel(root: Path, wheel: Path, pin: Pin) -> None:
    """Keep the wheel for the next set-up, which then needs no network."""
    kept = root / ".upstream" / "wheels" / pin.wheel
    if wheel.resolve() != kept.resolve():
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(wheel, kept.with_suffix(".part"))
        os.replace(kept.with_suffix(".part"), kept)


# Export ---------------------------------------------------------------------------------------------------------------
def export(root: Path, message: str | None = None, new: bool = False) -> str:
    """Fold the edits under ultralytics/ into the queue, and write the queue to patches/.

    A hunk that touches lines of a patch, or the lines of context around them, becomes part of that patch; the rest
    becomes a patch of its own at the end. Without edits the patches come out byte for byte as they were.

    Args:
        root: The checkout.
        message: Commit message of the new patch.
        new: Put everything into a new patch.

    Returns:
        One line that says what was done.
    """
    with clear_errors(root), locked(root):
        pin, stamp, queue = Pin.read(root), read_stamp(root), queue_sha256(root)
        if stamp.get("queue") != queue or "pending" in stamp:
            raise UpstreamError(f"{PACKAGE}/ was not laid down from this queue; run `{APPLY}` first")
        scratch = root / ".upstream"
        with tempfile.TemporaryDirectory(prefix="export-", dir=scratch) as stage:
            repo, marker = Path(stage) / "repo", scratch / "repo" / ".git" / "queue"
            if marker.is_file() and marker.read_text() == queue:
                shutil.copytree(scratch / "repo", repo, symlinks=True)
            else:
                make_repository(repo, fetch(root, pin, Path(stage)), pin)
                apply_queue(repo, patches(root))
            edited = copy_edits(root, repo, stamp["files"])
            files = manifest(repo)
            folded, added = commit_edits(repo, pin, message, new) if edited else (0, 0)
            assert manifest(repo) == files, "the queue does not give the edited tree"
            out = Path(stage) / "patches"
            git("format-patch", "--quiet", *FORMAT_PATCH, "-o", str(out), release_tag(pin), cwd=repo)
            write_queue(root, out, pin, tree_sha256(files))
            write_stamp(root, {"release": pin.release, "queue": queue_sha256(root), "files": files})
            if edited:
                keep_repository(root, repo)
    if not edited:
        return f"no edits under {PACKAGE}/; {len(patches(root))} patches written as they were"
    return f"{count(edited)}: {folded} hunks folded into their patches, {added} in a new patch"


def copy_edits(root: Path, repo: Path, files: dict[str, str]) -> list[str]:
    """Copy edited and new files to the repository's work tree and remove deleted ones; returns their paths."""
    gone = absent(root, files)
    for path in gone:
        (repo / path).unlink()
    copied = [*edits(root, files), *created(root, files)]
    for path in copied:
        copy(root / path, repo / path)
    return [*gone, *copied]


@dataclass(frozen=True)
class Hunk:
    """A change of lines `first` to `last` of a file, or, where last < first, an insertion between the two."""

    path: str
    first: int
    last: int
    patch: str


def commit_edits(repo: Path, pin: Pin, message: str | None, new: bool) -> tuple[int, int]:
    """Commit the work tree's changes, each hunk into the patch that it belongs to; returns how many went where."""
    queue = git("rev-list", "--reverse", f"{release_tag(pin)}..HEAD", cwd=repo).split()
    base = git("rev-parse", "HEAD", cwd=repo).strip()
    git("add", "--all", "--force", "--intent-to-add", ".", cwd=repo)
    diff = git("diff", "--unified=0", "--no-renames", "--binary", "--full-index", "HEAD", cwd=repo)
    owned = [(None if new else owner_of(repo, hunk, queue), hunk) for hunk in hunks(diff)]
    owners = [commit for commit in [*queue, None] if any(owner == commit for owner, _ in owned)]
    for number, owner in enumerate(owners, 1):
        # From the queue's tree, as hunks count their lines there, and from the end of a file, so that they stay right
        git("read-tree", base, cwd=repo)
        for hunk in [hunk for whose, hunk in owned if whose in owners[:number]][::-1]:
            git("apply", "--cached", "--unidiff-zero", "-", cwd=repo, stdin=hunk.patch)
        paths = git("diff", "--cached", "--name-only", "HEAD", cwd=repo).split()
        text = [f"--fixup={owner}"] if owner else ["-m", message or f"Change {', '.join(paths)}"]
        git("commit", "--quiet", *text, cwd=repo)
    git("reset", "--quiet", "--hard", cwd=repo)
    squash(repo, release_tag(pin))
    added = sum(owner is None for owner, _ in owned)
    return len(owned) - added, added


def squash(repo: Path, base: str) -> None:
    """Move each fix-up into its patch, and drop a patch that edits have taken back whole."""
    action, emptied = ["--interactive", "--autosquash", base], False
    while action:
        try:
            git("rebase", *action, cwd=repo, GIT_SEQUENCE_EDITOR=":", GIT_EDITOR=":")
            action = []
        except UpstreamError:
            if git("ls-files", "--unmerged", cwd=repo):
                git("rebase", "--abort", cwd=repo, check=False)
                raise UpstreamError(
                    "an edit touches lines of several patches; `export --new` makes a patch of its own of all edits"
                ) from None
            # git stops where a fix-up leaves nothing of its patch
            git("commit", "--quiet", "--amend", "--allow-empty", "--no-edit", cwd=repo)
            action, emptied = ["--continue"], True
    if emptied:
        git("rebase", "--quiet", "--force-rebase", "--no-keep-empty", base, cwd=repo)


def hunks(diff: str) -> Iterator[Hunk]:
    """Split a diff without context into hunks, each a patch that applies alone."""
    for part in re.split(r"(?m)^(?=diff --git )", diff)[1:]:
        header, *bodies = re.split(r"(?m)^(?=@@ )", part)
        path = re.search(r"^diff --git a/(\S+)", header)[1]
        if not bodies:  # a binary file, or one without lines
            yield Hunk(path, 1, 0, header)
        for body in bodies:
            match = re.match(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", body)
            start, old, new = int(match[1]), int(match[2] or 1), int(match[4] or 1)
            first = start if old else start + 1
            if "\nnew file mode " not in header and "\ndeleted file mode " not in header:
                # git applies at the new file's line, which is another one without the hunks before
                body = f"@@ -{start},{old} +{first if new else first - 1},{new} @@" + body[match.end() :]
            yield Hunk(path, first, first + old - 1, header + body)


def owner_of(repo: Path, hunk: Hunk, queue: list[str], context: int = 3) -> str | None:
    """Give the last patch of the queue with a line at most `context` lines from a hunk's, or None."""
    total = len(git("show", f"HEAD:{hunk.path}", cwd=repo, check=False).split("\n")) - 1
    if total < 1 or (hunk.first, hunk.last) == (1, 0) and "\n@@ " not in hunk.patch:
        return None
    lines = f"-L{max(hunk.first - context, 1)},{min(hunk.last + context, total)}"
    touched = set(re.findall(r"(?m)^([0-9a-f]{40}) ", git("blame", "-p", lines, "HEAD", "--", hunk.path, cwd=repo)))
    return next((commit for commit in reversed(queue) if commit in touched), None)


def write_queue(root: Path, out: Path, pin: Pin, tree: str) -> None:
    """Replace patches/ with the exported queue by renames, and record the hash of its tree."""
    text = (root / "patches" / "upstream.toml").read_text(encoding="utf-8")
    (out / "upstream.toml").write_text(text.replace(pin.tree_sha256, tree), encoding="utf-8", newline="\n")
    for file in patches(root):
        if not (out / file.name).is_file():
            file.unlink()
    for file in sorted(out.iterdir()):
        target = root / "patches" / file.name
        if not target.is_file() or target.read_bytes() != file.read_bytes():
            os.replace(file, target)


# Status ---------------------------------------------------------------------------------------------------------------
def status(root: Path) -> str:
    """Describe the pin, the queue and the tree."""
    with clear_errors(root):
        pin, stamp = Pin.read(root), read_stamp(root)
    lines = [f"upstream   {PACKAGE} {pin.release}, wheel sha256 {pin.wheel_sha256}", "queue"]
    total = 0
    for patch in patches(root):
        diff = patch.read_text(encoding="utf-8", errors="replace").partition("\ndiff --git ")[2]
        changed = len(re.findall(r"(?m)^(?:\+(?!\+\+ )|-(?!-- ))", diff))
        total += changed
        lines.append(f"  {changed:3d} lines  {patch.name}")
    lines.append(f"  {total:3d} lines changed in all")
    files = stamp.get("files", {})
    differences = {"edited": edits(root, files), "new": created(root, files), "missing": absent(root, files)}
    if not stamp:
        state = f"not laid down; `{APPLY}` does"
    elif "pending" in stamp:
        state = f"laid down half-way; `{APPLY}` mends it"
    elif stamp.get("queue") != queue_sha256(root):
        state = f"older than the queue; `{APPLY}` renews it"
    elif any(differences.values()):
        state = "as recorded but for " + "; ".join(f"{k} {', '.join(v)}" for k, v in differences.items() if v)
    else:
        state = f"as recorded, sha256 {pin.tree_sha256}"
    return "\n".join([*lines, f"tree       {state}"])


def main(argv: list[str] | None = None) -> None:
    """Run a command; an error is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("apply", help="make ultralytics/ the recorded tree")
    command.add_argument("--discard-edits", action="store_true", help="overwrite files that were edited")
    commands.add_parser("status", help="show the pin, the queue and the state of the tree")
    command = commands.add_parser("export", help="fold edits under ultralytics/ into patches/")
    command.add_argument("-m", "--message", help="commit message of a new patch: why, what retires it, which test")
    command.add_argument("--new", action="store_true", help="make one new patch of all edits")
    args = parser.parse_args(argv)
    root = Path(__file__).resolve().parents[1]
    try:
        if args.command == "apply":
            print(apply(root, args.discard_edits))
        elif args.command == "status":
            print(status(root))
        else:
            print(export(root, args.message, args.new))
    except UpstreamError as e:
        sys.exit(f"{Path(__file__).name}: {e}")


if __name__ == "__main__":
    main()
