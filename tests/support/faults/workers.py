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
