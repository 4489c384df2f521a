"""A worker: claim a slot, score its coefficients, finish it; again until none is left."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from qsched.errors import GenerationError, ScoreError, StudyError
from qsched.objective import Evaluator
from qsched.schema import Slot
from qsched.storage import this_process
from qsched.study import StoredStudy

FAILURES = 3
"""A slot that failed this often is parked, with the reason."""


class Worker:
    """Works on one study. Calls `on_batch(slot, prompts scored)` after each committed batch, and
    `on_trial()` after each slot that was finished or failed.

        worker = Worker(study, evaluator)
        while worker.run_one():
            ...
    """

    def __init__(
        self,
        study: StoredStudy,
        evaluator: Evaluator,
        on_batch: Callable[[int, int], None] = lambda slot, scored: None,
        on_trial: Callable[[], None] = lambda: None,
    ) -> None:
        self.study = study
        self.evaluator = evaluator
        self.on_batch = on_batch
        self.on_trial = on_trial
        self.stopping = False

    def run(self) -> bool:
        """Works until no slot waits (True) or a signal asked to stop (False).

        Raises StudyError if another process works on the study, or if the identity failed.
        """
        owner = self.study.storage.reclaim(self.study.name)
        if owner:
            raise StudyError(
                f"study {self.study.name!r} is being worked on by process {owner}; "
                "one worker at a time in this version"
            )
        with self._signals():
            while not self.stopping and self.run_one():
                self.on_trial()
        return not self.stopping

    def run_one(self) -> bool:
        """Claims one slot and brings it as far as it goes; False if none was waiting."""
        slot = self.study.storage.claim(self.study.name, this_process())
        if slot is None:
            return False
        self._check_identity(slot)
        try:
            finished = self._score(slot)
        except (GenerationError, ScoreError) as error:
            self.study.storage.fail(self.study.name, slot.number, str(error), limit=FAILURES)
            return True
        except BaseException:
            self.study.storage.release(self.study.name, slot.number)
            raise
        if finished:
            self._finish(slot.number)
        else:
            self.study.storage.release(self.study.name, slot.number)
        return True

    def _score(self, slot: Slot) -> bool:
        """Scores the prompts that the slot still lacks; False if it was asked to stop before."""
        storage, name = self.study.storage, self.study.name
        vector = slot.vector or self.study.next_vector(slot.number)
        storage.begin(name, slot.number, vector)
        done = self._scored(slot.number)
        coefficients = self.study.definition.parametrisation.coefficients(vector)
        for scores in self.evaluator.batches(coefficients, done):
            storage.record(name, slot.number, scores)
            done |= {score.prompt for score in scores}
            self.on_batch(slot.number, len(done))
            if self.stopping and len(done) < len(self.evaluator.prompts):
                return False
        return True

    def _scored(self, slot: int) -> frozenset[int]:
        scores = self.study.storage.scores(self.study.name, slot)
        return frozenset(score.prompt for score in scores)

    def _finish(self, number: int) -> None:
        """Value, Optuna's trial, then the slot: each step may be repeated after a crash."""
        value = self.study.objective().value(self.study.term_scores(number))
        vector = self.study.slots()[number].vector or ()
        self.study.publish(number, vector, value)
        self.study.storage.finish(self.study.name, number, value)

    def _check_identity(self, slot: Slot) -> None:
        """Every value is measured against the identity: without slot 0 there is no study."""
        identity = self.study.slots()[0]
        if slot.number and identity.state == "parked":
            self.study.storage.release(self.study.name, slot.number)
            raise StudyError(
                f"study {self.study.name!r}: the identity schedule failed {FAILURES} times: "
                f"{identity.reason}"
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM set a flag, read between batches; a second SIGINT interrupts.

        A handler that did more could run between any two instructions of a transaction.
        """

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            if self.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping = True

        before = {
            number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
