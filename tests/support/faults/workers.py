"""What a worker process does under faults: a fast fake objective, and a history on disk."""

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from qsched.errors import StudyError, StudyGone
from qsched.search.box import Box
from qsched.search.gauge import Gauge
from qsched.service import stored_study as studies
from qsched.service.database import Database
from qsched.service.evaluator import Batch
from qsched.service.queue import Queue
from qsched.service.schema import Score, Slot
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker

NAME = "faults"
LEASE = 1.5
PATIENCE = 120.0
PAUSE = 0.02
"""Seconds that a batch takes."""


class FastEvaluator:
    """Scores that are a function of vector and prompt; every image made is written down."""

    def __init__(self, study: StoredStudy, log: Path) -> None:
        self.prompts = study.definition.calibration
        self.batch_size = study.definition.tables.execution.batch_size
        self.coefficients = study.coefficients
        self._scorers = study.definition.scorers
        self._study = number_of(study)
        self._log = log.open("a", buffering=1)
        self.slot = -1
        self.slots: dict[Any, int] = {}  # those begun, by their coefficients

    def write(self, kind: str, prompts: tuple[int, ...], slot: int | None = None) -> None:
        """One line of history."""
        place = self.slot if slot is None else slot
        self._log.write(json.dumps([kind, self._study, place, *prompts]) + "\n")

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
            self.write("made", batch, self.slots[coefficients])
            scores = self._scores([(coefficients, index) for index in batch])
            yield Batch(batch, scores, torch.zeros(len(batch), 3, 2, 2), PAUSE)

    def together(self, jobs: Sequence[tuple[Any, int]]) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """As Evaluator.together."""
        for start in range(0, len(jobs), self.batch_size):
            shared = jobs[start : start + self.batch_size]
            time.sleep(PAUSE)
            for coefficients, index in shared:
                self.write("made", (index,), self.slots[coefficients])
            batch = tuple(index for _, index in shared)
            images = torch.zeros(len(batch), 3, 2, 2)
            places = tuple(range(start, start + len(shared)))
            yield places, Batch(batch, self._scores(shared), images, PAUSE)

    def _scores(self, jobs: Sequence[tuple[Any, int]]) -> list[Score]:
        return [
            Score(index, metric, value_of(self._study, coefficients, index, metric), PAUSE)
            for coefficients, index in jobs
            for metric in self._scorers
        ]

    def gauge(self, box: Box) -> Gauge:
        """Both numbers count the same."""
        share = len(box.origin) ** -0.5
        return Gauge((share,) * len(box.origin), 0.5, 1.0, images=4 * len(box.origin))

    def measured(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class WatchedQueue(Queue):
    """Tells the evaluator which slot is worked on, and which of its batches were committed."""

    def __init__(self, study: StoredStudy, evaluator: FastEvaluator) -> None:
        super().__init__(study.storage.database, study.incarnation)
        self._evaluator = evaluator

    def claim(self, worker: str, lease: float, **more: Any) -> Slot | None:
        slot = super().claim(worker, lease, **more)
        self._evaluator.slot = slot.number if slot else -1
        if slot and slot.vector is not None:
            self._begun(slot, slot.vector)
        return slot

    def begin(self, slot: Slot, lease: float, *, vector: Sequence[float], **more: Any) -> None:
        super().begin(slot, lease, vector=vector, **more)
        self._begun(slot, vector)

    def adopt(
        self, slot: Slot, lease: float, *, vector: Sequence[float], **more: Any
    ) -> Slot | None:
        other = super().adopt(slot, lease, vector=vector, **more)
        self._begun(slot, vector)
        return other

    def _begun(self, slot: Slot, vector: Sequence[float]) -> None:
        self._evaluator.slots[self._evaluator.coefficients(vector)] = slot.number

    def record(self, slot: Slot, lease: float, scores: Sequence[Score]) -> None:
        super().record(slot, lease, scores)
        prompts = tuple(sorted({score.prompt for score in scores}))
        self._evaluator.write("committed", prompts, slot.number)


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
