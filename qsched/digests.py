"""Digests of weights on this machine. Every byte counts, and is read once.

What was read is kept in the user's cache, a few bytes a file, under its path, size, times and
inode: a checkpoint of 10 GB takes its ten seconds at the first look and none afterwards.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SETTLED = 2_000_000_000
"""Nanoseconds after which a file that is written again has another time; sooner, clocks of file
systems may not tell."""

KINDS: dict[str, Callable[[], Any]] = {
    "blake2b": lambda: hashlib.blake2b(digest_size=16),
    "sha256": hashlib.sha256,
}

Digest = Callable[[Path], str]


def whole(place: Path) -> str:
    """Of a file, or of all files in a folder with their names."""
    digest = hashlib.blake2b(digest_size=16)
    for path, name in _files(place):
        digest.update(f"{name}:{path.stat().st_size};{_of_file(path)};".encode())
    return digest.hexdigest()


def first_and_last(place: Path) -> str:
    """The same by the rule of version 0.1: of a large file its first and last mebibyte."""
    digest = hashlib.blake2b(digest_size=16)
    for path, name in _files(place):
        size = path.stat().st_size
        digest.update(f"{name}:{size};".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Of a file's bytes alone, as the hub shows it and `sha256sum` prints it."""
    return _of_file(path, "sha256")


def _files(place: Path) -> list[tuple[Path, str]]:
    """The files of a place in order, with their names in it; a file by itself has none."""
    if place.is_file():
        return [(place, "")]
    found = sorted(path for path in place.rglob("*") if path.is_file())
    return [(path, path.relative_to(place).as_posix()) for path in found]


def _of_file(path: Path, kind: str = "blake2b") -> str:
    kept = _kept(path, kind)
    try:
        state, _, known = kept.read_text(encoding="ascii").partition("\n")
    except (OSError, ValueError):
        state, known = "", ""
    before = _state(path)
    if known and state == before:
        return known
    began = time.time_ns()
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, KINDS[kind]).hexdigest()
    if _state(path) == before and path.stat().st_mtime_ns < began - _SETTLED:
        _keep(kept, f"{before}\n{found}")
    return found


def _state(path: Path) -> str:
    """What changes when a file is written; the last time also where its date was set back."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {stat.st_dev} {stat.st_ctime_ns}"


def _kept(path: Path, kind: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
    return base / "qsched" / "digests" / (name if kind == "blake2b" else f"{name}.{kind}")


def _keep(place: Path, text: str) -> None:
    """Writes a file of the cache as a whole; where none can be written, it is read again."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=place.parent, encoding="ascii", delete=False
        ) as unfinished:
            unfinished.write(text)
        Path(unfinished.name).replace(place)
    except OSError:
        return
