"""A trial of one of our workers, a plain Optuna loop that stores the same data, and many at once.

A trial is claimed, proposed, recorded in two batches and finished; making images takes no time. It
stores 38 prompts x 2 metrics (76 scores). The plain loop asks, stores each prompt's scores as an
attribute as they come, reports a value for each batch, and tells. A module of its own, because
processes that are started import it by its name.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
import torch

from qsched.prompts import Prompt
from qsched.search.box import Box
from qsched.search.gauge import Gauge
from qsched.search.samplers import distributions
from qsched.service import stored_study as studies
from qsched.service.evaluator import Batch
from qsched.service.schema import Score
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from qsched.study.study import load_study

PROMPTS, BATCH = 38, 19
METRICS = ("demo-alignment", "demo-quality")
SPAWN = multiprocessing.get_context("forkserver")
STUDY = """
name = "{name}"
[model]
name = "demo"
[sampling]
steps = 4
[quantization]
scheme = "w4a4"
[objective]
preset = "plain"
terms = [{{ scorer = "demo-alignment" }}, {{ scorer = "demo-quality" }}]
[search]
sampler = "{sampler}"
trials = 1
[prompts]
calibration = {prompts}
held_out = ["x", "y"]
[validation]
metrics = ["similarity"]
[execution]
batch_size = {batch}
"""


class Instant:
    """An evaluator whose images take `seconds` a trial, by default none."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.prompts = [Prompt("", index) for index in range(PROMPTS)]
        self.batch_size = BATCH
        self.seconds = seconds

    def batches(
        self,
        coefficients: Any,
        done: frozenset[int] = frozenset(),
        order: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        for start in range(0, PROMPTS, BATCH):
            time.sleep(self.seconds * BATCH / PROMPTS)
            batch = tuple(range(start, start + BATCH))
            scores = [
                Score(prompt, metric, 0.01 * prompt - abs(coefficients.model[0] - 1.1), 0.1)
                for prompt in batch
                for metric in METRICS
            ]
            yield Batch(batch, scores, torch.zeros(1, 3, 1, 1), 0.1)

    def measured(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def together(self, jobs: Sequence[tuple[Any, int]]) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """No sampler of this bench shares batches."""
        raise NotImplementedError

    def gauge(self, box: Box) -> Gauge:
        """No sampler of this bench asks for it."""
        raise NotImplementedError


def create(url: str, name: str, sampler: str) -> StoredStudy:
    """A study of the bench."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.toml"
        prompts = json.dumps([f"prompt {index}" for index in range(PROMPTS)])
        path.write_text(STUDY.format(name=name, sampler=sampler, prompts=prompts, batch=BATCH))
        return studies.create(Storage(url), load_study(path))


# --- one trial, both ways ----------------------------------------------------------------------


def service_trials(url: str, name: str, trials: int, sampler: str) -> list[float]:
    """Seconds of each trial of one of our workers."""
    study = studies.load(Storage(url), name)
    tables = study.definition.tables
    search = tables.search.model_copy(update={"sampler": sampler})
    tables = tables.model_copy(update={"search": search})
    study.definition = replace(study.definition, tables=tables)
    worker = Worker(study, Instant())
    study.propose(1)  # knows the history from here on, as a worker does after its first trial
    study.trials.study  # noqa: B018 - connects
    return [_timed(worker.run_one) for _ in range(trials)]


def plain_trials(url: str, name: str, trials: int, sampler: str) -> list[float]:
    """Seconds of each trial of a plain loop."""
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    made = optuna.samplers.RandomSampler() if sampler == "random" else optuna.samplers.TPESampler()
    study = optuna.load_study(study_name=name, storage=storage, sampler=made)
    space = optuna.distributions.FloatDistribution(0.6, 1.4)
    study.ask({"c_eps_first": space})

    def trial() -> None:
        asked = study.ask({"c_eps_first": space, "c_x_first": space})
        total = 0.0
        for prompt in range(PROMPTS):
            score = 0.01 * prompt - abs(asked.params["c_eps_first"] - 1.1)
            asked.set_user_attr(f"prompt {prompt}", dict.fromkeys(METRICS, score))
            total += score
            if (prompt + 1) % BATCH == 0:
                asked.report(total / (prompt + 1), prompt + 1)
        study.tell(asked, total / PROMPTS)

    return [_timed(trial) for _ in range(trials)]


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- many at once ------------------------------------------------------------------------------


def _run(queue: Any, barrier: Any, target: Any, arguments: tuple[Any, ...]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    barrier.wait()
    queue.put(target(*arguments))


def together(workers: int, target: Any, *arguments: Any) -> float:
    """Median milliseconds a trial, over `workers` processes at once."""
    queue, barrier = SPAWN.Queue(), SPAWN.Barrier(workers)
    processes = [
        SPAWN.Process(target=_run, args=(queue, barrier, target, arguments)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    seconds: list[float] = [value for _ in processes for value in queue.get()]
    for process in processes:
        process.join()
    return 1000 * statistics.median(seconds)


def fill_ours(url: str, name: str, level: int) -> list[float]:
    """Brings our study to `level` finished trials."""
    ours = studies.load(Storage(url), name)
    have = ours.queue.counts()["finished"]
    ours.extend(str(max(level, have)))
    worker = Worker(ours, Instant())
    while worker.run_one():
        pass
    return [0.0]


def fill_plain(url: str, name: str, level: int) -> list[float]:
    """Brings the plain study to `level` finished trials."""
    ours = studies.load(Storage(url), name.removesuffix("-plain"))
    plain = optuna.load_study(study_name=name, storage=url)
    have = len(plain.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
    space = distributions(ours.definition.parametrisation, ours.definition.bounds)
    for index in range(have, level):
        vector = np.random.default_rng(index).uniform(0.6, 1.4, 2)
        plain.add_trial(
            optuna.trial.create_trial(
                value=float(-abs(vector[0] - 1.1)),
                params=dict(zip(space, vector.tolist(), strict=True)),
                distributions=space,
                user_attrs={
                    f"prompt {prompt}": dict.fromkeys(METRICS, 0.5) for prompt in range(PROMPTS)
                },
            )
        )
    return [0.0]


def fill(url: str, name: str, level: int) -> None:
    """Brings both studies to `level` finished trials, side by side."""
    queue, barrier = SPAWN.Queue(), SPAWN.Barrier(2)
    targets = {fill_ours: name, fill_plain: f"{name}-plain"}
    processes = [
        SPAWN.Process(target=_run, args=(queue, barrier, target, (url, which, level)))
        for target, which in targets.items()
    ]
    for process in processes:
        process.start()
    for _ in processes:
        queue.get()
    for process in processes:
        process.join()


def statements(url: str, name: str) -> dict[str, float]:
    """Statements and commits of one trial of ours, and of a plain one."""
    study = studies.load(Storage(url), name)
    worker = Worker(study, Instant())
    worker.run_one()
    counted = {"statements": 0, "commits": 0}

    def executed(*arguments: Any) -> None:
        counted["statements"] += 1

    def committed(*arguments: Any) -> None:
        counted["commits"] += 1

    database = study.storage.database
    for engine in (database.engine, database.optuna.engine):
        sa.event.listen(engine, "before_cursor_execute", executed)
        sa.event.listen(engine, "commit", committed)
    for _ in range(5):
        worker.run_one()
    ours = {key: value / 5 for key, value in counted.items()}
    counted.update(statements=0, commits=0)
    create = sa.create_engine

    def watched(*arguments: Any, **keywords: Any) -> sa.Engine:
        engine = create(*arguments, **keywords)
        sa.event.listen(engine, "before_cursor_execute", executed)
        sa.event.listen(engine, "commit", committed)
        return engine

    sa.engine.create_engine = watched
    try:
        plain_trials(url, f"{name}-plain", 1, "random")
        base = dict(counted)
        counted.update(statements=0, commits=0)
        plain_trials(url, f"{name}-plain", 6, "random")
    finally:
        sa.engine.create_engine = create
    return {f"ours, {key}": value for key, value in ours.items()} | {
        f"plain, {key}": (counted[key] - base[key]) / 5 for key in counted
    }


def _sleepers(url: str, name: str, seconds: float) -> tuple[float, float]:
    """Works until the study is complete; when it began and ended."""
    study = studies.load(Storage(url), name)
    began = time.time()
    Worker(study, Instant(seconds)).run()
    return began, max(row.time for row in study.queue.news()[0])


def efficiency(url: str, *, workers: int = 16, seconds: float = 2.0, each: int = 30) -> float:
    """Trials a second of `workers`, over the most that there could be."""
    study = create(url, f"parallel-{uuid.uuid4().hex[:6]}", "tpe")
    study.extend(str(workers * each))
    queue, barrier = SPAWN.Queue(), SPAWN.Barrier(workers)
    arguments = (url, study.name, seconds)
    processes = [
        SPAWN.Process(target=_run, args=(queue, barrier, _sleepers, arguments))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    spans: list[tuple[float, float]] = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    elapsed = max(span[1] for span in spans) - min(span[0] for span in spans)
    return each * seconds / elapsed
