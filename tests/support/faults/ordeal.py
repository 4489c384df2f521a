"""The workers, what is done to them and to their study, and what comes of it."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from qsched.errors import StudyError
from qsched.service import stored_study as studies
from qsched.service.database import Database
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.study.study import load_study
from tests.support import fakes_light as fakes
from tests.support.faults.invariants import examine
from tests.support.faults.machines import Machine, child_of, inside, second_machine
from tests.support.faults.servers import Server, later
from tests.support.faults.workers import LEASE, NAME, PATIENCE, number_of, work
from tests.support.processes import FORKED

DATABASES = ("sqlite", "postgresql", "pgbouncer")
WORKERS = 8


@dataclass
class Employed:
    """A worker's process, and the signals that it was sent."""

    process: Any
    log: Path
    elsewhere: bool
    sent: set[int] = field(default_factory=set)

    def signal(self, number: int) -> None:
        """A signal, unless the process has ended."""
        with suppress(ProcessLookupError, FileNotFoundError, IndexError):
            pid = child_of(self.process.pid) if self.elsewhere else self.process.pid
            os.kill(pid, number)
            self.sent.add(number)

    def complaint(self) -> str | None:
        """How it ended, unless as it should; None while it works."""
        code = self.process.exitcode
        if code is None or code == 0 or -code in self.sent:
            return None
        last = self.log.with_suffix(".err").read_text().splitlines()[-1:]
        return f"{self.log.stem} ended with {code}: {''.join(last)}"


@dataclass
class Fleet:
    """The workers, replaced as they end; every second one is on another machine if there is one."""

    url: str
    folder: Path
    machine: Machine | None
    workers: list[Employed] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    started: int = 0

    def fill(self) -> None:
        """Starts workers until there are WORKERS."""
        self.complaints += filter(None, (worker.complaint() for worker in self.workers))
        self.workers = [worker for worker in self.workers if worker.process.is_alive()]
        while len(self.workers) < WORKERS:
            log = self.folder / f"worker-{self.started}.jsonl"
            target: Callable[..., None] = work
            arguments: tuple[Any, ...] = (self.url, log, self.started)
            elsewhere = self.machine is not None and self.started % 2 == 1
            if self.machine is not None and elsewhere:
                target, arguments = inside, (self.machine.init, work, *arguments)
            process = FORKED.Process(target=target, args=arguments)
            process.start()
            self.workers.append(Employed(process, log, elsewhere))
            self.started += 1

    def end(self) -> None:
        """Waits for all of them."""
        for worker in self.workers:
            worker.process.join(60)
        self.complaints += filter(None, (worker.complaint() for worker in self.workers))


def make(url: str, file: Path) -> None:
    """The process of `qsched create`."""
    studies.create(Storage(Database(url, patience=PATIENCE)), load_study(file))


def delete(url: str) -> None:
    """The process of `qsched delete`."""
    with suppress(StudyError):
        studies.load(Storage(Database(url, patience=PATIENCE)), NAME).delete()


class Ordeal:
    """A name in a database, the studies that have it one after another, and what they suffer."""

    def __init__(self, database: str, folder: Path, seed: int, stop_below: float) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.stop_below = stop_below
        self.server = None
        self.url = own = f"sqlite:///{folder}/qsched.db"
        if database != "sqlite":
            self.server = Server(folder / "pg", pooled=database == "pgbouncer")
            self.url = self.server.url.render_as_string(hide_password=False)
            own = self.server.direct.render_as_string(hide_password=False)
        self.own = own
        self.storage = Storage(Database(own, patience=PATIENCE))
        self.machine = second_machine(folder)
        self.fleet = Fleet(self.url, folder, self.machine)
        self.wrong: list[str] = []
        self.number = 0
        self.study = self.settled()

    def settled(self) -> StoredStudy:
        """The study of this number, whatever interrupted commands have left."""
        while NAME in self.storage.study_names():
            present = studies.load(self.storage, NAME)
            if number_of(present) == self.number:
                break
            self._pause(present, True)
            with suppress(StudyError):  # while one that woke up holds a trial
                present.delete()
        return studies.create(self.storage, load_study(self.file()))

    def _pause(self, study: StoredStudy, paused: bool) -> None:
        self.storage.pause(study.incarnation, paused)

    def file(self) -> Path:
        """The file of the study of this number."""
        return fakes.study_file(
            self.folder, name=NAME, seed=self.number, trials=20, stop_below=self.stop_below
        )

    def hurt(self, *, last: bool) -> str:
        """One fault; its kind. `last`: the study may not be replaced any more."""
        kinds = {"SIGKILL": 6, "SIGTERM": 3, "SIGSTOP": 3, "paused": 1, "mirror deleted": 1}
        if not last:
            kinds |= {"replaced": 1, "command killed": 1}
        if self.server:
            kinds |= {"connections cut": 2, "network away": 1, "server restarted": 1}
        if self.server and self.server.pooler:
            kinds |= {"pooler restarted": 1}
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        if kind.startswith("SIG"):
            self._signal(getattr(signal, kind))
        else:
            getattr(self, "_" + kind.replace(" ", "_"))()
        return kind

    def _signal(self, number: int) -> None:
        victim = self.rng.choice(self.fleet.workers)
        victim.signal(number)
        if number == signal.SIGSTOP:
            later(1.6 * LEASE, victim.signal, signal.SIGCONT)

    def _paused(self) -> None:
        self._pause(self.study, True)
        time.sleep(0.3)
        self._pause(self.study, False)

    def _mirror_deleted(self) -> None:
        """By somebody else, as with `optuna delete-study`."""
        with suppress(KeyError):
            optuna.delete_study(study_name=NAME, storage=self.storage.database.optuna)

    def _connections_cut(self) -> None:
        assert self.server
        self.server.proxy.cut()

    def _network_away(self) -> None:
        assert self.server
        self.server.proxy.away(1.6 * LEASE)

    def _server_restarted(self) -> None:
        assert self.server
        self.server.restart()

    def _pooler_restarted(self) -> None:
        assert self.server
        assert self.server.pooler
        self.server.pooler.restart()

    def _replaced(self) -> None:
        """Another study takes the name while the workers of this one sleep, or wait."""
        self._rest()
        self.number += 1
        self.study = self.settled()

    def _command_killed(self) -> None:
        """As `_replaced`, by commands of which each may be killed at any moment."""
        self._rest()
        self.number += 1
        for target, arguments in ((delete, (self.own,)), (make, (self.own, self.file()))):
            process = FORKED.Process(target=target, args=arguments)
            process.start()
            process.join(self.rng.uniform(0.0, 0.4))
            process.kill()
            process.join()
        self.study = self.settled()

    def _rest(self) -> None:
        """No worker holds a trial, and none can claim one; half of the time they all sleep for
        longer than their leases. What the study has by now is examined."""
        self._pause(self.study, True)
        if self.rng.random() < 0.5:
            for worker in self.fleet.workers:
                worker.signal(signal.SIGSTOP)
                later(2.5 * LEASE, worker.signal, signal.SIGCONT)
            time.sleep(1.1 * LEASE)
        while self.study.tidy()["running"]:
            time.sleep(0.05)
        self.wrong += examine(self.study, None, self.folder)["wrong"]


def run(
    database: str, faults: int, seed: int, folder: Path, *, stop_below: float = 0.0
) -> dict[str, Any]:
    """Works a study to its end under `faults` faults; the counts and what was found wrong.

    `database`: sqlite, postgresql, or pgbouncer, which pools PostgreSQL's transactions.
    """
    ordeal = Ordeal(database, folder, seed, stop_below)
    fleet = ordeal.fleet
    counted: Counter[str] = Counter()
    began = time.monotonic()
    while (done := sum(counted.values())) < faults:
        fleet.fill()
        time.sleep(ordeal.rng.uniform(0.05, 0.5))
        counted[ordeal.hurt(last=done > 0.8 * faults)] += 1
        counts = ordeal.study.queue.counts()
        if counts["waiting"] < 2 * WORKERS:  # always something to disturb
            ordeal.study.extend("+20")
    while counts["waiting"] or counts["running"]:
        fleet.fill()
        time.sleep(0.3)
        counts = ordeal.study.tidy()
    fleet.end()
    result = {
        "database": database,
        "machines": 1 if ordeal.machine is None else 2,
        "faults": dict(counted),
        "stop_below": stop_below,
        "trials": sum(counts.values()),
        "studies": ordeal.number + 1,
        "workers started": fleet.started,
        "seconds": round(time.monotonic() - began),
        **examine(ordeal.study, sum(counts.values()), folder),
    }
    result["wrong"] = [*ordeal.wrong, *fleet.complaints, *result["wrong"]]
    if ordeal.server:
        ordeal.server.stop()
    if ordeal.machine is not None:
        ordeal.machine.switch_off()
    return result
