"""The slots of one study: its budget as a queue, who holds what, and every score.

A slot that is running belongs to the worker that claimed it, under the attempt's number, until its
lease expires by the database's clock. Every write of a trial checks the attempt in its own
transaction and renews the lease; a worker that lost its slot gets LeaseLost and has written
nothing, one whose study was deleted gets StudyGone, whoever has the study's name now. Each method
is one transaction and may be repeated.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from qsched.errors import LeaseLost, StudyError
from qsched.service.database import Database, now, transaction
from qsched.service.schema import (
    OPEN,
    Incarnation,
    Running,
    Score,
    ScoreTable,
    Slot,
    SlotTable,
    StudyTable,
    Tried,
    gone,
)

STATES = ("waiting", "running", "finished", "stopped", "parked")

FAILURES = 3
"""A slot that failed this often is parked, with the reason."""

RECENT = 16
"""Slots whose estimates are compared to say what may be expected."""

LOSSES = 10
"""A slot whose worker was lost this often in a row, without a new score, is parked too."""


class Queue:
    """The slots of a study in `database`."""

    def __init__(self, database: Database, study: Incarnation) -> None:
        self.database = database
        self.study = study

    # The whole

    @transaction
    def grow(self, session: Session, budget: int) -> None:
        """Adds waiting slots until there are `budget`; never removes one."""
        add_slots(session, StudyTable.of(session, self.study, locked=True), budget)

    @transaction
    def slots(self, session: Session, states: Sequence[str] = STATES) -> list[Slot]:
        """The slots of a study that are in one of `states`, in the order of their numbers."""
        query = sa.select(SlotTable).filter_by(study=self.study.id).order_by(SlotTable.number)
        if states is not STATES:
            query = query.where(SlotTable.state.in_(states))
        return [row.frozen() for row in session.scalars(query)]

    @transaction
    def ended(self, session: Session, trials: Sequence[int]) -> list[Slot]:
        """The finished and stopped slots that have one of these trials."""
        query = sa.select(SlotTable).where(
            SlotTable.study == self.study.id,
            SlotTable.state.in_(("finished", "stopped")),
            SlotTable.trial.in_(trials),
        )
        return [row.frozen() for row in session.scalars(query.order_by(SlotTable.number))]

    @transaction
    def slot(self, session: Session, number: int) -> Slot:
        """One slot."""
        return self._row(session, number).frozen()

    def counts(self) -> dict[str, int]:
        """{state: number of slots}, after what expired was returned to the queue, as far as the
        database may be written."""
        return self._counts(reap=self.database.writes)

    @transaction
    def _counts(self, session: Session, *, reap: bool) -> dict[str, int]:
        StudyTable.require(session, self.study)
        if reap:
            self._reap(session)
        query = (
            sa.select(SlotTable.state, sa.func.count())
            .filter_by(study=self.study.id)
            .group_by(SlotTable.state)
        )
        found = {row[0]: row[1] for row in session.execute(query)}
        return {state: found.get(state, 0) for state in STATES}

    def require_rest(self) -> None:
        """Raises StudyError while workers hold trials."""
        if self.counts()["running"]:
            raise StudyError(
                f"study {self.study.name!r} is being worked on; pause it, or wait until its leases "
                "expire"
            )

    @transaction
    def reasons(self, session: Session) -> list[tuple[int, str]]:
        """(number, reason) of the slots that failed and are not finished."""
        query = (
            sa.select(SlotTable.number, SlotTable.reason)
            .where(SlotTable.study == self.study.id, SlotTable.reason.is_not(None))
            .order_by(SlotTable.number)
        )
        return [(number, str(reason)) for number, reason in session.execute(query)]

    @transaction
    def news(self, session: Session, since: float = 0.0) -> tuple[list[Tried], list[Running]]:
        """What a sampler goes by: the slots that were finished or stopped at `since` or
        later, in the order of their ends, and those being tried right now."""
        finished = (
            sa.select(SlotTable.finished, SlotTable.number, SlotTable.vector, SlotTable.value)
            .where(SlotTable.study == self.study.id, SlotTable.finished >= since)
            .order_by(SlotTable.finished, SlotTable.number)
        )
        running = (
            sa.select(SlotTable.number, SlotTable.vector, SlotTable.prompts)
            .where(SlotTable.study == self.study.id, SlotTable.state == "running")
            .order_by(SlotTable.number)
        )
        return (
            [
                Tried(time or 0.0, number, tuple(vector or ()), value or 0.0)
                for time, number, vector, value in session.execute(finished)
            ],
            [
                Running(number, tuple(vector), tuple(prompts) if prompts is not None else None)
                for number, vector, prompts in session.execute(running)
                if vector
            ],
        )

    @transaction
    def expected(self, session: Session) -> Slot | None:
        """The stopped slot of the highest estimate among the last few: older ones knew less."""
        query = (
            sa.select(SlotTable)
            .filter_by(study=self.study.id, state="stopped")
            .order_by(SlotTable.finished.desc())
            .limit(RECENT)
        )
        rows = list(session.scalars(query))
        best = max(rows, key=lambda row: row.value or 0.0, default=None)
        return best.frozen() if best else None

    @transaction
    def best(self, session: Session) -> Slot | None:
        """The finished slot of the highest value, the first among equals."""
        query = (
            sa.select(SlotTable)
            .filter_by(study=self.study.id, state="finished")
            .order_by(SlotTable.value.desc(), SlotTable.number)
            .limit(1)
        )
        row = session.scalar(query)
        return row.frozen() if row else None

    @transaction
    def retry(self, session: Session) -> int:
        """Returns the parked slots to the queue, with their vectors and scores; how many."""
        query = (
            sa.select(SlotTable).filter_by(study=self.study.id, state="parked").with_for_update()
        )
        rows = list(session.scalars(query))
        for row in rows:
            row.state, row.failures, row.lost, row.trial = "waiting", 0, 0, None
        return len(rows)

    # One slot

    @transaction
    def claim(
        self,
        session: Session,
        worker: str,
        lease: float,
        *,
        barriers: Callable[[int], Sequence[int]] = lambda budget: (),
        besides: Sequence[int] = (),
    ) -> Slot | None:
        """Takes the first slot that is free, for `lease` seconds; None if there is none.

        Free is what waits, what expired, and what this worker holds already (the answer to an
        earlier call was lost). `barriers`, of a budget: slots before which all others are over
        when they begin; slot 0, the identity, is so when it is finished. `besides`: what this
        worker holds and knows of.
        """
        free = sa.or_(
            SlotTable.state == "waiting",
            sa.and_(
                SlotTable.state == "running",
                sa.or_(SlotTable.lease < now(), SlotTable.worker == worker),
            ),
        )
        query = (
            sa.select(SlotTable)
            .join(StudyTable, StudyTable.id == SlotTable.study)
            .where(SlotTable.study == self.study.id, OPEN, ~StudyTable.paused, free)
            .order_by(SlotTable.number)
            .limit(1)
            .with_for_update(skip_locked=True, of=SlotTable)
        )
        if besides:
            query = query.where(SlotTable.number.not_in(besides))
        limit = self._limit(session, barriers)
        if limit is not None:
            query = query.where(SlotTable.number < limit)
        row = session.scalar(query)
        while row is not None and row.state == "running" and row.worker != worker and _lost(row):
            session.flush()
            row = session.scalar(query)
        if row is None:
            StudyTable.of(session, self.study)
            return None
        row.state, row.worker, row.attempt = "running", worker, row.attempt + 1
        row.lease = now() + lease
        session.flush()
        return row.frozen()

    @transaction
    def begin(
        self,
        session: Session,
        slot: Slot,
        lease: float,
        *,
        vector: Sequence[float],
        trial: int,
        prompts: Sequence[int] | None = None,
        origin: int | None = None,
        check: Callable[[Session], None] = lambda session: None,
    ) -> None:
        """Fixes the slot's search vector, Optuna's trial, its prompts (None: all) and the slot
        whose scores it goes on from. `check` looks on in the same transaction, and may raise.
        Raises LeaseLost."""
        check(session)
        dealt = list(prompts) if prompts is not None else None
        changes = {"vector": list(vector), "trial": trial, "prompts": dealt, "origin": origin}
        self._hold(session, slot, lease, **changes)

    @transaction
    def adopt(
        self,
        session: Session,
        slot: Slot,
        lease: float,
        *,
        vector: Sequence[float],
        trial: int,
        prompts: Sequence[int] | None = None,
    ) -> Slot | None:
        """As `begin`, with a trial that somebody enqueued, unless another slot has it or tries its
        vector: that slot is returned, and nothing is changed. One worker at a time gets here, so
        none is taken twice. Raises LeaseLost."""
        StudyTable.of(session, self.study, locked=True)
        begun = sa.select(SlotTable).where(
            SlotTable.study == self.study.id,
            SlotTable.number != slot.number,
            SlotTable.vector.is_not(None),
        )
        for row in session.scalars(begun.order_by(SlotTable.number)):
            other = row.frozen()
            if other.trial == trial or other.vector == tuple(vector):
                return other
        dealt = list(prompts) if prompts is not None else None
        self._hold(session, slot, lease, vector=list(vector), trial=trial, prompts=dealt)
        return None

    @transaction
    def record(self, session: Session, slot: Slot, lease: float, scores: Sequence[Score]) -> None:
        """Commits a batch of scores, all or none; one that is there stays. Raises LeaseLost."""
        self._hold(session, slot, lease, lost=0)
        rows = [
            {
                "study": self.study.id,
                "slot": slot.number,
                "prompt": score.prompt,
                "metric": score.metric,
                "value": score.value,
                "seconds": score.seconds,
            }
            for score in scores
        ]
        self.database.insert_missing(session, ScoreTable, rows)

    @transaction
    def renew(self, session: Session, slot: Slot, lease: float) -> None:
        """Holds the slot for another `lease` seconds. Raises LeaseLost."""
        self._hold(session, slot, lease)

    @transaction
    def finish(self, session: Session, slot: Slot, value: float, *, stopped: bool = False) -> None:
        """The slot is done and has a value; again changes nothing. Raises LeaseLost.

        `stopped`: early, and the value is an estimate; such a slot is never the best.
        """
        state = "stopped" if stopped else "finished"
        try:
            self._hold(session, slot, 0, state=state, value=value, reason=None, finished=now())
        except LeaseLost:
            row = self._row(session, slot.number)
            if (row.state, row.attempt) != (state, slot.attempt):
                raise

    @transaction
    def release(self, session: Session, slot: Slot) -> None:
        """Gives a slot back, if it is still held; its vector and scores stay."""
        row = self._held(session, slot)
        if row:
            row.state, row.worker, row.lease = "waiting", None, None

    @transaction
    def fail(self, session: Session, slot: Slot, reason: str) -> bool:
        """Counts a failure; after FAILURES of them the slot is parked with `reason` (True)."""
        row = self._held(session, slot)
        if row:
            row.failures, row.reason, row.worker, row.lease = row.failures + 1, reason, None, None
            row.state = "parked" if row.failures >= FAILURES else "waiting"
            return row.state == "parked"
        return self._row(session, slot.number).state == "parked"

    # Scores

    @transaction
    def scores(self, session: Session, slot: int) -> list[Score]:
        """What a slot has scored, by prompt, with what the slots before it scored of its vector
        where it goes on from them."""
        origin = self._row(session, slot).origin
        mine = ScoreTable.slot == slot
        if origin is not None:
            family = sa.select(SlotTable.number).where(
                SlotTable.study == self.study.id,
                SlotTable.number <= slot,
                sa.or_(SlotTable.number == origin, SlotTable.origin == origin),
            )
            mine = ScoreTable.slot.in_(family)
        query = (
            sa.select(ScoreTable.prompt, ScoreTable.metric, ScoreTable.value, ScoreTable.seconds)
            .where(ScoreTable.study == self.study.id, mine)
            .order_by(ScoreTable.prompt, ScoreTable.metric)
        )
        return [Score(*row) for row in session.execute(query)]

    @transaction
    def own_scores(self, session: Session, slots: Sequence[int]) -> dict[int, list[Score]]:
        """What each of these slots has scored itself, by prompt."""
        return scores_by_slot(session, self.study, slots)

    @transaction
    def effort(self, session: Session) -> tuple[int, float]:
        """How many scores a study has, and the sum of their seconds."""
        query = sa.select(sa.func.count(), sa.func.sum(ScoreTable.seconds)).filter_by(
            study=self.study.id
        )
        count, seconds = session.execute(query.select_from(ScoreTable)).one()
        total = float(seconds or 0.0)
        if not math.isfinite(total):
            raise ValueError("the seconds of the scores are no number")
        return count, total

    # Inside a transaction

    def _limit(self, session: Session, barriers: Callable[[int], Sequence[int]]) -> int | None:
        """The first barrier behind a slot that isn't over; None where nothing is barred."""
        of_study = SlotTable.study == self.study.id
        count = sa.select(sa.func.count()).select_from(SlotTable).where(of_study)
        places = barriers(session.scalar(count) or 0)
        if not places:
            return None
        left = sa.or_(
            SlotTable.state.in_(("waiting", "running")),
            sa.and_(SlotTable.number == 0, SlotTable.state != "finished"),
        )
        first = session.scalar(sa.select(sa.func.min(SlotTable.number)).where(of_study, left))
        return next((place for place in places if first is not None and first < place), None)

    def _hold(self, session: Session, slot: Slot, lease: float, **changes: Any) -> None:
        """Checks the fencing token and renews the lease in one statement; LeaseLost if it is not
        this attempt's any more, StudyGone if there is none."""
        result = session.execute(
            sa.update(SlotTable)
            .filter_by(
                study=self.study.id, number=slot.number, state="running", attempt=slot.attempt
            )
            .values(lease=now() + lease, **changes)
            .execution_options(synchronize_session=False)
        )
        if result.rowcount != 1:  # type: ignore[attr-defined]
            self._row(session, slot.number)
            raise lost(self.study, slot)

    def _held(self, session: Session, slot: Slot) -> SlotTable | None:
        """The slot's row, locked, if this attempt still holds it."""
        row = self._row(session, slot.number, locked=True)
        return row if row.state == "running" and row.attempt == slot.attempt else None

    def _row(self, session: Session, number: int, *, locked: bool = False) -> SlotTable:
        row = session.get(SlotTable, (self.study.id, number), with_for_update=locked)
        if row is None:
            raise gone(self.study)
        return row

    def _reap(self, session: Session) -> None:
        """Returns what expired to the queue; what others are looking at is theirs."""
        query = (
            sa.select(SlotTable)
            .where(
                SlotTable.study == self.study.id,
                SlotTable.state == "running",
                SlotTable.lease < now(),
            )
            .with_for_update(skip_locked=True)
        )
        for row in session.scalars(query):
            if not _lost(row):
                row.state, row.worker, row.lease = "waiting", None, None
        session.flush()


def add_slots(session: Session, study: StudyTable, budget: int) -> None:
    """Adds waiting slots to a study that is locked or new until there are `budget`."""
    query = sa.select(sa.func.count()).select_from(SlotTable).filter_by(study=study.id)
    missing = range(session.scalar(query) or 0, budget)
    if missing:
        rows = [{"study": study.id, "number": number} for number in missing]
        session.execute(sa.insert(SlotTable), rows)


def scores_by_slot(
    session: Session, study: Incarnation, slots: Sequence[int] | None = None
) -> dict[int, list[Score]]:
    """All scores of a study, or of some of its slots, by prompt within a slot."""
    columns = (ScoreTable.slot, ScoreTable.prompt, ScoreTable.metric)
    query = sa.select(*columns, ScoreTable.value, ScoreTable.seconds)
    found: dict[int, list[Score]] = {}
    if slots is not None:
        query = query.where(ScoreTable.slot.in_(slots))
    rows = session.execute(query.filter_by(study=study.id).order_by(*columns))
    for slot, prompt, metric, value, seconds in rows:
        found.setdefault(slot, []).append(Score(prompt, metric, value, seconds))
    return found


def lost(study: Incarnation, slot: Slot) -> LeaseLost:
    """What is raised for a slot that is another attempt's."""
    return LeaseLost(f"study {study.name!r}: slot {slot.number} went to another worker")


def _lost(row: SlotTable) -> bool:
    """Counts an expired lease; True if that parks the slot."""
    row.lost += 1
    if row.lost < LOSSES:
        return False
    row.state, row.worker, row.lease = "parked", None, None
    row.reason = f"its worker was lost {LOSSES} times in a row before it had scored anything"
    return True
