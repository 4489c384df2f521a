"""What is wrong with this machine, this database, this study: one line a check, and what to do."""

import os
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from qsched import __version__, hub
from qsched.cli.options import begun, nothing_in
from qsched.errors import QschedError, Unreadable, first_line
from qsched.libraries import installed_version
from qsched.pipelines.catalog import (
    file_in_repository,
    is_checkpoint,
    is_folder,
    is_function,
    model_entry,
)
from qsched.pipelines.table import source_of
from qsched.report import artifacts
from qsched.service.database import Database, now
from qsched.service.schema import SCHEMA_VERSION
from qsched.service.storage import Storage
from qsched.service.stored_study import load
from qsched.study import packages
from qsched.study.study import Study, load_study

CONNECTIONS = 4
"""A worker's connections to a server: two of its own and one of Optuna's, one spare."""

PATIENCE = 3.0  # seconds: somebody is waiting for the answer
FREE_BYTES = 2e9
CLOCK_SECONDS = 30.0

DRIVERS = {12: "525.60.13", 13: "580.65.06"}
"""The oldest NVIDIA driver on Linux for each CUDA major version (minor-version compatibility:
CUDA Toolkit release notes)."""

LAST_FOR_CUDA_12 = "'torch==2.10.*' 'torchvision==0.25.*' 'torchao==0.16.*'"
"""The last torch on PyPI that is built for CUDA 12, and what goes with it."""


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
            definition = load_study(study, fetch=False)
            yield Finding("study", True, f"{study} is valid")
            with definition.code():
                needs = list(_needs(definition))
            yield from needs
            definition = load_study(study)
        except QschedError as error:
            yield Finding("study", False, str(error))
    try:
        database = Database(url, patience=PATIENCE)
        storage = Storage(database) if begun(url) else None
    except QschedError as error:
        yield Finding("database", False, str(error))
        return
    if storage is None:
        yield Finding("database", True, nothing_in(url))
    else:
        yield Finding("database", True, f"{storage}, schema {SCHEMA_VERSION}, {database.server()}")
        for check in (_clock, _connections, _disk, _orphans):
            yield from check(storage)
        if definition is not None:
            yield from _fingerprint(storage, definition)
    if definition is not None:
        yield _pictures(definition, database, storage)


def device(
    listed: str,
    complaint: str,
    *,
    torch: str,
    cuda: str | None,
    usable: Sequence[tuple[str, int]],
) -> Finding:
    """What torch can use of this machine's GPUs; nvidia-smi only helps to say why not.

    `listed`: nvidia-smi's "name, driver, memory in MiB", a line a GPU; "" where it finds none or is
    missing. `complaint`: why it failed. `torch`, `cuda`: torch's version and the CUDA it is built
    for, None for a build without. `usable`: name and bytes of the GPUs, or parts of one (MIG), that
    torch can use: those that CUDA_VISIBLE_DEVICES leaves.
    """
    cards = [[field.strip() for field in line.rsplit(",", 2)] for line in listed.splitlines()]
    cards = [card for card in cards if len(card) == 3]
    driver = cards[0][1] if cards else ""
    build = f"torch {torch}" + (f" (CUDA {cuda})" if cuda else "")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if usable:
        seen = _in_words([(name, f" ({round(size / 2**30)} GiB)") for name, size in usable])
        if len(cards) > len(usable) and hidden is not None:
            seen += f" of {len(cards)} GPUs by CUDA_VISIBLE_DEVICES={hidden}"
        return Finding(
            "device", True, f"{seen}, {build}" + (f", driver {driver}" if driver else "")
        )
    if not cards:
        if complaint:
            return Finding(
                "device", False, f"nvidia-smi: {complaint}; mend the NVIDIA driver, maybe reboot"
            )
        return Finding("device", True, "no GPU here: the CPU is used")
    words = _in_words([(name, _gigabytes(memory)) for name, _, memory in cards])
    remedy = "see why: python -c 'import torch; torch.cuda.init()'"
    needed = DRIVERS.get(_numbers(cuda)[0]) if cuda else None
    if cuda is None:
        remedy = (
            "this torch is built without CUDA: pip install torch, without an index of CPU wheels"
        )
    elif needed and _numbers(driver) < _numbers(needed):
        remedy = f"CUDA {cuda} needs driver {needed} or newer: update it"
        if _numbers(driver) >= _numbers(DRIVERS[12]) and needed != DRIVERS[12]:
            remedy += f", or pip install {LAST_FOR_CUDA_12}, built for CUDA 12 (env.yml)"
    elif hidden is not None:
        remedy = f"CUDA_VISIBLE_DEVICES={hidden} hides it: unset or correct it"
    return Finding("device", False, f"{words}, driver {driver}: {build} can't use it; {remedy}")


def _device() -> Iterator[Finding]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch would warn of is said in the finding
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    yield device(
        *_nvidia_smi(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        usable=[(each.name, each.total_memory) for each in properties],
    )


def _needs(definition: Study) -> Iterator[Finding]:
    """What a study asks of this machine: packages, downloads, a GPU."""
    tables, modules = definition.tables, packages.needed(definition)
    missing = packages.missing(definition)
    yield Finding(
        "packages",
        not missing,
        f"missing: {', '.join(missing)}; {packages.installing(missing)}"
        if missing
        else f"all that the study needs: {', '.join(modules) or 'nothing more'}",
    )
    entry, source = model_entry(tables.model.name), source_of(tables.model)
    remote = file_in_repository(source) if is_checkpoint(source) else (source, "model_index.json")
    if is_folder(source) or is_function(source) or remote is None:
        yield Finding("model", True, f"{source} is here")
    elif hub.cached(*remote, tables.model.revision):
        yield Finding("model", True, f"{source} is in the hub's cache")
    else:
        words = hub.explain(None, source, entry.download_gb)
        later = f"{source} will be downloaded by the first worker, {entry.download_gb:.1f} GB"
        yield Finding("model", not hub.offline(), words if hub.offline() else later)
    if entry.gpu_gb:
        yield _room(entry.name, entry.gpu_gb)


def _room(model: str, needed: float) -> Finding:
    import torch

    if not torch.cuda.is_available():
        words = f"{model} needs about {needed:.0f} GB and there is no GPU here; --twin tries it"
        return Finding("GPU memory", False, words)
    there = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Finding(
        "GPU memory",
        there >= needed,
        f"{there:.0f} GB, about {needed:.0f} GB needed"
        + ("" if there >= needed else "; set execution.offload = 'model' or a smaller batch_size"),
    )


def _nvidia_smi() -> tuple[str, str]:
    """What nvidia-smi lists, and why it failed; both empty where it is not installed."""
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        return "", ""
    except (OSError, subprocess.SubprocessError) as error:
        return "", first_line(error)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return "", said[0] if said else f"exit code {done.returncode}"
    return done.stdout, ""


def _in_words(cards: Sequence[tuple[str, str]]) -> str:
    """GPUs, each with its memory in words, by model."""
    memories: dict[str, list[str]] = {}
    for name, memory in cards:
        memories.setdefault(name, []).append(memory)
    return ", ".join(f"{len(each)} x {name}{each[0]}" for name, each in memories.items())


def _gigabytes(mebibytes: str) -> str:
    """In words, in brackets; nothing where the driver does not say."""
    return f" ({round(int(mebibytes) / 1024)} GiB)" if mebibytes.isdigit() else ""


def _numbers(version: str) -> tuple[int, ...]:
    """The parts of a version: (535, 230, 2) of 535.230.02."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


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
    counted = storage.database.connections()
    if counted is None:
        yield Finding("workers", True, "this machine only; several machines need PostgreSQL")
        return
    used, most = counted
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
        try:
            study = load(storage, name)
        except Unreadable as error:
            yield Finding(name, False, str(error))
            continue
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
    stored = storage.study(definition.name)
    if stored is None:
        return
    differing = definition.differences(stored.fingerprint)
    yield Finding(
        "resume",
        not differing,
        "; ".join(differing.values()) or f"{definition.name} goes on where it is",
    )


def _pictures(definition: Study, database: Database, storage: Storage | None) -> Finding:
    """Whether pictures can be kept where the study says, and those that it has are there."""
    place = artifacts.place_of(definition.store, database)
    complaint = artifacts.complaint(place)
    if complaint is None and storage and storage.study(definition.name):
        kept, lost = artifacts.inventory(load(storage, definition.name, file=definition))
        if lost:
            complaint = f"{place}: {lost} of {kept + lost} pictures are gone"
    return Finding("pictures", complaint is None, complaint or f"are kept in {place}")
