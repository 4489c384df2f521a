"""What commands leave on the disk: one file, or the files of one run, whole or as they were before.

    with whole(folder) as unfinished:                       # nothing in `folder` is touched
        (unfinished / "report.json").write_text(text)
                                                            # all of them are in their places

The files of a run are written into a hidden folder inside `folder`. One rename of that says that
they are all there; then the earlier ones go and these come, so that files of two runs never lie
side by side. A process that dies before the rename has changed nothing; for one that dies after it,
whoever comes next to the folder does the rest (`settle`).
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qsched.errors import OutputError

UNFINISHED, FINISHED = ".qsched-unfinished-", ".qsched-finished"
"""Hidden folders: of files that are being written, and of those that wait for their places."""


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder for files that are to be in `folder` all together, or not at all.

    When the context ends each takes its place, and no other file is touched; an empty one stands
    for a file that there is to be no more. If it ends by an exception, or the process does,
    `folder` is as it was. Others who write there wait. Raises OutputError.
    """
    with written(folder, folder / FINISHED), _alone(folder):
        for left in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left)
        _settle(folder)
        unfinished = folder / f"{UNFINISHED}{uuid.uuid4().hex}"
        try:
            with written(folder, unfinished):
                unfinished.mkdir()
                yield unfinished
                for path in _files(unfinished):
                    _to_disk(path)
            unfinished.rename(folder / FINISHED)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _settle(folder)


def settle(folder: Path) -> None:
    """Puts files into their places that a process had finished before it died. Whoever reads a
    folder calls it first. Raises OutputError."""
    with written(folder, folder / FINISHED):
        if (folder / FINISHED).is_dir():
            with _alone(folder):
                _settle(folder)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file as a whole: it is the old one, or the new one. Raises OutputError."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with written(path, unfinished):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def ready(folder: Path, option: str = "--out") -> Path:
    """The absolute path of a folder that can be written to, made where it is missing. Raises
    OutputError now, and not after the work whose results it is for."""
    folder = folder.resolve()
    probe = folder / f"{UNFINISHED}{uuid.uuid4().hex}"
    with written(folder, probe, option):
        folder.mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    return folder


@contextmanager
def written(place: Path, unfinished: Path | None = None, option: str = "--out") -> Iterator[None]:
    """What can't be written while the context lasts raises OutputError with its path, and with the
    `option` that names another place.

    `place`: what is written, where the system names nothing; what it names in `unfinished` is said
    to be there.
    """
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else place
        if unfinished and named.is_relative_to(unfinished):
            named = place / named.relative_to(unfinished)
        said = error.strerror or str(error)
        raise OutputError(f"{named}: cannot be written: {said}; give another {option}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While the context lasts no other process writes to `folder`, which is made if need be; not on
    every file system."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS has no locks of folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _settle(folder: Path) -> None:
    finished = folder / FINISHED
    if not finished.is_dir():
        return
    files = [path.relative_to(finished) for path in _files(finished)]
    for name in files:
        (folder / name).unlink(missing_ok=True)
    for name in files:
        if (finished / name).stat().st_size:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (finished / name).replace(folder / name)
    shutil.rmtree(finished)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
