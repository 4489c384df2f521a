"""A worker: claim a slot, score its coefficients, finish it; again until none is left."""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from qsched.errors import (
    GenerationError,
    LeaseLost,
    MirrorLost,
    ScoreError,
    StorageError,
    StudyError,
    StudyGone,
)
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients
from qsched.search.box import Box
from qsched.search.gauge import Gauge
from qsched.service.heartbeat import Heartbeat
from qsched.service.hosts import is_gone, this_process
from qsched.service.interrupts import Interrupts
from qsched.service.queue import lost
from qsched.service.schema import Score, Slot
from qsched.service.stored_study import StoredStudy

if TYPE_CHECKING:
    from qsched.service.evaluator import Batch

LEASE = 60.0
"""Seconds after which a slot goes to another worker, if nothing was heard of its own."""

POLL = 2.0
"""Seconds between two looks of a worker that waits."""

logger = logging.getLogger(__name__)


class Evaluates(Protocol):
    """What a worker asks of `evaluator.Evaluator`, whose docstrings say more."""

    @property
    def prompts(self) -> Sequence[Prompt]: ...

    @property
    def batch_size(self) -> int: ...

    def batches(
        self, coefficients: Coefficients, done: frozenset[int], order: Sequence[int] | None
    ) -> "Iterator[Batch]": ...

    def measured(self) -> dict[str, Any]: ...

    def gauge(self, box: Box) -> Gauge: ...

    def together(
        self, jobs: Sequence[tuple[Coefficients, int]]
    ) -> "Iterator[tuple[tuple[int, ...], Batch]]": ...


class Worker:
    """Works on one study, until that is done or deleted.

        worker = Worker(study, evaluator)
        while worker.run_one():
            ...

    `hardware`: what a value may depend on; another one than the study's first worker's is refused
    unless the study allows it. `lease`: seconds, by the database's clock. `grace`: seconds that a
    trial in hand may still take when it is asked to stop. `on_batch(slot, prompts scored, of how
    many)` is called after each committed batch, `on_gauge(gauge)` where this worker measured it,
    `on_trial()` after each slot that was finished or failed,
    `on_wait()` before each pause in which nothing is free, `gallery(slot, images, value)` with the
    images of a trial before it is finished. `poll`: seconds between two looks while
    nothing is free.
    """

    def __init__(
        self,
        study: StoredStudy,
        evaluator: Evaluates,
        *,
        hardware: Mapping[str, Any] | None = None,
        lease: float = LEASE,
        grace: float = 0.0,
        on_batch: Callable[[int, int, int], None] = lambda slot, scored, of: None,
        on_gauge: Callable[[Gauge], None] = lambda gauge: None,
        on_trial: Callable[[], None] = lambda: None,
        on_wait: Callable[[], None] = lambda: None,
        gallery: "Callable[[Slot, list[Batch], float], None] | None" = None,
        poll: float = POLL,
    ) -> None:
        self.study = study
        self.evaluator = evaluator
        self.hardware = dict(hardware or {})
        self.lease = lease
        self.on_batch = on_batch
        self.on_gauge = on_gauge
        self.on_trial = on_trial
        self.on_wait = on_wait
        self.gallery = gallery
        self.poll = poll
        self.id = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.interrupts = Interrupts(grace)
        self._batch_seconds = 0.0
        self._heartbeat = Heartbeat(study.storage, study.queue, self.id, lease)

    def run(self, *, max_trials: int | None = None, stay: bool = False) -> bool:
        """Works until the budget is spent (True), or until it is asked to stop (False).

        While other workers hold the last slots it waits, because theirs may come back. `stay`: it
        goes on waiting, for a larger budget. `max_trials`: stops after so many slots. Raises
        StudyError if its hardware is refused or the identity failed, StudyGone if the study was
        deleted, StorageError if the database stays away.
        """
        self._join()
        logger.info("worker %s begins on %s", self.id, self.hardware)
        worked = 0
        with self.interrupts.handled(), self._heartbeat:
            try:
                while not self.interrupts.asked and worked != max_trials:
                    most = None if max_trials is None else max_trials - worked
                    if done := self.run_one(most):
                        worked += done
                        self.on_trial()
                    elif not self._wait(stay):
                        break
            finally:
                with suppress(StorageError, StudyGone):
                    self.study.tidy()
                    self.study.storage.seen(
                        self.id, self._heartbeat.images, self._heartbeat.seconds, "stopped"
                    )
        return not self.interrupts.asked

    def run_one(self, most: int | None = None) -> int:
        """Claims one slot and brings it as far as it goes; how many slots: 0 if none was free.

        Where trials have fewer prompts than a batch, several slots share it, `most` at the most.
        """
        slots = self._claim(most)
        if not slots:
            return 0
        with self._heartbeat.holding(slots):
            made: dict[int, list[Batch]] = {}
            left = self._together(slots, made) if len(slots) > 1 else slots
            for slot in left:
                self._alone(slot, made.get(slot.number, []))
                self._heartbeat.let_go(slot)
        return len(slots)

    def _claim(self, most: int | None) -> list[Slot]:
        """A slot, and as many more as have room in its batch."""
        queue, plan = self.study.queue, self.study.definition.plan
        slots: list[Slot] = []
        room = 1
        while len(slots) < min(room, most or room):
            held = [slot.number for slot in slots]
            slot = queue.claim(self.id, self.lease, barriers=self.study.barriers, besides=held)
            if slot is None:
                break
            slots.append(slot)
            if plan and slot.number:
                room = max(1, self.evaluator.batch_size // plan.per_trial)
        return slots

    def _together(self, slots: Sequence[Slot], made: "dict[int, list[Batch]]") -> list[Slot]:
        """Begins slots and scores what they lack in batches that they share; those that are left to
        be finished, or to go on alone, one by one, after something failed."""
        queue, left = self.study.queue, {slot.number: slot for slot in slots}
        try:
            for slot in slots:
                if slot.vector is None:
                    left[slot.number] = self._begin(slot)
            jobs = [
                (slot, prompt)
                for slot in left.values()
                if slot.prompts is not None
                for prompt in self._lacking(slot)
            ]
            found = self.evaluator.together(
                [(self.study.coefficients(slot.vector or ()), prompt) for slot, prompt in jobs]
            )
            for places, batch in found:
                for number in dict.fromkeys(jobs[at][0].number for at in places):
                    mine = [k for k, at in enumerate(places) if jobs[at][0].number == number]
                    parts = [batch.alone(k) for k in mine]
                    if number in left:
                        self._record(left, number, parts, made)
                self._count(batch)
                if not self.interrupts.time_for(self._batch_seconds):
                    break
        except (LeaseLost, MirrorLost, GenerationError, ScoreError) as error:
            logger.info("%s; one slot after the other", error)
        except (StorageError, StudyGone):
            raise
        except BaseException:
            for slot in left.values():
                queue.release(slot)
            raise
        if self.interrupts.asked and not self.interrupts.time_for(self._batch_seconds):
            for slot in left.values():
                if not self._lacking(slot):
                    continue
                queue.release(left[slot.number])
                logger.info("slot %d: given back", slot.number)
            return [slot for slot in left.values() if not self._lacking(slot)]
        return list(left.values())

    def _lacking(self, slot: Slot) -> list[int]:
        """The prompts that a slot wants and that have no scores."""
        wanted = slot.prompts or range(len(self.evaluator.prompts))
        done = {score.prompt for score in self.study.queue.scores(slot.number)}
        return [prompt for prompt in wanted if prompt not in done]

    def _record(
        self,
        left: dict[int, Slot],
        number: int,
        parts: "list[Batch]",
        made: "dict[int, list[Batch]]",
    ) -> None:
        """Commits what a shared batch has of a slot; one that was lost is not `left`."""
        slot = left[number]
        try:
            if number in self._heartbeat.lost:
                raise lost(self.study.incarnation, slot)
            scores = [score for part in parts for score in part.scores]
            self.study.queue.record(slot, self.lease, scores)
        except LeaseLost as error:
            logger.warning("%s", error)
            self._heartbeat.let_go(slot)
            del left[number]
            return
        if self.gallery:
            made.setdefault(number, []).extend(parts)
        wanted = len(slot.prompts or self.evaluator.prompts)
        self.on_batch(number, wanted - len(self._lacking(slot)), wanted)

    def _alone(self, slot: Slot, made: "list[Batch]") -> None:
        """Brings a slot as far as it goes, and says what became of it."""
        queue = self.study.queue
        try:
            if not self._work(slot, made):
                queue.release(slot)
                logger.info("slot %d: given back", slot.number)
        except LeaseLost as error:
            logger.warning("%s", error)
        except MirrorLost:  # its scores are kept, and its next attempt has another trial
            queue.release(slot)
            self.study.restore()
        except (GenerationError, ScoreError) as error:
            self._fail(slot, str(error))
        except (StorageError, StudyGone):
            raise
        except Exception as error:
            self._fail(slot, f"{type(error).__name__}: {error}")
            raise
        except BaseException:
            queue.release(slot)
            raise

    def _work(self, slot: Slot, made: "list[Batch]") -> bool:
        """Scores what the slot lacks and finishes it; False if it was asked to stop before."""
        study, queue = self.study, self.study.queue
        if study.definition.plan and study.gauge is None:
            self._measure()
        begun = slot.vector is not None
        if slot.vector is None or slot.trial is None:
            slot = self._begin(slot)
        elif slot.attempt > 1:
            study.trials.start(slot)
        vector = slot.vector or ()
        resumed = begun or slot.origin is not None
        scores = queue.scores(slot.number) if resumed else []
        wanted = slot.prompts or range(len(self.evaluator.prompts))
        done = frozenset(score.prompt for score in scores)
        if done and (estimate := self._hopeless(slot, scores, vector)) is not None:
            self._stop(slot, scores, estimate)
            return True
        order = slot.prompts or study.order(slot.number)
        for batch in self.evaluator.batches(study.coefficients(vector), done, order):
            if slot.number in self._heartbeat.lost:
                raise lost(study.incarnation, slot)
            queue.record(slot, self.lease, batch.scores)
            self._count(batch)
            scores += batch.scores
            done |= set(batch.prompts)
            if self.gallery:
                made.append(batch)
            self.on_batch(slot.number, len(done), len(wanted))
            complete = done.issuperset(wanted)
            # The identity's own scores set the units, once they are complete; of some prompts the
            # mean says little, and is no value of the trial's.
            if slot.number and slot.prompts is None:
                study.trials.report(slot, len(done), study.value(scores, vector))
            if complete:
                break
            if (estimate := study.hopeless(slot.number, scores, vector)) is not None:
                self._stop(slot, scores, estimate)
                return True
            if not self.interrupts.time_for(self._batch_seconds):
                return False
        if slot.prompts is None:
            self._finish(slot, vector, scores, made)
        else:
            self._conclude(slot, scores, made)
        return True

    def _measure(self) -> None:
        """The gauge, once a study: by the worker that begins it."""
        gauge = self.study.keep_gauge(self.evaluator.gauge(self.study.box))
        logger.info("gauge: %s", gauge.sentence)
        self.on_gauge(gauge)

    def _conclude(self, slot: Slot, scores: Sequence[Score], made: "list[Batch]") -> None:
        """Ends a trial of some prompts, at what all of them are expected to come to."""
        ended = self.study.trials.estimate(slot) if slot.attempt > 1 else None
        estimate = self.study.estimate(slot, scores) if ended is None else ended
        if self.gallery and slot.number <= self.study.definition.tables.gallery.trials:
            self.gallery(slot, made, estimate)
        self._stop(slot, scores, estimate)

    def _begin(self, slot: Slot) -> Slot:
        """A slot that lacks vector and trial, with both: its own vector, the next that somebody
        enqueued, or what the sampler proposes."""
        study = self.study
        if slot.attempt > 1:
            study.tidy()
        if slot.number and slot.vector is None:
            adopted = study.adopt(slot, self.lease)
            if adopted is not None:
                return adopted
        if slot.vector is None:
            proposal = study.propose(slot.number)
            slot = replace(
                slot, vector=proposal.vector, prompts=proposal.prompts, origin=proposal.origin
            )
        vector = slot.vector or ()
        slot = replace(slot, trial=study.trials.make(slot, vector))
        study.queue.begin(
            slot,
            self.lease,
            vector=vector,
            trial=slot.trial or 0,
            prompts=slot.prompts,
            origin=slot.origin,
            check=lambda session: study.trials.require(session, slot.number, slot.trial or 0),
        )
        return slot

    def _hopeless(
        self, slot: Slot, scores: Sequence[Score], vector: Sequence[float]
    ) -> float | None:
        """As `StoredStudy.hopeless`, for a slot that somebody began: who stopped its trial and died
        before the slot knew is believed."""
        if self.study.order(slot.number) is None:
            return None
        stopped = self.study.trials.estimate(slot)
        return self.study.hopeless(slot.number, scores, vector) if stopped is None else stopped

    def _stop(self, slot: Slot, scores: Sequence[Score], estimate: float) -> None:
        """Ends a trial that hasn't all prompts, at an estimate: Optuna's trial, then the slot."""
        study = self.study
        prompts = len({score.prompt for score in scores})
        study.queue.renew(slot, self.lease)
        if slot.prompts is not None:  # what Optuna shows of a trial that isn't complete
            study.trials.report(slot, prompts, estimate)
        study.trials.prune(slot, estimate, self._attributes(slot, scores) | {"prompts": prompts})
        study.queue.finish(slot, estimate, stopped=True)
        logger.info("slot %d: %d prompts, expected %.6g", slot.number, prompts, estimate)

    def _finish(
        self,
        slot: Slot,
        vector: Sequence[float],
        scores: Sequence[Score],
        made: "list[Batch]",
    ) -> None:
        """Optuna's trial, then the slot: each step may be repeated after a crash."""
        study = self.study
        value = study.value(scores, vector, identity=slot.number == 0)
        if self.gallery:
            self.gallery(slot, made, value)
        attributes = self._attributes(slot, scores)
        study.queue.renew(slot, self.lease)
        study.trials.complete(slot, value, attributes)
        study.queue.finish(slot, value)
        logger.info("slot %d: %.6g", slot.number, value)

    def _attributes(self, slot: Slot, scores: Sequence[Score]) -> dict[str, Any]:
        """What Optuna's trial shows beside its value."""
        study = self.study
        attributes = study.attributes(scores)
        if slot.attempt > 1:
            attributes |= {"attempt": slot.attempt, "worker": self.id}
        if self.evaluator.batch_size != study.definition.tables.execution.batch_size:
            attributes |= {"batch_size": self.evaluator.batch_size}
        return attributes | self.evaluator.measured()

    def _fail(self, slot: Slot, reason: str) -> None:
        logger.warning("slot %d failed: %s", slot.number, reason)
        if self.study.queue.fail(slot, reason):
            self.study.tidy()

    def _count(self, batch: "Batch") -> None:
        self._heartbeat.count(len(batch.prompts), batch.seconds)
        self._batch_seconds = batch.seconds

    def _wait(self, stay: bool) -> bool:
        """Nothing is free: returns what expired, and waits a little; False if all is done."""
        self.study.storage.bury(self.study.incarnation, is_gone)
        counts = self.study.tidy()
        identity = self.study.queue.slot(0)
        if identity.state == "parked":  # every value is measured against it
            raise StudyError(
                f"study {self.study.name!r}: the identity schedule failed: {identity.reason}"
            )
        if not stay and not counts["waiting"] and not counts["running"]:
            return False
        self.on_wait()
        until = time.monotonic() + self.poll
        while not self.interrupts.asked and time.monotonic() < until:
            time.sleep(0.1)
        return True

    def _join(self) -> None:
        """Enters the study's list of workers. Raises StudyError for other hardware."""
        self.study.restore()
        expected = self.study.storage.enter(
            self.study.incarnation,
            self.id,
            machine=str(this_process() or ""),
            host=socket.gethostname(),
            pid=os.getpid(),
            hardware=self.hardware,
        )
        self.study.storage.bury(self.study.incarnation, is_gone)
        allowed = self.study.definition.tables.execution.allow_mixed_hardware
        if expected != self.hardware and not allowed:
            keys = sorted(expected.keys() | self.hardware.keys())
            differing = [
                f"{key}: the study has {expected.get(key)!r}, here it is {self.hardware.get(key)!r}"
                for key in keys
                if expected.get(key) != self.hardware.get(key)
            ]
            self.study.storage.seen(self.id, 0, 0.0, "refused")
            raise StudyError(
                f"study {self.study.name!r} was begun on other hardware, and values differ between "
                f"them: {'; '.join(differing)}; set execution.allow_mixed_hardware = true to mix, "
                "and enter the file again with qsched create"
            )
