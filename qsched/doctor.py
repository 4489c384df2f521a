"""What is wrong with this machine, this database, this study: one line a check, and what to do."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from qsched import __version__
from qsched.config import Study, installed_version, load_study
from qsched.database import Database, now
from qsched.errors import QschedError
from qsched.schema import SCHEMA_VERSION
from qsched.storage import Storage
from qsched.study import load

CONNECTIONS = 4
"""A worker's connections to a server: two of its own and one of Optuna's, one spare."""

PATIENCE = 3.0  # seconds: somebody is waiting for the answer
FREE_BYTES = 2e9
CLOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Finding:
    """A check's result in words; `ok` or what to do about it."""

    name: str
    ok: bool
    words: str


def examine(url: str | None, study: Path | None = None) -> Iterator[Finding]:
    """All checks, as they are done. `study`: a study file that is to be run here."""
    yield Finding("qsched", True, f"{__version__}, torch {installed_version('torch')}")
    yield from _device()
    definition = None
    if study is not None:
        try:
            definition = load_study(study)
            yield Finding("study", True, f"{study} is valid and its model is here")
        except QschedError as error:
            yield Finding("study", False, str(error))
    try:
        storage = Storage(Database(url, patience=PATIENCE))
    except QschedError as error:
        yield Finding("database", False, str(error))
        return
    yield Finding("database", True, f"{storage}, schema {SCHEMA_VERSION}, {_server(storage)}")
    for check in (_clock, _connections, _disk, _orphans):
        yield from check(storage)
    if definition is not None:
        yield from _fingerprint(storage, definition)


def _device() -> Iterator[Finding]:
    """The driver against torch's CUDA."""
    import torch

    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        cards = listed.stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        cards = []
    if torch.cuda.is_available():
        name, count = torch.cuda.get_device_name(0), torch.cuda.device_count()
        yield Finding("device", True, f"{count} x {name}, CUDA {torch.version.cuda}")
    elif cards:
        yield Finding(
            "device",
            False,
            f"{cards[0]} is not usable by torch {torch.__version__} (CUDA {torch.version.cuda}); "
            "CUDA 13 needs driver 580 or newer, torch==2.10.* runs on 525.60 and newer",
        )
    else:
        yield Finding("device", True, "no GPU here: the CPU is used")


def _server(storage: Storage) -> str:
    embedded = storage.database.dialect == "sqlite"
    query = sa.text("SELECT 'SQLite ' || sqlite_version()" if embedded else "SELECT version()")
    text = storage.database.transaction(lambda session: session.scalar(query))
    return " ".join(str(text).split()[:2])


def _clock(storage: Storage) -> Iterator[Finding]:
    """Leases use the database's clock alone; but people compare logs."""
    theirs = storage.database.transaction(lambda session: session.scalar(sa.select(now())))
    difference = abs(time.time() - (theirs or 0.0))
    yield Finding(
        "clock",
        difference < CLOCK_SECONDS,
        f"{difference:.1f} s from the database's"
        + ("" if difference < CLOCK_SECONDS else "; set this machine's clock (NTP)"),
    )


def _connections(storage: Storage) -> Iterator[Finding]:
    if storage.database.dialect == "sqlite":
        yield Finding("workers", True, "this machine only; several machines need PostgreSQL")
        return

    def counted(session: sa.orm.Session) -> tuple[int, int]:
        most = session.scalar(sa.text("SELECT current_setting('max_connections')::int"))
        used = session.scalar(sa.text("SELECT count(*) FROM pg_stat_activity"))
        return int(most or 0), int(used or 0)

    most, used = storage.database.transaction(counted)
    room = max(0, most - used - 3) // CONNECTIONS
    yield Finding(
        "workers",
        room > 0,
        f"{used} of {most} connections used, room for {room} more workers"
        + ("" if room else "; raise max_connections, or put a connection pooler before it"),
    )


def _disk(storage: Storage) -> Iterator[Finding]:
    places: dict[str, Path] = {"results": Path.cwd()}
    if storage.database.path:
        places["database"] = storage.database.path.parent
    for name, place in places.items():
        free = shutil.disk_usage(place).free
        yield Finding(
            f"disk, {name}",
            free > FREE_BYTES,
            f"{free / 1e9:.1f} GB free in {place}"
            + ("" if free > FREE_BYTES else "; make room, at least 2 GB"),
        )


def _orphans(storage: Storage) -> Iterator[Finding]:
    """Slots of workers that are gone; looking repairs them."""
    for name in storage.study_names():
        study = load(storage, name)
        before = len(study.queue.slots(("running",)))
        counts = study.tidy()
        back = before - counts["running"]
        if back > 0:
            yield Finding(name, True, f"{back} trials of workers that are gone wait again")
        if counts["parked"]:
            yield Finding(
                name,
                False,
                f"{counts['parked']} trials are parked; qsched status {name} says why, "
                f"qsched retry {name} frees them",
            )


def _fingerprint(storage: Storage, definition: Study) -> Iterator[Finding]:
    from qsched.config import differences

    stored = storage.study(definition.name)
    if stored is None:
        return
    differing = differences(stored.fingerprint, definition.fingerprint())
    yield Finding(
        "resume",
        not differing,
        "; ".join(differing.values()) or f"{definition.name} goes on where it is",
    )
